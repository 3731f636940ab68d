"""A vLLM server on a CPU that takes weights from a file, for these tests alone: vLLM's own engines need CUDA.

vLLM finds it as a plugin (`mgpo_test_weights-0.dist-info`) and uses it with `--weight-transfer-config '{"backend": "file"}'`.
"""

from dataclasses import dataclass


def register():
    import torch
    import vllm.model_executor.layers.utils as layers
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

    def plain_linear(layer, remove_weight):  # vLLM's CPU build packs weights, which then cannot be updated in place
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain_linear

    @dataclass
    class Nothing(WeightTransferInitInfo):
        pass

    @dataclass
    class File(WeightTransferUpdateInfo):
        path: str

    class FromFile(WeightTransferEngine):
        init_info_cls, update_info_cls = Nothing, File

        def init_transfer_engine(self, init_info):
            pass

        def start_weight_update(self):
            pass

        def update_weights(self, update_info):
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info):
            self.model.load_weights(load_file(update_info.path).items())

        def finish_weight_update(self):
            pass

        def shutdown(self):
            pass

    if "file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("file", FromFile)
