"""A packed row gives each of its conversations what a row of its own would, however its attention is computed."""

from types import SimpleNamespace

import pytest
import torch
from flash_emulation import Flash
from torch.nn.attention import flex_attention as torch_flex
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mgpo.policies.shared import flex, joined, models
from mgpo.policies.shared.joined import OneByOne, Varlen, calls_of
from mgpo.policies.shared.models import attention_of, use_packed_attention
from mgpo.policies.shared.packed import Packed, Part, part_by_part

HEADS, KEY_HEADS, SIZE = 4, 2, 8
PLAIN = SimpleNamespace(device="cpu", config=SimpleNamespace(get_text_config=SimpleNamespace))
TWO_QUESTIONS = (
    Part(0, 5), Part(5, 8, (0, 5)), Part(8, 9, (0, 5)), Part(9, 13), Part(13, 15, (9, 13)), Part(15, 15, (9, 13)),
    Part(15, 17),
)  # fmt: skip
"""A prompt of 5 tokens with branches of 3 and 1, one of 4 with branches of 2 and none, and one without branches."""


class Layer(torch.nn.Module):
    layer_idx, num_key_value_groups, is_causal = 0, HEADS // KEY_HEADS, True


def draw(tokens, dtype=torch.float64, grad=False):
    torch.manual_seed(0)
    made = [torch.randn(1, heads, tokens, SIZE, dtype=torch.float64) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [x.to(dtype).requires_grad_(grad) for x in made]


def reference(query, key, value, layout, before):
    return part_by_part(query, key, value, layout, before, SIZE**-0.5)


def with_kernel(kernel):
    def attend(query, key, value, layout, before):
        return joined.joined(query, key, value, layout, before, SIZE**-0.5, kernel)

    return attend


def emulated(flash):
    """The kernel for CUDA with PyTorch's functions written out."""
    kernel = Varlen()
    kernel.ahead, kernel.back = flash.forward, flash.backward
    return kernel


def with_flex(query, key, value, layout, before):
    return flex.flexible(query, key, value, layout, before, SIZE**-0.5)


WAYS = {
    "part by part": reference,
    "joined, sequence by sequence": with_kernel(OneByOne()),
    "joined, varlen": with_kernel(emulated(Flash())),
    "flex": with_flex,
}


@pytest.fixture(params=WAYS)
def attend(request):
    def call(tensors, parts, past=()):
        layout = Packed(parts, past)
        return WAYS[request.param](*tensors, layout, layout.before(0)).transpose(1, 2)

    return call


def alone(query, key, value):
    """Causal attention of one conversation, written out."""
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) / SIZE**0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + key.shape[2] - query.shape[2])
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def pick(tensors, *spans):
    return [torch.cat([x[:, :, a:b] for a, b in spans], 2) for x in tensors]


def test_each_part_sees_its_prefix_and_itself(attend):
    tensors = draw(17)
    found = attend(tensors, TWO_QUESTIONS)
    for part in TWO_QUESTIONS:
        before = part.prefix or (0, 0)
        whole = alone(*pick(tensors, before, (part.start, part.stop)))
        expected = whole[:, before[1] - before[0] :]
        torch.testing.assert_close(found[:, part.start : part.stop], expected)


def test_what_was_computed_before_is_seen(attend):
    """One conversation goes on after four tokens, one begins, one goes on after two, one has nothing new."""
    tensors = draw(14)
    _, key, value = tensors
    four, two = ([(key[0, :, a:b], value[0, :, a:b])] for a, b in ((0, 4), (10, 12)))
    parts = (Part(0, 3), Part(3, 5), Part(5, 6), Part(6, 6))
    now = [x[:, :, [*range(4, 9), 12]] for x in tensors]
    found = attend(now, parts, (four, None, two, four))
    torch.testing.assert_close(found[:, 0:3], alone(*pick(tensors, (0, 7)))[:, 4:7])
    torch.testing.assert_close(found[:, 3:5], alone(*pick(tensors, (7, 9))))
    torch.testing.assert_close(found[:, 5:6], alone(*pick(tensors, (10, 13)))[:, 2:3])


