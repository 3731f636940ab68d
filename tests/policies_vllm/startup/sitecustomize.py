"""Lets torchvision import beside CPU torch in every process of vLLM's tests (`make test-vllm` puts this on PYTHONPATH).

torchvision's one build wants CUDA: without its compiled half, two operators that it describes do not exist. They are declared when
torchvision is first asked for; nothing calls them.
"""

import sys
from importlib.abc import MetaPathFinder


class Declare(MetaPathFinder):
    """Finds nothing: it only notices that torchvision is wanted."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].library = library  # kept: what it declares lives as long as it does
        return None


sys.meta_path.insert(0, Declare())
