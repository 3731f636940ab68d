#!/bin/bash
# Train without accelerate's launcher: a copy of the model on every GPU (DDP). On each machine:
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 examples/cluster/torchrun.sh --config recipes/qwen2_5_vl_7b_lora.yaml
#
# On one machine, without any of the variables. NODE is the machine's number, from 0; HEAD is the address of machine 0.
# Weights that are split (fsdp2, zero3) need accelerate's configuration: mgpo train --accelerate_config.
set -euo pipefail

# PyTorch would kill processes 30 seconds after a SIGTERM: less than a step and its checkpoint may take.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-3600}"
exec torchrun --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
    --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29500}" -m mgpo train "$@"
