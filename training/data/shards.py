"""Data sets from tar files in webdataset's layout: `key.jpg` beside `key.cls`, `key.json` or `key.txt`."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data.dataset import DataSet
from training.data.images import Images, Members, Place, Sample, legible
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
from training.data.tables import check_halves, is_number, natural
from training.errors import DataError

NAMES = ("classes.txt", "labels.txt")  # files beside the shards: a class on each line, by number
KEYS = ("label", "class", "cls", "class_name", "target")  # in a JSON file


class Labelled(NamedTuple):
    """Picture in a shard: its name, made of the shard's and its own, and its label as the shard has it."""

    name: str
    label: str


@dataclass
class Index:
    """Pictures of shards with their labels, and the places of pictures by name."""

    pictures: list[Labelled] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """Return the bytes of a picture."""
        return self.places[name].read()

    def images(self, samples: Sequence[Sample]) -> Images:
        """Return the images of (name, class index) pairs; each is read on access."""
        targets = np.array([target for _, target in samples], dtype=np.int64)
        return Images(pictures=Members(tuple(self.places[name] for name, _ in samples)), targets=targets)


def shards(root: Path, reserved: Collection[str]) -> DataSet:
    """Load the tar files of a folder, or one tar file; pictures stay in the files and are read from there.

    Shards whose names have a word of TRAIN or HELD_OUT are halves; else about a tenth of each class is held out by a
    hash of each name. Labels are numbers, with the names of classes in `classes.txt`, or names. Raises DataError for
    compressed files, and a picture without a label.
    """
    check_path(root)
    name = name_of(root.resolve().name.removesuffix(".tar"), root, reserved)
    files = [root] if root.is_file() else sorted(root.glob("*.tar"))
    if not files:
        raise DataError(f"{legible(root)} has no .tar files" if root.is_dir() else f"there is no {legible(root)}")
    index = Index()
    for file in files:
        add(index, file)
    names = {picture.label for picture in index.pictures}
    folder = root if root.is_dir() else root.parent
    labels, targets = labels_of(names, folder)
    samples = [(picture.name, targets[picture.label]) for picture in index.pictures]
    good, digests = decodable(samples, index.read)
    held_out_files = {str(file) for file in files if words(file) & {*HELD_OUT}}
    if held_out_files and any(words(file) & {*TRAIN} for file in files):
        held_out = [sample for sample in good if str(index.places[sample[0]].file) in held_out_files]
        train = [sample for sample in good if str(index.places[sample[0]].file) not in held_out_files]
        split = f"shards: {len(train)} to train on, {len(held_out)} held out", train, held_out
    else:
        split = split_by_name(folder, labels, good)
    check_halves(root, labels, split[1], split[2])
    warn_of_doubles(split[1], split[2], digests)
    return data_set(name, f"tar:{root}", labels, split, index.images)


def words(file: Path) -> set[str]:
    """Return the words of a file's name, in small letters."""
    return {*re.split("[^a-z]+", file.stem.lower())}


def add(index: Index, file: Path) -> None:
    """Add the pictures of a shard to the index. Raises DataError if the file is no plain tar, or lacks a label."""
    try:
        with tarfile.open(file, "r:") as tar:
            for key, members in groups(tar):
                label = label_of(tar, members)
                for ending, member in members.items():
                    if "." not in ending and is_picture(f".{ending}"):  # key.seg.png is a mask
                        if label is None:
                            raise DataError(
                                f"{file}: {key} has a picture and no label: {key}.cls holds a class's number"
                            )
                        name = f"{file}/{member.name}"
                        index.places[name] = Place(file, member.offset_data, member.size)
                        index.pictures.append(Labelled(name, label))
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{file} is no plain tar file, which `tar -xf` and `tar -cf` make of others: {error}"
        ) from error


def groups(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield each key, a name up to its first dot, with the files by ending; those of a key follow one another."""
    present, members = "", dict[str, tarfile.TarInfo]()
    for member in tar:
        folder, slash, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        if not member.isfile() or not key:  # a folder, or hidden
            continue
        if f"{folder}{slash}{key}" != present and members:
            yield present, members
            members = {}
        present = f"{folder}{slash}{key}"
        members[ending.lower()] = member
    if members:
        yield present, members


def label_of(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> str | None:
    """Return the label beside a picture: of `.cls`, of a key of KEYS in `.json`, or of `.txt`; None without one."""
    for ending in ("cls", "json", "txt"):
        file = tar.extractfile(members[ending]) if ending in members else None
        if file is None:
            continue
        text = file.read().decode("utf-8", "replace").strip()
        if ending != "json":
            return text or None
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, or too deep
            continue
        found = [content[key] for key in KEYS if isinstance(content, dict) and isinstance(content.get(key), str | int)]
        if found:
            return str(found[0]).strip() or None
    return None


def labels_of(names: set[str], folder: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the labels, and the class index of each name in the shards.

    If all are numbers, and a file of NAMES is in the folder, the labels are its lines. Raises DataError for a number
    beyond them, and for fewer than two classes.
    """
    ordered = sorted(names, key=natural)
    if len(ordered) < 2:
        raise DataError(f"{folder}: the shards have {len(ordered)} classes, two at least are needed")
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None or not all(map(is_number, ordered)):
        return tuple(ordered), {name: number for number, name in enumerate(ordered)}
    labels = tuple(line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip())
    if int(ordered[-1]) >= len(labels):
        raise DataError(f"{file} has {len(labels)} classes, and the shards a number {ordered[-1]}: they count from 0")
    return labels, {name: int(name) for name in ordered}
