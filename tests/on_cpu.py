"""Accelerate splits weights only over GPUs: here it is told that the processes on CPU have some."""

import os
import sys

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def start_deepspeed():
    """DeepSpeed over gloo. It would compile C++ for processes that share memory."""
    import deepspeed

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="gloo")


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
