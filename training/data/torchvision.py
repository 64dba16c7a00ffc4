"""Data sets that torchvision reads: MNIST, Fashion-MNIST and CIFAR, which it also downloads, and ImageNet."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.dataset import DataSet
from training.data.images import Arrays, Images, Sample, from_files
from training.errors import DataError


@dataclass(frozen=True)
class InMemory:
    """Data set of torchvision's that fits in memory, with the statistics of its training images."""

    class_name: str  # in torchvision.datasets
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: int
    light_on_dark: bool = False  # not Fashion-MNIST, whose clothes reach the border

    @property
    def library(self) -> Callable[..., Any]:
        """Data set's class in torchvision, which is imported only now because that takes a second."""
        from torchvision import datasets

        return getattr(datasets, self.class_name)  # type: ignore[no-any-return]

    def load(self, root: Path, spec: str) -> DataSet:
        """Load both halves from the folder `root`. Raises DataError with the download command if they are missing."""
        train, test = (self.images(root, spec, train=part) for part in (True, False))
        name = spec.partition(":")[0]
        return DataSet(
            name=name,
            spec=f"{name}:{root}",
            split=f"the data set's own: {len(train[0])} to train on, {len(test[0])} to test",
            labels=tuple(re.sub(r"^\d - \w+$", lambda digit: digit[0][0], label) for label in train[1]),
            edge=train[0].pictures[0].width,
            mean=self.mean,
            std=self.std,
            fill=self.fill,
            light_on_dark=self.light_on_dark,
            train=train[0],
            held_out=test[0],
        )

    def images(self, root: Path, spec: str, *, train: bool) -> tuple[Images, list[str]]:
        """Load one half. Returns its images and the class names; raises DataError if its files are missing."""
        try:
            part = self.library(root, train=train, download=False)
        except RuntimeError as error:
            raise DataError(
                f"{root} has no {spec.partition(':')[0]}; get it: python -m training download {spec}"
            ) from error
        array = np.asarray(part.data, dtype=np.uint8)
        return Images(pictures=Arrays(array), targets=np.asarray(part.targets, dtype=np.int64)), part.classes

    def download(self, root: Path) -> None:
        """Download both halves into the folder `root`; torchvision verifies their checksums."""
        for train in (True, False):
            self.library(root, train=train, download=True)


IN_MEMORY = {
    "mnist": InMemory("MNIST", (0.1307,), (0.3081,), 0, light_on_dark=True),
    "fashion_mnist": InMemory("FashionMNIST", (0.2860,), (0.3530,), 0),
    "cifar10": InMemory("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 120),
    "cifar100": InMemory("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 124),
}


def imagenet(root: Path) -> DataSet:
    """Load ILSVRC 2012 as torchvision unpacks it: 1,281,167 training images; the 50,000 for validation are held out.

    `train` is empty if only the validation images are there. Raises DataError, which names the archives to put into
    `root`, if the validation images are missing; and if the training images are damaged or have other classes.
    """
    from torchvision import datasets

    try:
        held_out = datasets.ImageNet(root, "val")
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"ImageNet is not in {root}: {error}; request it at https://image-net.org/download.php and put "
            f"ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_val.tar and, to train, ILSVRC2012_img_train.tar into {root}"
        ) from error
    samples: list[Sample] = []
    if (root / "train").exists() or (root / "ILSVRC2012_img_train.tar").exists():
        try:
            train = datasets.ImageNet(root, "train")
        except (RuntimeError, FileNotFoundError) as error:
            raise DataError(f"the training images of ImageNet in {root} cannot be used: {error}") from error
        if train.wnids != held_out.wnids:
            raise DataError(f"{root}: the folders of train and val are not of the same classes")
        samples = train.samples
    return DataSet(
        name="imagenet",
        spec=f"imagenet:{root}",
        split="the data set's own: validation images held out",
        labels=tuple(names[0] for names in held_out.classes),
        edge=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        fill=116,
        train=from_files(samples),
        held_out=from_files(held_out.samples),
    )
