"""Processes that train one network: several, as torchrun starts them, or one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.errors import TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Rank and device of this process, and the number of processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the process that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, and return the tensor."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process, and return its value in all. A TrainingError is raised in all."""
        if self.size == 1:
            return make()
        made: list[T | TrainingError | None] = [None]
        if self.first:
            try:
                made = [make()]
            except TrainingError as error:
                made = [error]
        dist.broadcast_object_list(made, 0, device=self.device)
        if isinstance(made[0], TrainingError):
            raise made[0]
        return cast(T, made[0])

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            dist.barrier()

    def share_buffers(self, net: nn.Module) -> None:
        """Copy the batch-norm statistics of the first process to all; each process gathers its own in training."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the process group that torchrun's environment describes: NCCL on GPUs, gloo on CPUs."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()
