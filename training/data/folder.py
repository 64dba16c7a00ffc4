"""Data sets from folders of pictures, one folder per class."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from engines.published.picture import read_picture
from engines.published.preprocess import Preprocess, to_mode
from training.data.dataset import DataSet
from training.data.images import Images, Sample, from_files, legible
from training.errors import DataError

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing", "held_out", "dev", "eval", "evaluation", "holdout")
# Folders that macOS, Synology, Windows, Linux and Python add; hidden ones are passed over too.
PASSED_OVER = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
}
MORE_ENDINGS = (".gif", ".jfif", ".jpe", ".jp2", ".avif", ".pbm", ".pnm")  # beside those that torchvision knows
CLASSES_SEARCHED = 200  # folders in which classes are looked for, to name the right one
FLAT = 0.01  # standard deviation, 0 to 1, of pixels that are nearly alike: two or three of 255 steps


def folder(root: Path, reserved: Collection[str]) -> DataSet:
    """Load a folder per class, or a folder of TRAIN beside one of HELD_OUT with such, in small or capital letters.

    Without that pair, about a tenth of each class, at least one picture, is held out by a hash of each picture's name:
    adding or removing a picture moves no other. Pictures that cannot be decoded are listed on stderr and left out.
    Raises DataError for fewer than two classes, an empty class, a class in one half only, and for a folder named as a
    data set in `reserved`.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {legible(root)}")
    if legible(root) != str(root):  # the checkpoint must name the folder, in JSON
        raise DataError(f"{legible(root)}: the folder's path is not UTF-8; rename it")
    name = re.sub("[^a-z0-9]+", "_", root.resolve().name.lower()).strip("_")[:40]
    if not name or name in reserved:
        raise DataError(f"{root}: the folder's name becomes the data set's; rename it to letters that no data set has")
    train_half, held_out_half = (half(root, names) for names in (TRAIN, HELD_OUT))
    if train_half and held_out_half:
        split = f"folders {train_half.name} and {held_out_half.name}"
        labels, train = decodable(train_half)
        held_out_labels, held_out = decodable(held_out_half)
        if labels != held_out_labels:
            different = ", ".join(sorted({*labels} ^ {*held_out_labels}))
            raise DataError(f"{root}: {different} in one of {train_half.name}, {held_out_half.name} only")
    elif train_half:
        missing = f"{root} has a folder {train_half.name}, and none of {', '.join(HELD_OUT)}"
        raise DataError(f"{missing}{elsewhere(root)}")
    else:
        labels, samples = decodable(root)
        held_out, train = split_by_name(root, labels, samples)
        names = b"".join(relative(root, path) for path, _ in held_out)
        split = f"about a tenth of each class held out, by name: {hashlib.sha256(names).hexdigest()[:8]}"
    mean, std = statistics(from_files(train))
    if max(std) < FLAT:
        print(
            f"warning: {root}: the pixels of all pictures are nearly the same, {mean}: is that right?", file=sys.stderr
        )
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


def half(root: Path, names: Collection[str]) -> Path | None:
    """Return the folder in `root` that has the first of `names`, in any case, and folders inside; else None."""
    found = {path.name.lower(): path for path in subfolders(root) if subfolders(path)}
    return next((found[name] for name in names if name in found), None)


def relative(root: Path, path: str) -> bytes:
    """Return a path below `root` as the bytes of its name, as the file system has them."""
    return str(Path(path).relative_to(root)).encode("utf-8", "surrogateescape")


