"""Data sets from folders of pictures, one folder per class."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from engines.published.preprocess import Preprocess
from training.data.dataset import DataSet
from training.data.images import Images, Sample, from_files
from training.errors import DataError

HELD_OUT = ("val", "valid", "validation", "test", "held_out")


def folder(root: Path, reserved: Collection[str]) -> DataSet:
    """Load a folder per class, or a folder `train` beside one of val, valid, validation, test, held_out with such.

    Without that pair, about a tenth of each class, at least one picture, is held out by a hash of each picture's name:
    adding or removing a picture moves no other. Pictures that cannot be decoded are listed on stderr and left out.
    Raises DataError for an empty class, for a class in one half only, and for a folder named as a data set in
    `reserved`.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    name = re.sub("[^a-z0-9]+", "_", root.resolve().name.lower()).strip("_")[:40]
    if not name or name in reserved:
        raise DataError(f"{root}: the folder's name becomes the data set's; rename it to letters that no data set has")
    halves = [root / name for name in HELD_OUT if (root / name).is_dir()]
    if (root / "train").is_dir() and halves:
        split = f"folders train and {halves[0].name}"
        labels, train = decodable(root / "train")
        held_out_labels, held_out = decodable(halves[0])
        if labels != held_out_labels:
            different = ", ".join(sorted({*labels} ^ {*held_out_labels}))
            raise DataError(f"{root}: {different} in one of train, {halves[0].name} only")
    elif (root / "train").is_dir():
        raise DataError(f"{root} has a folder train, and none of {', '.join(HELD_OUT)}")
    else:
        labels, samples = decodable(root)
        held_out, train = split_by_name(root, labels, samples)
        names = "".join(str(Path(path).relative_to(root)) for path, _ in held_out)
        split = f"about a tenth of each class held out, by name: {hashlib.sha256(names.encode()).hexdigest()[:8]}"
    mean, std = statistics(from_files(train))
    return DataSet(
        name=name,
        spec=f"folder:{root}",
        split=split,
        labels=labels,
        edge=None,
        mean=mean,
        std=std,
        fill=round(255 * float(np.mean(mean))),
        train=from_files(train),
        held_out=from_files(held_out),
    )


def split_by_name(root: Path, labels: tuple[str, ...], samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Split samples into held-out and training ones by a hash of each name: a tenth, at least one of each class.

    Raises DataError if a class has a single picture.
    """

    def position(path: str) -> float:  # 0 to 1, uniform over names
        name = str(Path(path).relative_to(root))
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

    held_out: list[Sample] = []
    for target, label in enumerate(labels):
        ordered = sorted((sample for sample in samples if sample[1] == target), key=lambda sample: position(sample[0]))
        if len(ordered) == 1:
            raise DataError(f"{root}: class {label} has a single picture; two are needed, one of them to hold out")
        share = sum(position(path) < 0.1 for path, _ in ordered)
        held_out += ordered[: min(max(1, share), len(ordered) - 1)]
    chosen = set(held_out)
    return sorted(chosen), [sample for sample in samples if sample not in chosen]


def decodable(root: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """Return the class names and every picture that can be decoded; list the others on stderr.

    Raises DataError if there is no class, or a class without such a picture.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    labels = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    samples = [
        (str(path), target)
        for target, label in enumerate(labels)
        for path in sorted((root / label).rglob("*"))
        if has_file_allowed_extension(path.name, IMG_EXTENSIONS) and path.is_file()
    ]
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(decoding_error, (path for path, _ in samples)))
    for (path, _), problem in zip(samples, problems, strict=True):
        if problem:
            print(f"skipped {path}: {problem}", file=sys.stderr)
    good = [sample for sample, problem in zip(samples, problems, strict=True) if not problem]
    empty = [label for target, label in enumerate(labels) if target not in {target for _, target in good}]
    if empty or not labels:
        raise DataError(f"{root}: no picture in {', '.join(empty)}" if labels else f"{root} has no folder per class")
    return tuple(labels), good


def decoding_error(path: str) -> str | None:
    """Return the reason why a picture cannot be decoded, or None if it can."""
    try:
        with Image.open(path) as picture:
            # Decoding a JPEG at an eighth of its size finds the same errors in less time.
            picture.draft("RGB", (1, 1))
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def statistics(images: Images, sample: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, 0 to 1, over the central 224 x 224 of at most `sample` images."""
    pixels = images.pixels(Preprocess(mode="RGB", resize_edge=256, crop=224), images.evenly(sample))
    values = pixels.reshape(-1, 3) / np.float32(255)
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return tuple(mean.round(4).tolist()), tuple(std.clip(1e-3).round(4).tolist())
