"""A packed row gives each of its conversations what a row of its own would."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.policies.shared.models import NAME, use_packed_attention
from mgpo.policies.shared.packed import Packed, Part, packed_attention

HEADS, KEY_HEADS, SIZE = 4, 2, 8
PLAIN = SimpleNamespace(device="cpu", config=SimpleNamespace(get_text_config=SimpleNamespace))


class Layer(torch.nn.Module):
    layer_idx, num_key_value_groups, is_causal = 0, HEADS // KEY_HEADS, True


def draw(tokens):
    torch.manual_seed(0)
    return [torch.randn(1, heads, tokens, SIZE, dtype=torch.float64) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]


def alone(query, key, value):
    """Causal attention of one conversation, written out."""
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) / SIZE**0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + key.shape[2] - query.shape[2])
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def pick(tensors, *spans):
    return [torch.cat([x[:, :, a:b] for a, b in spans], 2) for x in tensors]


def test_each_part_sees_its_prefix_and_itself():
    """A prompt of 5 tokens with branches of 3 and 1, then one of 4 with a branch of 2."""
    tensors = draw(15)
    parts = (Part(0, 5), Part(5, 8, (0, 5)), Part(8, 9, (0, 5)), Part(9, 13), Part(13, 15, (9, 13)))
    found, _ = packed_attention(Layer(), *tensors, Packed(parts).mask(PLAIN), scaling=SIZE**-0.5)
    for part in parts:
        before = part.prefix or (0, 0)
        whole = alone(*pick(tensors, before, (part.start, part.stop)))
        expected = whole[:, before[1] - before[0] :]
        torch.testing.assert_close(found[:, part.start : part.stop], expected)


def test_what_was_computed_before_is_seen():
    tensors = draw(12)
    _, key, value = tensors
    past = [(key[0, :, 0:4], value[0, :, 0:4])]
    parts = (Part(0, 3), Part(3, 5))
    now = [x[:, :, 4:9] for x in tensors]
    found, _ = packed_attention(Layer(), *now, Packed(parts, (past, None)).mask(PLAIN), scaling=SIZE**-0.5)
    torch.testing.assert_close(found[:, 0:3], alone(*pick(tensors, (0, 7)))[:, 4:7])
    torch.testing.assert_close(found[:, 3:5], alone(*pick(tensors, (7, 9))))


def test_any_other_mask_is_left_to_sdpa():
    query, key, value = draw(6)
    found, _ = packed_attention(Layer(), query, key, value, None, scaling=SIZE**-0.5)
    torch.testing.assert_close(found, alone(query, key, value))


def test_models_that_cannot_are_named(random_tiny):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    model.config.get_text_config().layer_types = ["sliding_attention"] * 4
    with pytest.raises(ValueError, match="sliding window"):
        use_packed_attention(model)
    assert model.config.get_text_config()._attn_implementation != NAME


def test_a_mask_that_lost_its_layout_is_no_mask():
    """As when it is copied to another device: attention refuses it, so that no rollout sees another."""
    tensors = draw(6)
    copied = Packed((Part(0, 3), Part(3, 6))).mask(PLAIN).clone()
    with pytest.raises(RuntimeError, match="mask"):
        packed_attention(Layer(), *tensors, copied, scaling=SIZE**-0.5)


def test_mixed_precision_keeps_the_layout():
    """FSDP 2 casts the inputs of every layer in this way."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import _cast_fp_tensor

    layout = Packed((Part(0, 3), Part(3, 6)))
    assert _cast_fp_tensor(torch.bfloat16, layout.mask(PLAIN)).packed is layout


def test_a_model_that_is_split_over_devices_is_refused(loud_tiny):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(loud_tiny)
    model.hf_device_map = {"model.visual": 0, "model.language_model": 1}
    with pytest.raises(ValueError, match="split over devices"):
        use_packed_attention(model)
