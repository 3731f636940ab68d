"""Configurations of transformers for the sizes of `mgpo.planning.sizes`."""

from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

CONFIGS = {"Qwen2.5-VL": Qwen2_5_VLConfig, "Qwen3-VL": Qwen3VLConfig, "Qwen3.5": Qwen3_5Config}


def config_of(name, size):
    """The configuration of a model of this size; `name` begins with its family, as in `mgpo.planning.sizes.SIZES`."""
    family = name.rpartition("-")[0]
    head = 256 if family == "Qwen3.5" else 128
    tower, deepest = size.tower, size.tower.depth
    text = {
        "hidden_size": size.hidden, "intermediate_size": size.inner, "num_hidden_layers": size.layers,
        "num_attention_heads": size.queries // head, "num_key_value_heads": size.key_value // head,
        "vocab_size": size.vocabulary, "tie_word_embeddings": size.tied,
    }  # fmt: skip
    vision = {
        "depth": deepest, "hidden_size": tower.hidden, "intermediate_size": tower.inner,
        "num_heads": tower.hidden // 64 if tower.hidden < 1024 else 16, "patch_size": size.patch, "out_hidden_size": size.hidden,
    }  # fmt: skip
    if family != "Qwen2.5-VL":
        text["head_dim"] = head
        vision["num_position_embeddings"] = 2304
    if family == "Qwen3-VL":
        vision["deepstack_visual_indexes"] = [deepest // 4, deepest // 2, deepest - 2][: tower.features - 1]
    if size.linear:
        own = size.linear
        width = own.values // own.heads
        text |= {
            "linear_num_key_heads": own.keys // width, "linear_num_value_heads": own.heads,
            "linear_key_head_dim": width, "linear_value_head_dim": width, "linear_conv_kernel_dim": own.kernel,
        }  # fmt: skip
    return CONFIGS[family](text_config=text, vision_config=vision, tie_word_embeddings=size.tied)
