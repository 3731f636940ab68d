"""Accelerate splits weights only over GPUs: here it is told that the processes on CPU have some."""

import os

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def allow_sharding():
    """From now on an accelerator with a plugin for FSDP or DeepSpeed splits weights over processes on CPU."""
    begin = AcceleratorState.__init__

    def told(self, mixed_precision=None, cpu=False, **plugins):
        sharded = plugins.get("fsdp_plugin") or plugins.get("deepspeed_plugin")
        if sharded:
            PartialState(cpu=True)
            os.environ.pop("ACCELERATE_USE_CPU", None)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, mixed_precision, cpu and not sharded, **plugins)

    AcceleratorState.__init__ = told