def split_by_name(root: Path, labels: tuple[str, ...], samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Split samples into held-out and training ones by a hash of each name: a tenth, at least one of each class.

    Raises DataError if a class has a single picture.
    """

    def position(path: str) -> float:  # 0 to 1, uniform over names
        return int.from_bytes(hashlib.sha256(relative(root, path)).digest()[:8]) / 2**64

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

    Raises DataError if there are fewer than two classes, or a class without such a picture.
    """
    classes = subfolders(root)
    files = [list(visible_files(folder)) for folder in classes]
    samples = [(str(path), target) for target, paths in enumerate(files) for path in paths if is_picture(path)]
    labels = tuple(legible(folder.name) for folder in classes)
    if len(classes) < 2:
        found = f"one folder, {labels[0]}, with {len(samples)} pictures" if classes else "no folder"
        raise DataError(f"{root} has no folder per class: there is {found}{elsewhere(root)}")
    if twins := alike(classes):
        raise DataError(
            f"{root}: {', '.join(twins)} hold the same folders, so they are no classes; if they are halves, name them "
            "train and val; else name the one to take, --data folder:PATH"
        )
    for label, paths in zip(labels, files, strict=True):
        report_left_out(label, paths)
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(decoding_error, (path for path, _ in samples)))
    for (path, _), problem in zip(samples, problems, strict=True):
        if problem:
            print(f"skipped {legible(path)}: {problem}", file=sys.stderr)
    good = [sample for sample, problem in zip(samples, problems, strict=True) if not problem]
    having = {target for _, target in good}
    if empty := [label for target, label in enumerate(labels) if target not in having]:
        raise DataError(f"{root}: no picture in {', '.join(empty)}{elsewhere(root)}")
    return labels, good


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name, without hidden ones and those that systems add."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not passed_over(path.name))


def alike(classes: list[Path]) -> list[str]:
    """Return the names of folders without pictures of their own that hold folders of the same names, two at least."""
    inner = {
        folder.name: frozenset(path.name for path in subfolders(folder))
        for folder in classes
        if not any(is_picture(path) and path.is_file() for path in folder.iterdir())
    }
    names = list(inner.values())
    return [legible(name) for name, folders in inner.items() if len(folders) > 1 and names.count(folders) > 1]


def report_left_out(label: str, files: list[Path]) -> None:
    """Print how many files of a class, by ending, are no pictures that training reads."""
    rest = Counter(path.suffix.lower() or path.name for path in files if not is_picture(path))
    if rest:
        counted = ", ".join(f"{count} of {legible(ending)}" for ending, count in rest.most_common(5))
        print(f"left out of {label}, by ending: {counted}", file=sys.stderr)


def passed_over(name: str) -> bool:
    """Report whether a file or folder is hidden or one that systems add; macOS adds `._x.jpg` beside `x.jpg`."""
    return name.startswith(".") or name in PASSED_OVER


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, by name, without those that are hidden or that systems add."""
    for path in sorted(folder.rglob("*")):
        if not any(map(passed_over, path.relative_to(folder).parts)) and path.is_file():
            yield path


def is_picture(path: Path) -> bool:
    """Return True if a file's name ends as a picture's."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    ends: bool = has_file_allowed_extension(path.name, (*IMG_EXTENSIONS, *MORE_ENDINGS))
    return ends


def elsewhere(root: Path) -> str:
    """Return a hint at the nearest folder below `root` that has a folder per class, or what the folders must be."""
    waiting = subfolders(root)
    for folder in islice(waiting, CLASSES_SEARCHED):  # the loop goes on with what it adds
        inner = subfolders(folder)
        if sum(any(map(is_picture, visible_files(path))) for path in inner) > 1:
            return f"; {legible(folder)} has one per class: --data folder:{legible(folder)}"
        waiting += inner
    return "; put the pictures of each class, two classes at least, into a folder of its own"


def decoding_error(path: str) -> str | None:
    """Return the reason why a picture cannot be decoded, or None if it can."""
    try:
        to_mode(read_picture(Path(path), small=True), "RGB", 0)
    except Exception as error:  # Pillow raises nearly anything on a broken file
        return str(error) or type(error).__name__
    return None


def statistics(images: Images, sample: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, 0 to 1, over the central 224 x 224 of at most `sample` images."""
    pixels = images.pixels(Preprocess(mode="RGB", resize_edge=256, crop=224), images.evenly(sample))
    values = pixels.reshape(-1, 3) / np.float32(255)
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return tuple(mean.round(4).tolist()), tuple(std.clip(1e-3).round(4).tolist())
