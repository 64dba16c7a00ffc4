"""Data sets from a table of paths and labels: CSV, with commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from training.data.dataset import DataSet
from training.data.images import Sample, from_files, legible
from training.data.samples import (
    HELD_OUT,
    TRAIN,
    check_path,
    data_set,
    decodable,
    name_of,
    named,
    split_by_name,
    warn_of_doubles,
)
from training.errors import DataError

PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "picture", "img")
LABELS = ("label", "class", "class_name", "target", "category", "species")
SPLITS = ("split", "set", "subset", "half", "part")
FILES = ("labels.csv", "labels.tsv", "labels.txt")
DIGITS = 18  # of a label that is a number; Python converts no text of thousands
COMMON_NAMES = {"labels", "label", "data", "index", "metadata", "train", "all"}  # of files, which say nothing


class TableRow(NamedTuple):
    """Row of a table: the path as the table has it, the label, the half if the table states one, the line's number."""

    path: str
    label: str
    half: str | None
    line: int


def table(file: Path, reserved: Collection[str]) -> DataSet:
    """Load the pictures that a table names, with paths from the table's folder on, and a label for each.

    Columns are found by their names, see PATHS, LABELS and SPLITS, or are path and label, without a header. Without a
    column of halves about a tenth of each class is held out by a hash of each path. Raises DataError, which names the
    line, for a table that cannot be read.
    """
    check_path(file)
    stem = file.stem.lower()
    name = name_of(file.resolve().parent.name if stem in COMMON_NAMES else stem, file, reserved)
    return data_set(name, f"csv:{file}", *split_of_rows(rows_of(file), file.parent), from_files)


def labels_file(root: Path) -> Path | None:
    """Return the file of labels in a folder, or None."""
    return next((root / name for name in FILES if (root / name).is_file()), None)


def rows_of(file: Path) -> list[TableRow]:
    """Read the rows of a table. Raises DataError if the table is none, or a row lacks a path or a label."""
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{legible(file)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: save it as such") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    if delimiter not in first:
        raise DataError(f"{file}, line 1: no comma, semicolon or tab between path and label")
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{file} is no table: {error}") from error
    head = [cell.strip().lower() for cell in lines[0]]
    path, label, half = (
        next((head.index(name) for name in names if name in head), None) for names in (PATHS, LABELS, SPLITS)
    )
    if path is None and label is None and (file.parent / lines[0][0].strip()).is_file():
        path, label, start = 0, 1, 0  # no header
    else:
        start = 1
    if path is None or label is None:
        raise DataError(f"{file}, line 1: columns are named path and label, and perhaps split, not {', '.join(head)}")
    wanted = [column for column in (path, label, half) if column is not None]
    rows = []
    for number, cells in enumerate(lines[start:], start + 1):
        if not any(cells):
            continue
        if len(cells) <= max(wanted) or not all(cells[column].strip() for column in wanted):
            raise DataError(
                f"{file}, line {number}: a row has a path and a label{', and a half' if half is not None else ''}"
            )
        stated = None if half is None else cells[half].strip().lower()
        rows.append(TableRow(cells[path].strip(), cells[label].strip(), stated, number))
    return rows


def split_of_rows(
    rows: Sequence[TableRow], root: Path
) -> tuple[tuple[str, ...], tuple[str, list[Sample], list[Sample]]]:
    """Return the labels, and the description and halves of the split; paths count from `root`.

    Raises DataError for fewer than two classes, missing pictures, a class without pictures to train on, and a half
    whose name is not known.
    """
    labels = tuple(sorted({row.label for row in rows}, key=natural))
    if len(labels) < 2:
        raise DataError(f"{root}: the table has {len(labels)} classes, two at least are needed")
    # Path.is_file raises errors for names that are too long.
    if missing := [row for row in rows if not os.path.isfile(root / row.path)]:
        raise DataError(
            f"{root}: {len(missing)} of {len(rows)} pictures are not there, such as {missing[0].path} in line "
            f"{missing[0].line}: paths count from the table's folder"
        )
    halves = {row.half for row in rows if row.half is not None}
    if unknown := sorted(halves - {*TRAIN, *HELD_OUT}):
        raise DataError(f"{root}: halves are {TRAIN[0]} and {HELD_OUT[0]}, not {named(unknown)}")
    numbers = {label: number for number, label in enumerate(labels)}
    samples = [(str(root / row.path), numbers[row.label]) for row in rows]
    good, digests = decodable(list(dict.fromkeys(samples)), lambda path: Path(path).read_bytes())
    if halves:
        trained = {sample for sample, row in zip(samples, rows, strict=True) if row.half in TRAIN}
        train = [sample for sample in good if sample in trained]
        held_out = [sample for sample in good if sample not in trained]
        split = f"column of the table: {len(train)} to train on, {len(held_out)} held out", train, held_out
    else:
        split = split_by_name(root, labels, good)
    check_halves(root, labels, split[1], split[2])
    warn_of_doubles(split[1], split[2], digests)
    return labels, split


def check_halves(root: Path, labels: tuple[str, ...], train: Sequence[Sample], held_out: Sequence[Sample]) -> None:
    """Raise DataError if a class has no picture to train on, or if no picture is held out."""
    having = {target for _, target in train}
    if empty := [label for target, label in enumerate(labels) if target not in having]:
        raise DataError(f"{root}: no picture to train on in {named(empty)}")
    if not held_out:
        raise DataError(f"{root}: no picture is held out; name some {HELD_OUT[0]} in a column split, or leave it out")


def natural(label: str) -> tuple[bool, int, str]:
    """Return the key that sorts whole numbers by their value, before other labels."""
    number = is_number(label)
    return not number, int(label) if number else 0, label


def is_number(label: str) -> bool:
    """Return True for a label that is a whole number."""
    return label.isascii() and label.isdigit() and len(label) <= DIGITS
