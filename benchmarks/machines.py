"""What GPUs can do by their data sheets, and clusters of them as a user names them.

    Cluster.read("4x8xH100").gpus                     # 32

Source: NVIDIA's data sheets of each product (nvidia.com): "tensor core" rows, halved where a sheet states them with sparsity, memory
bandwidth, and NVLink or PCIe, of which one direction is counted. Networks between machines are those of NVIDIA's own machines (DGX A100:
200 Gb/s for each GPU; DGX H100 and later: 400 Gb/s), and 25 Gb/s for each GPU for cards without NVLink, as clouds rent them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PEAK = (
    ("B200", 2250e12), ("H200", 989e12), ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("A100", 312e12),
    ("L40S", 362e12), ("L20", 119.5e12), ("L4", 121e12), ("A10", 125e12), ("RTX 4090", 165e12), ("RTX 3090", 71e12),
)  # fmt: skip
"""Dense bfloat16 operations per second with float32 sums, by a part of the name that CUDA gives; the first match counts."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        operations: bfloat16 operations per second.
        bandwidth: bytes per second of its memory.
        gb: memory as sold.
        link: bytes per second to the others of its machine, one direction.
        network: bytes per second to other machines, for each GPU.
    """

    operations: float
    bandwidth: float
    gb: float
    link: float
    network: float


def _gpu(name: str, *rest: float) -> Gpu:
    return Gpu(next(limit for part, limit in PEAK if part in name), *rest)


GPUS = {
    "H200": _gpu("H200", 4.8e12, 141, 450e9, 50e9),
    "H100": _gpu("H100", 3.35e12, 80, 450e9, 50e9),
    "A100": _gpu("A100", 2.039e12, 80, 300e9, 25e9),
    "L40S": _gpu("L40S", 0.864e12, 48, 32e9, 3.1e9),
    "L20": _gpu("L20", 0.864e12, 48, 32e9, 3.1e9),
    "L4": _gpu("L4", 0.3e12, 24, 32e9, 3.1e9),
    "A10": _gpu("A10", 0.6e12, 24, 32e9, 3.1e9),
}


@dataclass(frozen=True)
class Cluster:
    """Machines that are equal, each with equal GPUs."""

    nodes: int
    gpus_per_node: int
    name: str

    @property
    def gpus(self) -> int:
        """Of all machines."""
        return self.nodes * self.gpus_per_node

    @property
    def gpu(self) -> Gpu:
        """One of them."""
        return GPUS[self.name]

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus_per_node}x{self.name}"

    @classmethod
    def read(cls, text: str) -> Cluster:
        """From e.g. `4x8xH100` (machines, GPUs of each, name) or `8xH100`, which is one machine.

        Raises:
            ValueError: it is not of this form, or the GPU is not known.
        """
        found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x(\w+)", text.strip())
        if found is None or found.group(3) not in GPUS:
            raise ValueError(
                f"--cluster {text}: write machines x GPUs x name, such as 4x8xH100. Known GPUs: {', '.join(GPUS)}."
            )
        return cls(int(found.group(1) or 1), int(found.group(2)), found.group(3))
