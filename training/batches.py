"""Pixels by the batch, from memory or from worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import Moves, of_pictures
from training.data import Images
from training.input import Input
from training.recipes import Recipe

MEMORY = 2 * 2**30  # bytes of pixels that are kept
PREFETCHED = 2  # batches by each worker


class Batch(NamedTuple):
    """A process's share of a batch: uint8 (N, channels, height, width), (N,); and the size of the whole batch."""

    pixels: Tensor
    targets: Tensor
    whole: int


class Samples(Dataset[Tensor]):
    """Pixels of pictures, decoded in turn; the random changes of each depend on `seed` and its index alone."""

    def __init__(self, images: Images, change: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.images, self.change, self.seed = images, change, seed

    def __getitem__(self, index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + index) % 2**63)
            return self.change(self.images.pictures[index])


class Source:
    """Pixels of `images` by their indices; prepared once if they fit in memory and nothing random is done to them."""

    def __init__(self, images: Images, entry: Input, change: Callable[[Image.Image], Tensor] | None = None) -> None:
        self.images, self.preprocess, self.change = images, entry.preprocess, change
        height, width, channels = entry.preprocess.shape
        self.workers = min(8, len(os.sched_getaffinity(0)))
        self.pixels: Tensor | None = None
        if change is None and len(images) * height * width * channels <= MEMORY:
            self.pixels = torch.from_numpy(images.pixels(entry.preprocess)).permute(0, 3, 1, 2).contiguous()

    @property
    def ahead(self) -> int:
        """How many batches workers have ready before the first is asked for."""
        return 0 if self.pixels is not None else PREFETCHED * self.workers

    def batches(self, indices: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
        """The pixels, uint8 (N, channels, height, width), of each of `indices`."""
        if self.pixels is not None:
            yield from (self.pixels[batch] for batch in indices)
            return
        samples = Samples(self.images, self.change or self._prepared, seed)
        yield from DataLoader(
            samples,
            batch_sampler=[batch.tolist() for batch in indices],
            num_workers=self.workers,
            prefetch_factor=PREFETCHED,
            pin_memory=torch.cuda.is_available(),
        )

    def _prepared(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocess(picture)).permute(2, 0, 1)


class TrainingBatches:
    """What one process of `size` sees of each epoch.

    Order and moves are drawn for all processes alike, and each takes its share: however many there are, together they
    see the same batches.
    """

    def __init__(self, images: Images, recipe: Recipe, entry: Input, seed: int, rank: int, size: int) -> None:
        self.targets = torch.from_numpy(images.targets)
        self.source = Source(images, entry, of_pictures(recipe, entry))
        self.recipe, self.fill, self.seed, self.share = recipe, entry.preprocess.fill, seed, slice(rank, None, size)

    def __len__(self) -> int:
        return max(1, len(self.targets) // self.recipe.batch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Shuffled, in whole batches: the rest is left out, unless there is no more."""
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
    """Pixels and targets of one process's share of the held-out images."""
    indices = [share for share in torch.arange(rank, len(images), size).split(batch) if len(share)]
    targets = torch.from_numpy(images.targets)
    for share, pixels in zip(indices, source.batches(indices, 0), strict=True):
        yield pixels, targets[share]
