"""verl's dataset, with images as files.

    data.custom_cls.path=pkg://mgpo.verl.dataset data.custom_cls.name=MGPODataset

verl's own `RLHFDataset` opens each image, so that its decoded pixels travel with the row to the agent loop's process: 100 MB
for a photograph of 33 megapixels, where the file has ten. The agent loop opens files itself, and only as far as it must.
"""

from __future__ import annotations

from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset


class MGPODataset(RLHFDataset):
    """`RLHFDataset` whose images stay files: bytes where they are embedded, else paths.

    Raises:
        ValueError: `data.filter_overlong_prompts` is set: that counts tokens of another prompt than the one that is asked, and
            the agent loop refuses questions that are too long itself.
    """

    def __init__(self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, **more: Any) -> None:
        if config.get("filter_overlong_prompts", False):
            raise ValueError(
                "MGPODataset cannot filter by length, because the agent loop writes the prompts: set "
                "data.filter_overlong_prompts=False. Questions over max_reply_tokens are refused by the agent loop."
            )
        super().__init__(data_files, tokenizer, config, processor, **more)

    def _build_messages(self, example: dict, key: str) -> list:
        """Called by verl for each row. `bytes` and `path` of embedded images are kept, the opened picture is not."""
        images = example.get(self.image_key) or []
        if isinstance(images, list):
            example[self.image_key] = [_path_or_embedded(image) for image in images]
        messages: list = super()._build_messages(example, key)
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part.get("bytes"):
                    part.pop("image", None)
        return messages


def _path_or_embedded(image: Any) -> Any:
    """An image that is only named is a path for verl, which would look into its missing bytes."""
    if isinstance(image, dict) and not image.get("bytes") and image.get("path"):
        return image["path"]
    return image
