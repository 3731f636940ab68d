"""GPUs as a user names them, and the memory that a program finds on them.

    Gpus.read("1x24").gib                            # 22.0: what is left of 24 GB on the smallest card sold as such
    Gpus.read("1x23.6").gib                          # 23.6: any other number is taken as GiB that were measured

This module imports nothing heavy, so that a request that cannot be met is refused at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

USABLE = {16: 14.5, 24: 22.0, 40: 39.3, 48: 44.3, 80: 79.0}
"""GiB on the smallest card that is sold with so many GB, as PyTorch states the "total capacity" in its error messages: T4 14.56, A10G and
L4 22.03, A100 39.39, L40 and L40S 44.35, H100 79.10. Driver and error correction take the rest. Of other sizes, all is counted."""


@dataclass(frozen=True)
class Gpus:
    """How many GPUs, and the memory of each.

    Attributes:
        sold: as the user wrote it: GB as sold if `USABLE` lists it, else GiB.
    """

    count: int
    sold: float

    @property
    def gib(self) -> float:
        """GiB on each that a program can use, before anything runs on it."""
        return USABLE.get(self.sold, self.sold)

    def __str__(self) -> str:
        many = f"{self.count} GPU{'' if self.count == 1 else 's'}"
        if self.gib == self.sold:
            return f"{many} of {self.gib:g} GiB"
        return f"{many} of {self.sold:g} GB ({self.gib:g} GiB usable)"

    @property
    def written(self) -> str:
        """As `read` takes it."""
        return f"{self.count}x{self.sold:g}"

    def note(self) -> list[str]:
        """A line on what was counted, where that is less than what the card is sold as."""
        if self.gib == self.sold:
            return []
        return [
            f"note: a card sold as {self.sold:g} GB is counted as {self.gib:g} GiB, as on the smallest of its kind. If yours has more "
            f"(torch.cuda.mem_get_info), write its GiB instead, such as --gpus {self.count}x23.6"
        ]

    @classmethod
    def read(cls, text: str) -> Gpus:
        """From e.g. `1x24` or `8x80`.

        Raises:
            ValueError: it is not of this form.
        """
        found = re.fullmatch(r"([1-9]\d*)x(\d+(?:\.\d+)?)", text.strip().lower())
        if found is None or not float(found.group(2)):
            raise ValueError(f"--gpus {text}: write the number of GPUs and the GB of each, such as 1x24 or 8x80.")
        return cls(int(found.group(1)), float(found.group(2)))