def run(attend, dtype, weights):
    """Output, and the gradients of queries, keys and values, in float64."""
    layout, tensors = Packed(ROLLOUTS), draw(ROLLOUTS[-1].stop, dtype, grad=True)
    out = attend(*tensors, layout, layout.before(0))
    (out * weights.to(dtype)).sum().backward()
    return [x.double() for x in (out.detach(), *(t.grad for t in tensors))]


ROLLOUTS = (
    Part(0, 70), *(Part(70 + 20 * i, 90 + 20 * i, (0, 70)) for i in range(5)), Part(170, 230), Part(230, 251, (170, 230)),
)  # fmt: skip


@pytest.mark.parametrize("way", [name for name in WAYS if name != "part by part"])
def test_outputs_and_gradients_equal_part_by_part(way, monkeypatch):
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)  # it refuses gradients on CPUs; they are right
    weights = torch.randn(1, HEADS, ROLLOUTS[-1].stop, SIZE, dtype=torch.float64)
    exact = run(reference, torch.float64, weights)
    for found, expected in zip(run(WAYS[way], torch.float32, weights), exact, strict=True):
        assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    # bfloat16 rounds queries, keys and values before any of the ways begins; what a way adds is compared with SDPA's own.
    rounded = [x.bfloat16() for x in draw(ROLLOUTS[-1].stop)]
    for found, sdpa, expected in zip(
        run(WAYS[way], torch.bfloat16, weights),
        run(reference, torch.bfloat16, weights),
        run(from_values(rounded), torch.float64, weights.bfloat16().double()),
        strict=True,
    ):
        assert (found - expected).norm() < 2 * (sdpa - expected).norm()


def from_values(values):
    """`reference`, with the values of rounded inputs: the exact result that a computation in bfloat16 aims at."""

    def attend(query, key, value, layout, before):
        own = [x + (r.double() - x).detach() for x, r in zip((query, key, value), values)]
        return reference(*own, layout, before)

    return attend


def test_kernel_calls_do_not_depend_on_the_number_of_parts(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        flex, "flex_attention", lambda *args, **named: compiled.append(1) or torch_flex.flex_attention(*args, **named)
    )
    counts = []
    for rollouts in (2, 9):
        layout = Packed((Part(0, 4), *(Part(4 + i, 5 + i, (0, 4)) for i in range(rollouts))))
        flash = Flash()
        with_kernel(emulated(flash))(*draw(4 + rollouts, grad=True), layout, layout.before(0)).sum().backward()
        with_flex(*draw(4 + rollouts), layout, layout.before(0))
        counts.append((flash.calls, len(compiled)))
        compiled.clear()
    assert counts[0] == counts[1] == ({"forward": 2, "backward": 2}, 1)
    assert len(calls_of(TWO_QUESTIONS, (0, 3, 0, 0, 1, 2, 0))) == 3


def test_a_block_mask_holds_the_pairs_that_attend():
    """Written out token by token; cached keys come first."""
    parts, past = (Part(0, 3), Part(3, 5, (0, 3)), Part(5, 7)), (0, 0, 2)
    mask = flex.block_mask(parts, past, torch.device("cpu"))
    sees = [[bool(mask.mask_mod(0, 0, torch.tensor(q), torch.tensor(k))) for k in range(9)] for q in range(7)]
    expected = ["001000000", "001100000", "001110000", "001111000", "001111100", "110000010", "110000011"]
    assert ["".join(str(int(one)) for one in row) for row in sees] == expected


def test_chosen_rows_are_computed_and_no_others():
    tensors, layout, rows = draw(17), Packed(TWO_QUESTIONS), torch.tensor([2, 6, 7, 12, 14, 16])
    whole = reference(*tensors, layout, layout.before(0))
    found = part_by_part(*tensors, layout, layout.before(0), SIZE**-0.5, rows=rows)
    torch.testing.assert_close(found[:, :, rows], whole[:, :, rows])
    others = [row for row in range(17) if row not in rows]
    assert not found[:, :, others].any() and whole[:, :, others].any()


