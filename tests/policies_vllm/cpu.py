"""What vLLM needs on a CPU. Its default block of 128 tokens would hide prefix caching on short prompts."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 2048,
    "max_num_seqs": 8,
    "seed": 0,
}


@contextmanager
def served(model, *words, cores=None):
    """A vLLM server of this model on loopback: its address. `cores`: those that it may use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "2048",
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--enable-scale-out", *words,
    ]  # fmt: skip
    env = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        pinned = ["taskset", "-c", cores] if cores else []
        process = subprocess.Popen([*pinned, *command], stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(360):
                try:
                    urllib.request.urlopen(url + "/health", timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        log.seek(0)
                        raise RuntimeError(log.read()[-3000:]) from None
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def push_by_file(setattr=setattr):
    """TRL's client writes weights to a file for a server that was started with `--weight-transfer-config '{"backend": "file"}'`.

    TRL's own way needs NCCL on both sides.
    """
    from safetensors.torch import save_file
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(client, device=0):
        client._post(f"{client.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def update_named_params(client, metadata, named_params):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.safetensors"
            save_file({name: weight.detach().clone().contiguous() for name, weight in named_params}, path)
            client._start_weight_update()
            client._post(f"{client.base_url}/update_weights", json={"update_info": {"path": str(path)}})
            client._finish_weight_update()

    setattr(VLLMClient, "init_communicator", init_communicator)
    setattr(VLLMClient, "update_named_params", update_named_params)
