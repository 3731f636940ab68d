"""Last step of making `mgpo-tiny`: weights, tokenizer, image processor and card into one ordinary checkpoint folder.

python -m mgpo.tiny.assemble --weights /tmp/mgpo-tiny --out src/mgpo/assets/mgpo-tiny
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mgpo.policies.processors import build_without_video
from mgpo.tiny.model import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH, TEMPORAL
from mgpo.tiny.tokenizer import CHAT_TEMPLATE, build_tokenizer
from mgpo.tiny.views import BUDGET

SHARED_WITH_VIDEO = ("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")


def build_processor() -> Any:
    """The processor of `mgpo-tiny`: its tokenizer and Qwen2-VL's image processor at the tiny pixel budget."""
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": BUDGET.min_pixels, "longest_edge": BUDGET.max_pixels},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return build_without_video("qwen2_5_vl", images, build_tokenizer(), CHAT_TEMPLATE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.weights, use_safetensors=True)
    processor = build_processor()
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    video = {name: processor.image_processor.to_dict()[name] for name in SHARED_WITH_VIDEO}
    video["video_processor_type"] = "Qwen2VLVideoProcessor"  # vLLM loads one, though no video is ever shown
    (args.out / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2))
    (args.out / "config.yaml").write_text(
        "# How mgpo-tiny is asked where nothing else is said: it was made with images of 20 to 36 visual tokens.\n"
        f"min_pixels: {BUDGET.min_pixels}\nmax_pixels: {BUDGET.max_pixels}\n"
    )


if __name__ == "__main__":
    main()
