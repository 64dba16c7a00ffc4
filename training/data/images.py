"""Pictures with their classes, in memory or on disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.published.essentials import essentials
from engines.published.picture import open_picture, read_picture, upright
from engines.published.preprocess import Preprocess
from training.errors import DataError

Sample = tuple[str, int]  # path, class index


class PictureError(DataError):
    """Error of a picture that can no longer be read, in the middle of a training too: names the file."""

    def __init__(self, message: str) -> None:
        # A worker process of torch's passes an error on with its traceback before the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


def legible(name: object) -> str:
    r"""Return a file's name or path with each byte that is not UTF-8 as `\xfc`, to be printed and stored."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Arrays:
    """Pictures in memory: uint8, (N, height, width) in grey or (N, height, width, 3) in colour."""

    array: NDArray[np.uint8]

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def name(self, index: int) -> str:
        """Return the picture's number as text."""
        return f"number {index}"


@dataclass(frozen=True)
class Files:
    """Pictures on disk, decoded on access, upright, as the server decodes them. Raises PictureError."""

    paths: tuple[Path, ...]

    def __getitem__(self, index: int) -> Image.Image:
        try:
            return read_picture(self.paths[index])
        except Exception as error:  # Pillow raises nearly anything, and the file may be gone
            raise PictureError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """Return the path of a picture."""
        return legible(self.paths[index])


class Place(NamedTuple):
    """Place of a picture in a larger file: where its bytes begin, and how many there are."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes of the picture."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Members:
    """Pictures in larger files, such as tar, decoded on access as `Files` are. Raises PictureError."""

    places: tuple[Place, ...]

    def __getitem__(self, index: int) -> Image.Image:
        try:
            return upright(open_picture(essentials(self.places[index].read())))
        except Exception as error:  # Pillow raises nearly anything, and the file may be gone
            raise PictureError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """Return the file of a picture, and where it begins there."""
        return f"{legible(self.places[index].file)}, at byte {self.places[index].offset}"


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures and their class indices, (N,)."""

    pictures: Arrays | Files | Members
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def pixels(self, preprocess: Preprocess, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return a network's input for the pictures at `indices`, or for all: (N, height, width, channels)."""
        selected = range(len(self)) if indices is None else indices.tolist()
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda index: preprocess(self.pictures[index]), selected)))

    def evenly(self, count: int) -> NDArray[np.int64]:
        """Return at most `count` indices, evenly spaced from the first picture to the last."""
        return np.linspace(0, len(self) - 1, min(count, len(self)), dtype=np.int64)


def from_files(samples: Sequence[Sample]) -> Images:
    """Return the images of (path, class index) pairs; each file is opened on access."""
    targets = np.array([target for _, target in samples], dtype=np.int64)
    return Images(pictures=Files(tuple(Path(path) for path, _ in samples)), targets=targets)


def sample_pixels(preprocess: Preprocess) -> NDArray[np.uint8]:
    """Return sixteen crops of scikit-learn's two photos as a network's input, (16, height, width, channels)."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(photo) for photo in load_sample_images().images]
    crops = [
        picture.crop((left, top, left + 320, top + 210))
        for picture in pictures
        for top in (0, 110, 217)
        for left in (0, 160, 320)
    ]
    return np.stack([preprocess(crop) for crop in crops[:16]])
