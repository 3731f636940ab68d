"""Thinking blocks: a turn may begin with one, and only what follows it is read as a box or an answer.

    spoken("<think>Two signs. \\boxed{A}? No.</think>\\boxed{B}")     # "\\boxed{B}"

The block's tokens are the model's own: they are trained on and count towards the turn's limit like any others.
"""

from __future__ import annotations

BLOCKS = (("<think>", "</think>"), ("◁think▷", "◁/think▷"))
"""How families open and close a block: Qwen, GLM and InternVL; Kimi-VL."""


def spoken(text: str) -> str:
    """What a turn says after its thinking block; nothing if the block was never closed.

    Templates of thinking models open the block in the prompt, so the text of a turn may hold the closing tag alone.
    """
    for opening, closing in BLOCKS:
        _, closed, after = text.rpartition(closing)
        if closed:
            return after
        if text.lstrip().startswith(opening):
            return ""
    return text
