"""Loaded by every Python process of a test that splits weights over processes on CPU: those that a launcher starts may do it."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "startup"))

import offline  # noqa: E402

offline.forbid()

if "TORCHELASTIC_RUN_ID" in os.environ:
    import on_cpu

    on_cpu.allow_sharding()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        on_cpu.start_deepspeed()
