"""ImageNet's classes: id in WordNet and superclass of each, read from `imagenet_classes.csv`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.published.manifest import Manifest

IMAGENET = "imagenet"  # the data set whose classes have one order and several spellings
CLASSES = Path(__file__).with_name("imagenet_classes.csv")  # its comments say how the superclasses were found
COUNT = 1000


class ImageNetClasses(NamedTuple):
    """Ids in WordNet of ImageNet's classes, and their superclasses, as indices into the sorted names."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    superclasses: NDArray[np.intp]

    def superclass(self, index: int) -> str:
        """Return the superclass of a class."""
        return self.names[self.superclasses.item(index)]

    def sums(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the sums of the classes' values by superclass, (superclasses,)."""
        sums = np.bincount(self.superclasses, values, len(self.names))
        return sums.astype(np.float64, copy=False)  # as they are, though NumPy's types say integers


@cache
def read() -> ImageNetClasses:
    """Read the classes from their file, once."""
    lines = [line for line in CLASSES.read_text().splitlines() if not line.startswith("#")]
    wnids, superclasses = zip(*(line.split(",") for line in lines[1:]), strict=True)
    names, indices = np.unique(superclasses, return_inverse=True)
    return ImageNetClasses(wnids, tuple(names.tolist()), indices)


def classes_of(manifest: Manifest) -> ImageNetClasses | None:
    """Return ImageNet's classes if a model has them, else None."""
    return read() if manifest.dataset == IMAGENET and len(manifest.labels) == COUNT else None
