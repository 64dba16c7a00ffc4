"""Data sets from folders of pictures, one folder per class."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from training.data.dataset import DataSet
from training.data.images import Sample, from_files, legible
from training.data.samples import (
    HELD_OUT,
    TRAIN,
    check_path,
    data_set,
    decodable,
    is_picture,
    name_of,
    split_by_name,
    warn_of_doubles,
)
from training.data.tables import labels_file, rows_of, split_of_rows
from training.errors import DataError

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
CLASSES_SEARCHED = 200  # folders in which classes are looked for, to name the right one


def folder(root: Path, reserved: Collection[str]) -> DataSet:
    """Load a folder per class, or a folder of TRAIN beside one of HELD_OUT with such, in small or capital letters.

    Without that pair, about a tenth of each class, at least one picture of two, is held out by a hash of each picture's
    name: adding or removing a picture moves no other. A folder with a file of labels and no folder per class is read by
    that file. Pictures that cannot be decoded are listed on stderr and left out, oddities are warned of. Raises
    DataError for fewer than two classes, an empty class, a class in one half only, and for a folder named as a data set
    in `reserved`.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {legible(root)}")
    check_path(root)
    name = name_of(root.resolve().name, root, reserved)
    spec = f"folder:{root}"
    if len(subfolders(root)) < 2 and (file := labels_file(root)):
        print(f"{root}: labels are those of {file.name}", file=sys.stderr)
        return data_set(name, spec, *split_of_rows(rows_of(file), root), from_files)
    train_half, held_out_half = (half(root, names) for names in (TRAIN, HELD_OUT))
    if train_half and held_out_half:
        labels, train, digests = of_classes(train_half)
        held_out_labels, held_out, more = of_classes(held_out_half)
        digests |= more
        if labels != held_out_labels:
            different = ", ".join(sorted({*labels} ^ {*held_out_labels}))
            raise DataError(f"{root}: {different} in one of {train_half.name}, {held_out_half.name} only")
        split = f"folders {train_half.name} and {held_out_half.name}", train, held_out
    elif train_half:
        missing = f"{root} has a folder {train_half.name}, and none of {', '.join(HELD_OUT)}"
        raise DataError(f"{missing}{elsewhere(root)}")
    else:
        labels, samples, digests = of_classes(root)
        split = split_by_name(root, labels, samples)
    _, train, held_out = split
    warn_of_doubles(train, held_out, digests)
    return data_set(name, spec, labels, split, from_files)


def half(root: Path, names: Collection[str]) -> Path | None:
    """Return the folder in `root` that has the first of `names`, in any case, and folders inside; else None."""
    found = {path.name.lower(): path for path in subfolders(root) if subfolders(path)}
    return next((found[name] for name in names if name in found), None)


def of_classes(root: Path) -> tuple[tuple[str, ...], list[Sample], dict[str, bytes]]:
    """Return the class names, every picture that can be decoded, and the hashes of files; list the others on stderr.

    Raises DataError if there are fewer than two classes, or a class without such a picture.
    """
    classes = subfolders(root)
    files = [list(visible_files(folder)) for folder in classes]
    samples = [(str(path), target) for target, paths in enumerate(files) for path in paths if is_picture(path.name)]
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
    good, digests = decodable(samples, lambda path: Path(path).read_bytes())
    having = {target for _, target in good}
    if empty := [label for target, label in enumerate(labels) if target not in having]:
        raise DataError(f"{root}: no picture in {', '.join(empty)}{elsewhere(root)}")
    return labels, good, digests


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name, without hidden ones and those that systems add."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not passed_over(path.name))


def alike(classes: list[Path]) -> list[str]:
    """Return the names of folders without pictures of their own that hold folders of the same names, two at least."""
    inner = {
        folder.name: frozenset(path.name for path in subfolders(folder))
        for folder in classes
        if not any(is_picture(path.name) and path.is_file() for path in folder.iterdir())
    }
    names = list(inner.values())
    return [legible(name) for name, folders in inner.items() if len(folders) > 1 and names.count(folders) > 1]


def report_left_out(label: str, files: list[Path]) -> None:
    """Print how many files of a class, by ending, are no pictures that training reads."""
    rest = Counter(path.suffix.lower() or path.name for path in files if not is_picture(path.name))
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


def elsewhere(root: Path) -> str:
    """Return a hint at the nearest folder below `root` that has a folder per class, or what the folders must be."""
    waiting = subfolders(root)
    for folder in islice(waiting, CLASSES_SEARCHED):  # the loop goes on with what it adds
        inner = subfolders(folder)
        if sum(any(is_picture(file.name) for file in visible_files(path)) for path in inner) > 1:
            return f"; {legible(folder)} has one per class: --data folder:{legible(folder)}"
        waiting += inner
    return "; put the pictures of each class, two classes at least, into a folder of its own"
