"""One evaluation in several processes, as `accelerate launch` and `torchrun` start them: who asks what, and who waits.

Every process holds the whole policy and asks its share of the batches. They exchange small Python objects over gloo, not
NCCL: nothing here is on a GPU, and a process whose partner has died notices at once.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from mgpo.errors import RunError

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)
"""One process may have to ask much longer than another."""
SEEN_WITHIN = 90.0
"""Seconds after which a network file system must show every machine what another one wrote."""


@dataclass(frozen=True)
class Processes:
    """The processes of an evaluation.

    Attributes:
        rank: which of them this one is, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes what exists once: settings, results files, tables."""
        return self.rank == 0

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, in every process. An error of the main process ends all.

        Raises:
            RunError: the main process has ended.
        """
        made: list[Any] = [make() if self.is_main else None]
        if self.count > 1:
            import torch.distributed as dist

            with _partners_alive():
                dist.broadcast_object_list(made, src=0)
        return made[0]

    def wait(self) -> None:
        """Return once every process has come here.

        Raises:
            RunError: one of them has ended instead.
        """
        if self.count > 1:
            import torch.distributed as dist

            with _partners_alive():
                dist.barrier()

    def see(self, file: Path) -> None:
        """Make sure that this process sees a file that the main process has written.

        Raises:
            ValueError: it does not, because their machines do not share the folder.
        """
        if not appears(file):
            raise ValueError(
                f"Process {self.rank} on {platform.node()} does not see {file}, which the main process has written. All "
                "machines of an evaluation need the same --out: choose a folder on a shared file system."
            )


def appears(file: Path) -> bool:
    """Whether a file that another process has written can be seen, now or within `SEEN_WITHIN`."""
    until = time.monotonic() + SEEN_WITHIN
    while not file.is_file():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that a launcher has started, of which this is one; else this process alone.

    Each takes the GPU of its number on its machine.

    Raises:
        ValueError: a machine has GPUs, but fewer than processes.
    """
    count, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", -1))
    if count == 1 or local < 0:
        yield Processes()
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"Process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Start one "
                "process per GPU (--num_processes counts those of all machines)."
            )
        torch.cuda.set_device(local)
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _partners_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "Another process of this evaluation has ended; what it said is above. Finished batches are kept: start the "
            f"evaluation again. ({error})"
        ) from error
