"""Batches of pixels, from memory or from worker processes."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import Moves, picture_augmentation
from training.data import Images
from training.input import Input
from training.recipes import Recipe

MEMORY = 2 * 2**30  # bytes of pixels, at most, that are kept in memory
OF_FREE = 0.25  # share of a GPU's free memory, and of the machine's, that pixels take at most
CPU = torch.device("cpu")
PREFETCHED = 2  # batches that each worker has ready


class Batch(NamedTuple):
    """Share of a batch in one process: pixels, uint8 (N, channels, height, width), and targets, (N,).

    `whole` is the size of the whole batch.
    """

    pixels: Tensor
    targets: Tensor
    whole: int


class Samples(Dataset[Tensor]):
    """Pixels of pictures, decoded on access; the random changes depend on `seed` and the picture's index alone."""

    def __init__(self, images: Images, change: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.images, self.change, self.seed = images, change, seed

    def __getitem__(self, index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + index) % 2**63)
            return self.change(self.images.pictures[index])


class Source:
    """Pixels of `images` by index, prepared once if they fit in memory and no picture is changed at random.

    Prepared pixels are on a GPU if they fit there, so that a step copies none.
    """

    def __init__(
        self,
        images: Images,
        network_input: Input,
        change: Callable[[Image.Image], Tensor] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.images, self.preprocess, self.change = images, network_input.preprocess, change
        height, width, channels = network_input.preprocess.shape
        self.pixels: Tensor | None = None
        size = len(images) * height * width * channels
        on_device = fits(device, size)
        if change is None and (on_device or size <= MEMORY):
            pixels = torch.from_numpy(images.pixels(network_input.preprocess)).permute(0, 3, 1, 2).contiguous()
            self.pixels = pixels.to(device) if on_device else pixels
        most = 8 if device.type == "cpu" else 16
        self.workers = min(most, len(os.sched_getaffinity(0))) if self.pixels is None and can_share() else 0

    @property
    def ahead(self) -> int:
        """Number of batches that workers prepare before the first is consumed."""
        return PREFETCHED * self.workers

    def batches(self, indices: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
        """Yield the pixels of each of `indices`, uint8 (N, channels, height, width)."""
        if self.pixels is not None:
            device = self.pixels.device
            yield from (self.pixels[batch.to(device, non_blocking=True)] for batch in indices)
            return
        samples = Samples(self.images, self.change or self._prepared, seed)
        loader: DataLoader[Tensor] = DataLoader(
            samples,
            batch_sampler=[batch.tolist() for batch in indices],
            num_workers=self.workers,
            prefetch_factor=PREFETCHED if self.workers else None,
            collate_fn=array,
        )
        for batch in map(torch.as_tensor, loader):
            yield batch.pin_memory() if torch.cuda.is_available() else batch

    def _prepared(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocess(picture)).permute(2, 0, 1)


def fits(device: torch.device, size: int) -> bool:
    """Return True if that many bytes of pixels may be kept on a GPU; they pass through the machine's memory."""
    if device.type == "cpu":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun on this machine
    return size <= OF_FREE * min(free, psutil.virtual_memory().available / processes)


def array(pixels: list[Tensor]) -> NDArray[np.uint8]:
    """Return one batch, (N, channels, height, width), as an array.

    An array goes to another process through a pipe, as fast as a tensor through shared memory, of which a container has
    64 MB.
    """
    stacked: NDArray[np.uint8] = torch.stack(pixels).numpy()
    return stacked


@functools.cache
def can_share() -> bool:
    """Return True if processes can share a lock; else say, once, that pictures are decoded without more processes."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        slower = "pictures are decoded in the process that trains, which is slower"
        print(f"warning: /dev/shm cannot be used: {error.strerror}; {slower}", file=sys.stderr)
        return False
    return True


class TrainingBatches:
    """Training batches of one process of `size`, epoch by epoch.

    Every process draws the same order and the same shifts and flips, then takes its share, so the batches do not depend
    on the number of processes.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        network_input: Input,
        seed: int,
        rank: int,
        size: int,
        device: torch.device = CPU,
    ) -> None:
        self.targets = torch.from_numpy(images.targets)
        self.source = Source(images, network_input, picture_augmentation(recipe, network_input), device)
        self.recipe, self.fill, self.seed, self.share = (
            recipe,
            network_input.preprocess.fill,
            seed,
            slice(rank, None, size),
        )

    def __len__(self) -> int:
        return max(1, len(self.targets) // self.recipe.batch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the shuffled batches of epoch `number`; an incomplete batch is dropped unless it is the only one."""
        random = torch.Generator().manual_seed(self.seed * 100_003 + number)
        whole = torch.randperm(len(self.targets), generator=random).split(self.recipe.batch)[: len(self)]
        shares = [batch[self.share] for batch in whole]
        for batch, share, pixels in zip(
            whole, shares, self.source.batches(shares, self.seed * 100_003 + number), strict=True
        ):
            moves = Moves(self.recipe, len(batch), random)
            yield Batch(moves(pixels, self.share, self.fill), self.targets[share], len(batch))


def held_out_batches(
    images: Images, source: Source, batch: int, rank: int, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels and targets of one process's share of the held-out images, in batches."""
    indices = [share for share in torch.arange(rank, len(images), size).split(batch) if len(share)]
    targets = torch.from_numpy(images.targets)
    for share, pixels in zip(indices, source.batches(indices, 0), strict=True):
        yield pixels, targets[share]
