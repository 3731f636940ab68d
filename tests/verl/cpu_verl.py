"""What verl's main_ppo needs on a CPU. Every process of a run imports it (VERL_USE_EXTERNAL_MODULES); nothing of it is product.

A platform that is the CPU but that Ray counts as a GPU, and a rollout engine: transformers in one Ray actor instead of vLLM.
"""

import contextlib
import os

import ray
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


class Device:
    """`torch.cpu` with the functions that verl asks of `torch.cuda`: they do nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "mem_get_info":
            return lambda *_: (2**30, 2**31)
        return getattr(torch.cpu, name, lambda *_, **__: 0)

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def get_device_name(*_):
        return "CPU"


@PlatformRegistry.register("cpu")
class CPU(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = Device()

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"  # verl passes it to `.to()`, where 0 would be the first GPU

    def device_count(self):
        return 1

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg):
        yield

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None

    def _nothing(self, *_):
        pass

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = _nothing


from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout  # noqa: E402
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput  # noqa: E402

SERVER = "transformers_server"


@ray.remote(num_cpus=0)
class Server:
    """Samples with transformers. One turn at a time: this is about the path, not about speed."""

    def __init__(self, path, seed):
        from transformers import AutoModelForImageTextToText
        from verl.utils.tokenizer import hf_processor

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = hf_processor(path)

    async def generate(
        self,
        prompt_ids,
        sampling_params,
        request_id,
        image_data=None,
        video_data=None,
        mm_processor_kwargs=None,
        priority=0,
    ):
        from transformers import GenerationConfig

        ids, tokenizer, shown = torch.tensor([prompt_ids]), self.processor.tokenizer, {}
        if image_data:
            found = self.processor.image_processor(
                images=image_data, return_tensors="pt", **(mm_processor_kwargs or {})
            )
            shown = {name: found[name] for name in ("pixel_values", "image_grid_thw")}
        sampling = (
            {"do_sample": True, "temperature": 1.0, "top_k": 0}
            if sampling_params["temperature"]
            else {"do_sample": False}
        )
        config = GenerationConfig(
            max_new_tokens=sampling_params["max_tokens"], eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            output_logits=True, return_dict_in_generate=True, **sampling,
        )  # fmt: skip
        kinds = (ids == self.processor.image_token_id).int()
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=kinds,
                generation_config=config,
                **shown,
            )
        said = out.sequences[0, ids.shape[1] :].tolist()
        table = torch.stack(out.logits, 1)[0].log_softmax(-1)
        return TokenOutput(
            token_ids=said, log_probs=[table[i, token].item() for i, token in enumerate(said)], stop_reason="completed",
            extra_fields={"global_steps": 0},
        )  # fmt: skip

    def load(self, weights):
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and all("lm_head" in name for name in missing), (missing[:3], unexpected[:3])

    def nothing(self, *_, **__):
        pass

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = abort_all_requests = resume_generation = (
        nothing
    )
    start_profile = stop_profile = nothing


class Adapter(BaseRollout):
    """In the training process: pushes weights to the server."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, wire_format="named_tensors", **_):
        await ray.get_actor(SERVER).load.remote({name: tensor.detach().float().clone() for name, tensor in weights})


class Replica(RolloutReplica):
    async def launch_servers(self):
        path = self.model_config.path
        self._server_handle = Server.options(name=SERVER).remote(path, 0)
        self._server_address = "127.0.0.1:1"
        self.servers = [self._server_handle]


_ROLLOUT_REGISTRY["transformers", "async"] = "cpu_verl.Adapter"
RolloutReplicaRegistry.register("transformers", lambda: Replica)
os.environ.setdefault(
    "VERL_ENGINE_DEVICE", "cuda"
)  # the engine that verl registers for GPUs; its device is the platform's

_init = torch.distributed.init_process_group


def init_process_group(backend=None, *args, **kwargs):
    """verl asks for gloo on the CPU and for the platform's backend on its device, which here are one."""
    return _init("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = init_process_group
