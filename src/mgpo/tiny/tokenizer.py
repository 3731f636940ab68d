"""The tokenizer of `mgpo-tiny`: Qwen's special tokens and chat format, a vocabulary of its own, digits apart.

The sentences of the turn protocol are single tokens. A policy of two million parameters has to read them in every
sample and learns nothing from their words; as one token each they keep an episode short. What the model itself writes is
spelled in pieces. A box shares its first token with an empty list and its first two with a label without a box, so that
no single token decides whether there is a box.
"""

from __future__ import annotations

import itertools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mgpo.method import prompts
from mgpo.method.boxes import BoxForm
from mgpo.tiny.model import VOCAB_SIZE
from mgpo.worlds.needle import ASK, HOW_MANY, WHICH_COLOUR
from mgpo.worlds.scene import COLOURS, DIRECTIONS, LETTERS, SHAPES

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Qwen's special tokens, in Qwen's order."""

PLAIN_BOX = "Give the box of the"
PLAIN_READ = {"letter": "Which letter is on this sign?", "dots": "How many dots are on this sign?", "shape": "Which shape is on this sign?"}  # fmt: skip
LOOK_AT = "Look at the"
PROSE = ("It is on the", "There is a", LOOK_AT, "It must be the")
SEES = "I see"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2.5-VL's format, without a system turn unless the conversation has one."""

PHRASES = (
    prompts.ask_region(BoxForm()),
    prompts.ask_region_and_answer(BoxForm()),
    prompts.SHOW_CROP,
    prompts.SHOW_AGAIN,
    prompts.ASK_MORE,
    prompts.ASK_LETTER,
    prompts.ASK_TEXT,
    PLAIN_BOX,
    *PROSE,
    "```json\n",
    '[{"',
    "bbox_2d",
    '": [',
    '], "',
    "label",
    '": "',
    '"}]\n```',
    "[]\n```",
    ", ",
    "\\boxed{",
    "<|im_start|>user\n".removeprefix("<|im_start|>"),
    "assistant\n",
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on the words of the `needle` world; every byte stays representable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    room = VOCAB_SIZE - len(SPECIAL) - len(PHRASES) - 1
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(phrase, special=False, normalized=False) for phrase in (*PHRASES, SEES)])
    if tokenizer.get_vocab_size() > VOCAB_SIZE:
        raise RuntimeError(f"The vocabulary has {tokenizer.get_vocab_size()} entries, more than {VOCAB_SIZE}.")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Id of each special token."""
    return {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}


def _corpus() -> list[str]:
    """The world's words, often enough that each becomes a token or two, then the protocol's sentences once."""
    references = [f"{c} sign" for c in COLOURS]
    references += [f"sign {d} the {c} sign" for d, c in itertools.product(DIRECTIONS, COLOURS)]
    lines = [ask + name + "?" for ask in ASK.values() for name in references]
    lines += [f"{letter}. {value}" for letter in "ABCDEF" for value in (*COLOURS, *LETTERS, *SHAPES, *"123456789")]
    lines += [f"{name}" for name in references] + [
        HOW_MANY,
        WHICH_COLOUR,
        *PLAIN_READ.values(),
        "}",
        "?",
        "\n",
        ".",
    ] * 8
    return lines * 4 + list(PHRASES)
