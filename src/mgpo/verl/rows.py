"""A row as verl's dataset hands it to an agent loop, read as a question. No verl and no torch here.

verl's dataset has already split the prompt's text at its `<image>` markers; apart from that, rows are read as
`mgpo data check` reads them from the file (`mgpo.data.several.verl`), so both paths ask the same question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgpo.data.several import IMAGE_PARTS, in_text, verl
from mgpo.method.question import Question


def question_of(row: Mapping[str, Any]) -> Question:
    """The question of a row.

    Args:
        row: `raw_prompt` (messages), `reward_model`, and optionally `extra_info`, `data_source` and choices.

    Returns:
        The question; its `image` is None if the row shows none.

    Raises:
        ValueError: the row has no question or no answer, or it cannot be read; the message names it.
    """
    extra = row.get("extra_info") or {}
    name = str(extra.get("index", row.get("index", "")))
    messages = _plain(row["raw_prompt"])
    images = [_source(part) for part in _image_parts(messages)]
    layout = {**row, "prompt": messages, "images": images, "extra_info": extra}
    try:
        if images:
            question = Question.from_row(verl(layout, Path()))
        else:
            text = extra.get("question") or _text_of(messages)
            found = in_text(text, row["reward_model"]["ground_truth"], layout)
            question = Question(None, found["question"], tuple(found["choices"]), found["answer"], id=name)
        if not question.answer:
            raise ValueError("it has no answer in reward_model.ground_truth, so it could not be scored")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"Row {name!r} of verl's data cannot be asked: {reason.rstrip('.')}.") from error
    return question


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Messages with their content as text, or as a list of parts."""
    return [
        {"role": message["role"], "content": content if isinstance(content, str) else [dict(part) for part in content]}
        for message in messages
        for content in [message["content"]]
    ]


def _image_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part for part in parts if part.get("type") in IMAGE_PARTS]


def _text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    content = next((message["content"] for message in reversed(messages) if message["role"] == "user"), None)
    if content is None:
        raise ValueError("its prompt has no user turn")
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if part.get("text"))


def _source(part: Mapping[str, Any]) -> Any:
    """The file of an image: its bytes, else its path. A picture that verl has opened is taken where there is no file."""
    if part.get("bytes"):
        return bytes(part["bytes"])
    image = part.get("image") or part.get("path") or part.get("image_url")
    return image.removeprefix("file://") if isinstance(image, str) else image
