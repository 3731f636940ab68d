"""The texts of the environment's turns: what the model reads beside the images.

Prompts are built by joining strings, never by formatting, because a question may contain braces or anything else.
Where a question shows several images, they are numbered, and a box is asked for together with its image's number.
"""

from __future__ import annotations

import re

from mgpo.method.boxes import BoxForm, Coordinates
from mgpo.method.protocol import CropFrame, Method, Protocol
from mgpo.method.question import LETTERS, Question

UNIT = {
    Coordinates.ABSOLUTE: "in pixels of",
    Coordinates.RELATIVE_1000: "in thousandths of the width and height of",
    Coordinates.RELATIVE_1: "in fractions of the width and height of",
}
SHOW_CROP = "Here is the region that you named, cut from the original image in full detail."
SHOW_AGAIN = "That was no usable box, so here is the whole image again."
ASK_MORE = "If you need to see another region first, reply with its box in the same JSON form. Otherwise answer now. "
ASK_MORE_OR_LAST = (
    "If you need to see another region first, reply with its box in the same JSON form. Leave out the image's number for a "
    "region of the image shown last. Otherwise answer now. "
)
NO_MORE = "No further region can be shown. Answer now. "
"""What a tool returns when the model has no turn left in which it could look again."""
ASK_LETTER = "Think about what you see, then put the letter of your answer in \\boxed{}."
ASK_TEXT = "Think about what you see, then put your answer in \\boxed{}."

_SPECIAL = re.compile(
    r"<\|[^\s|<>][^|<>]*\|>|<\|\w+>|<\w+\|>|\[[gs]?MASK\]|◁/?\w+▷"
    r"|</?(?:s|pad|unk|eos|bos|sop|eop|img|IMG_CONTEXT|image|video|box|ref|quad|think|tool_call|tool_response|arg_key|arg_value)>"
    r"|<(?:tts_|start_of_|end_of_|row_\d+_col_)\w+>|<image_soft_token>|<fake_token_around_image>|<global-img>",
)


def neutral(text: str) -> str:
    """Text from data with every special token broken apart, so that the tokenizer cannot recognise it.

    Chat and vision tokens of all supported families are written `<|name|>`, or are one of a few tags. A space after the
    first character is enough to keep a tokenizer from recognising them, and the text stays readable.
    """
    return _SPECIAL.sub(lambda match: match.group(0)[0] + " " + match.group(0)[1:], text)


def opening_text(question: Question, protocol: Protocol) -> str:
    """Text of the first user turn. For `mgpo` the choices are withheld: the box must come from the question alone."""
    form, several = protocol.box.form, len(question.images) > 1
    if protocol.method is Method.MGPO:
        return neutral(question.question.strip()) + "\n" + ask_region(form, several)
    if protocol.method is Method.GRPO:
        return asked(question) + "\n" + ask_region_and_answer(form, several) + ask_answer(question)
    if protocol.method is Method.ADAPTIVE:
        need = ask_to_call(protocol.tool, form, several) if protocol.tool else ask_region_if_needed(form, several)
        return asked(question) + "\n" + need + ask_answer(question)
    return asked(question) + "\n" + ask_answer(question)


def ask_region(form: BoxForm, several: bool = False) -> str:
    """The request for a box in turn 1 of MGPO; `several`: the question shows several images."""
    if several:
        return (
            "You will be given a close-up of one region of one of these images before you answer. Which region do you need "
            f"to see? Reply with {_numbered_box(form)}"
        )
    return (
        "You will be given a close-up of one region of this image before you answer. Which region do you need to see? "
        f"Reply with its box, {UNIT[form.coordinates]} this image, as JSON:\n{form.example}"
    )


def ask_region_and_answer(form: BoxForm, several: bool = False) -> str:
    """The request for a box and the answer in one turn."""
    if several:
        return f"First say where the answer is to be seen: give {_numbered_box(form)}\nThen answer. "
    return (
        f"First give the box of the region that holds the answer, {UNIT[form.coordinates]} this image, as JSON:\n{form.example}\n"
        "Then answer. "
    )


def ask_region_if_needed(form: BoxForm, several: bool = False) -> str:
    """The request for a box or an answer."""
    if several:
        return (
            "If you need to see a region of one of these images close up first, reply with nothing but "
            f"{_numbered_box(form)}\nOtherwise answer now. "
        )
    return (
        "If you need to see a region of it close up first, reply with nothing but its box, "
        f"{UNIT[form.coordinates]} this image, as JSON:\n{form.example}\nOtherwise answer now. "
    )


def ask_to_call(tool: str, form: BoxForm, several: bool = False) -> str:
    """The request for a call of the tool or an answer."""
    unit, box = UNIT[form.coordinates], f"the box of the region ({form.names}"
    if several:
        return (
            f"If you need to see a region of one of these images close up first, call {tool} with the number of the image and "
            f"{box}, {unit} that image). Otherwise answer now. "
        )
    return f"If you need to see a region of this image close up first, call {tool} with {box}, {unit} this image). Otherwise answer now. "


def ask_more(protocol: Protocol, several: bool) -> str:
    """The offer of a further region; `several`: the question shows several images."""
    latest = several and protocol.crop_frame is CropFrame.LATEST
    if protocol.tool is None:
        return ASK_MORE_OR_LAST if latest else ASK_MORE
    last = "Leave out the image's number for a region of the image shown last. " if latest else ""
    return f"If you need to see another region first, call {protocol.tool} again with its box. {last}Otherwise answer now. "


def _numbered_box(form: BoxForm) -> str:
    unit = UNIT[form.coordinates]
    return f"the number of the image and the box of the region, {unit} that image, as JSON:\n{form.numbered_example}"


def image_label(number: int) -> str:
    """What stands before an image, where a question shows several."""
    return ("\n" if number > 1 else "") + f"Image {number}: "


def crop_intro(question: Question, image_number: int) -> str:
    """What introduces the region that the model named in this image of the question."""
    if len(question.images) == 1:
        return SHOW_CROP
    return f"Here is the region of image {image_number} that you named, cut from the original image in full detail."


def again_intro(question: Question, image_number: int) -> str:
    """What introduces an image of the question that is shown again."""
    if len(question.images) == 1:
        return SHOW_AGAIN
    return f"That was no usable box, so here is image {image_number} again."


def reply_text(question: Question, protocol: Protocol, intro: str, final: bool) -> str:
    """Text of a later user turn; the model may name a further region unless its next turn is the `final` one."""
    more = "" if final else ask_more(protocol, len(question.images) > 1)
    return intro + "\n" + asked(question) + "\n" + more + ask_answer(question)


def user_texts(question: Question, protocol: Protocol) -> list[str]:
    """All texts that the environment may send for this question beside labels of images, the first user turn first."""
    last = [True, False][: protocol.turns - 1]  # with K = 2 the second turn is the last
    number = len(question.images)  # no number of an image is longer than another
    intros = [crop_intro(question, number), again_intro(question, number)]
    replies = [reply_text(question, protocol, intro, final) for intro in intros for final in last]
    return [opening_text(question, protocol), *replies]


def asked(question: Question) -> str:
    """The question with its lettered choices."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices)]
    return neutral("\n".join([question.question.strip(), *lines]))


def ask_answer(question: Question) -> str:
    """The request for the final answer."""
    return ASK_LETTER if question.choices else ASK_TEXT
