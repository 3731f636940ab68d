"""What all tests share: no network but loopback, one thread, and a checkpoint folder with random weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

HERE = Path(__file__).parent
# What a test starts is watched too: `startup/sitecustomize.py` is loaded by every Python process.
sys.path.append(str(HERE / "startup"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE / "startup")]))

import offline  # noqa: E402

offline.forbid()

# The same examples in every run, so that a failure can be repeated. HYPOTHESIS_PROFILE=random draws new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Same numbers on every machine, and no fight over cores."""
    torch.set_num_threads(1)


def _checkpoint(folder, scale):
    from transformers import GenerationConfig

    from mgpo.tiny.assemble import build_processor
    from mgpo.tiny.model import build
    from mgpo.tiny.tokenizer import special_ids
    from mgpo.tiny.views import BUDGET

    processor = build_processor()
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = build(special_ids(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    budget = f"min_pixels: {BUDGET.min_pixels}\nmax_pixels: {BUDGET.max_pixels}\n"
    (folder / "config.yaml").write_text(budget)  # as a run writes it
    return folder


@pytest.fixture(scope="session")
def random_tiny(tmp_path_factory):
    """Path of an ordinary checkpoint folder: mgpo-tiny's shape with random weights, the same in every run."""
    return _checkpoint(tmp_path_factory.mktemp("random_tiny") / "model", 1.0)


@pytest.fixture(scope="session")
def loud_tiny(tmp_path_factory):
    """As `random_tiny`, with weights large enough that every token and position matters to every logit."""
    return _checkpoint(tmp_path_factory.mktemp("loud_tiny") / "model", 5.0)


@pytest.fixture(scope="session")
def processor(random_tiny):
    from mgpo.policies.loading import load_processor

    return load_processor(str(random_tiny))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Six question rows over small pictures of different shapes."""
    from support import make_rows

    return make_rows(tmp_path_factory.mktemp("pictures"))
