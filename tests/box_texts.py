"""Texts of a model, and what becomes of the box in each."""

from mgpo.method.boxes import BoxStatus

GOOD = '[{"bbox_2d": [10, 20, 110, 220], "label": "sign"}]'


def fenced(body):
    return f"```json\n{body}\n```"


def box(numbers, label='"a"'):
    return fenced(f'[{{"bbox_2d": {numbers}, "label": {label}}}]')


TABLE = [
    (fenced(GOOD), BoxStatus.VALID),
    (f"```\n{GOOD}\n```", BoxStatus.VALID),
    (f"```JSON {GOOD}", BoxStatus.VALID),  # the fence was never closed
    (f"I look here: {GOOD} and [there]", BoxStatus.VALID),  # no fence, brackets in the text after it
    ("", BoxStatus.NO_JSON),
    ("The sign is at (10, 20).", BoxStatus.NO_JSON),
    ("[10, 20, 110, 220]", BoxStatus.NO_JSON),
    (fenced(GOOD + " " * 3900 + "[]"), BoxStatus.BAD_JSON),
    (fenced(GOOD[:-1] + "," + GOOD[1:-1] * 100 + "]"), BoxStatus.TOO_LONG),
    (GOOD[:-1] + "," + ",".join([GOOD[1:-1]] * 100) + "]", BoxStatus.TOO_LONG),
    (fenced(GOOD[:-5]), BoxStatus.BAD_JSON),
    (GOOD[:-5], BoxStatus.BAD_JSON),
    (fenced(GOOD[:-1] + ",]"), BoxStatus.BAD_JSON),
    (fenced(""), BoxStatus.BAD_JSON),
    (box("[NaN, 0, 100, 100]"), BoxStatus.BAD_JSON),
    (box("[0, 0, Infinity, 100]"), BoxStatus.BAD_JSON),
    (box("[0, 0, ١٠٠, 100]"), BoxStatus.BAD_JSON),  # digits, but not JSON's
    (fenced(GOOD[1:-1]), BoxStatus.NOT_A_LIST),
    (fenced("7"), BoxStatus.NOT_A_LIST),
    (fenced("[10, 20, 110, 220]"), BoxStatus.NOT_A_LIST),
    (fenced("[]"), BoxStatus.EMPTY),
    (fenced("[{}]"), BoxStatus.NO_BOX),
    (fenced('[{"point_2d": [1, 2], "label": "a"}]'), BoxStatus.NO_BOX),
    (box("[0, 0, 100]"), BoxStatus.NO_BOX),
    (box("[0, 0, 100, 100, 100]"), BoxStatus.NO_BOX),
    (box('"0, 0, 100, 100"'), BoxStatus.NO_BOX),
    (box("[0, 0, 100.0, 100]"), BoxStatus.WRONG_TYPES),
    (box("[0, 0, 1e2, 100]"), BoxStatus.WRONG_TYPES),
    (box("[false, 0, 100, 100]"), BoxStatus.WRONG_TYPES),
    (box('[0, 0, "100", 100]'), BoxStatus.WRONG_TYPES),
    (box("[0, 0, null, 100]"), BoxStatus.WRONG_TYPES),
    (box(f"[0, 0, {'9' * 3000}, 100]"), BoxStatus.WRONG_TYPES),
    (fenced('[{"bbox_2d": [0, 0, 100, 100]}]'), BoxStatus.NO_LABEL),
    (box("[0, 0, 100, 100]", "7"), BoxStatus.NO_LABEL),
    (box("[100, 0, 100, 100]"), BoxStatus.INVERTED),
    (box("[0, 100, 100, 0]"), BoxStatus.INVERTED),
    (box("[-1, 0, 100, 100]"), BoxStatus.OUTSIDE),
    (box("[0, 0, 1001, 100]"), BoxStatus.OUTSIDE),
    (box("[0, 0, 100, 501]"), BoxStatus.OUTSIDE),
    (box("[0, 0, 1000, 500]"), BoxStatus.VALID),
    (box("[0, 0, 28, 100]"), BoxStatus.TOO_SMALL),
    (box("[0, 0, 29, 29]"), BoxStatus.VALID),
]