@pytest.fixture
def ready(loud_tiny):
    """A model that accepts layouts."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(loud_tiny)
    use_packed_attention(model)
    return model


@pytest.mark.parametrize("name", models.IMPLEMENTATIONS)
def test_every_implementation_shares(loud_tiny, name, monkeypatch):
    """The row of two conversations that share a prompt gives the hidden states of each alone."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(loud_tiny, attn_implementation="sdpa")
    prompt, ends = [5, 6, 7, 8], ([9, 10], [11, 12, 13])

    def states(ids, positions, mask=None):
        with torch.no_grad():
            return model.model.language_model(
                inputs_embeds=model.get_input_embeddings()(torch.tensor([ids])), attention_mask=mask,
                position_ids=torch.tensor(positions).expand(3, 1, -1), use_cache=False,
            ).last_hidden_state[0]  # fmt: skip

    expected = [states(prompt + end, list(range(4 + len(end))))[4:] for end in ends]
    for kept in models.IMPLEMENTATIONS:  # as this process found it, whatever ran before
        monkeypatch.setitem(AttentionInterface._global_mapping, kept, ALL_ATTENTION_FUNCTIONS[kept])
    model.config.text_config._attn_implementation = name
    use_packed_attention(model)
    layout = Packed((Part(0, 4), Part(4, 6, (0, 4)), Part(6, 9, (0, 4))))
    found = states(prompt + ends[0] + ends[1], [0, 1, 2, 3, 4, 5, 4, 5, 6], layout.mask(model))
    torch.testing.assert_close(found[4:], torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert model.config.text_config._attn_implementation == name


@pytest.mark.parametrize(
    ("device", "changes", "way"),
    [
        ("cpu", {}, "joined"), ("cpu", {"flex": True}, "joined"), ("cpu", {"dropout": 0.1}, "part_by_part"),
        ("cpu", {"last": True}, "part_by_part"), ("meta", {"flex": True, "last": True}, "flexible"),
        ("meta", {}, "part_by_part"),  # no kernel is known for this device
    ],
)  # fmt: skip
def test_the_way_suits_the_case(monkeypatch, device, changes, way):
    used = []
    for name in ("joined", "part_by_part", "flexible"):
        monkeypatch.setattr(models, name, lambda *args, name=name: used.append(name))
    module = Layer()
    changes = dict(changes)
    module.is_last_layer = changes.pop("last", False)
    layout = Packed(TWO_QUESTIONS, scored=torch.tensor([3]))
    attention_of(
        module, *(x.to(device) for x in draw(17)), layout, **{"dropout": 0.0, "scaling": None, "flex": False} | changes
    )
    assert used == [way]


def test_autocast_computes_in_its_own_format():
    """Float32 weights with `bf16: true`: rotated queries and keys are float32, values are not, and so is what is cached."""
    query, key, value = draw(8, torch.float32)
    value = value.bfloat16()
    past = [(key[0, :, :3], value[0, :, :3])]
    layout = Packed((Part(0, 4), Part(4, 5)), (past, None))
    now = [x[:, :, 3:] for x in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_of(Layer(), *now, layout, 0.0, SIZE**-0.5, flex=False)
    exact = Packed(layout.parts, ([tuple(x.double() for x in past[0])], None))
    expected = reference(*(x.double() for x in now), exact, exact.before(0)).bfloat16()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_any_other_mask_is_left_to_sdpa(ready):
    query, key, value = draw(6)
    found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(), query, key, value, None, scaling=SIZE**-0.5)
    torch.testing.assert_close(found, alone(query, key, value))
    expected, _ = sdpa_attention_forward(Layer(), query, key, value, None, scaling=SIZE**-0.5)
    assert torch.equal(found, expected)


def test_models_that_cannot_are_named(random_tiny):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    model.config.get_text_config().layer_types = ["sliding_attention"] * 4
    with pytest.raises(ValueError, match="sliding window"):
        use_packed_attention(model)


def test_a_mask_that_lost_its_layout_is_no_mask(ready):
    """As when it is copied to another device: attention refuses it, so that no rollout sees another."""
    tensors = draw(6)
    copied = Packed((Part(0, 3), Part(3, 6))).mask(PLAIN).clone()
    with pytest.raises(RuntimeError, match="mask"):
        ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(), *tensors, copied, scaling=SIZE**-0.5)


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
