"""Samples of pictures with their classes: which can be decoded, how they are split, and what is odd about them."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from engines.published.essentials import essentials
from engines.published.picture import open_picture, upright
from engines.published.preprocess import Preprocess, to_mode
from training.data.dataset import DataSet
from training.data.images import Images, Sample, legible
from training.errors import DataError

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing", "held_out", "dev", "eval", "evaluation", "holdout")
MORE_ENDINGS = (".gif", ".jfif", ".jpe", ".jp2", ".avif", ".pbm", ".pnm")  # beside those that torchvision knows
SAMPLE = 1000  # pictures that are looked at, of a large data set
SMALL = 32  # pixels of an edge, CIFAR's; larger ones are taken for photos, which lose a part at the edges
FLAT = 0.01  # standard deviation, 0 to 1, of pixels that are nearly alike: two or three of 255 steps
UNBALANCED = 10  # times the pictures of the smallest class that make the largest one worth a warning
SHOWN = 3  # names in a warning
TIFF = (b"II*\0", b"MM\0*")
BANDS, COLOURS, MORE_BANDS = 277, 262, 338  # tags of TIFF: samples of a pixel, what they mean, what the others are
CMYK, ALPHA = 5, {1, 2}


def data_set(
    name: str,
    spec: str,
    labels: tuple[str, ...],
    split: tuple[str, list[Sample], list[Sample]],
    images: Callable[[Sequence[Sample]], Images],
) -> DataSet:
    """Return a data set of pictures; `split` is its description, and samples to train on and held out.

    Prints a warning if all pictures are nearly the same, or classes have very different numbers of pictures.
    """
    described, train, held_out = split
    of_train = images(train)
    mean, std, fill = statistics(of_train)
    if max(std) < FLAT:
        warn(f"{spec}: the pixels of all pictures are nearly the same, {mean}: is that right?")
    warn_of_imbalance(spec, labels, of_train)
    return DataSet(
        name=name,
        spec=spec,
        split=described,
        labels=labels,
        edge=edge_of(of_train),
        mean=mean,
        std=std,
        fill=fill,
        train=of_train,
        held_out=images(held_out),
    )


def name_of(text: str, path: Path, reserved: Collection[str]) -> str:
    """Return a data set's name, made of a folder's or file's. Raises DataError if nothing is left, or it is taken."""
    name = re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")[:40]
    if not name or name in reserved:
        raise DataError(f"{path}: its name becomes the data set's; rename it to letters that no data set has")
    return name


def check_path(path: Path) -> None:
    """Raise DataError for a path that is not UTF-8, since the checkpoint must name the path, in JSON."""
    if legible(path) != str(path):
        kind = "folder" if path.is_dir() else "file"
        raise DataError(f"{legible(path)}: the {kind}'s path is not UTF-8; rename it")


def is_picture(name: str) -> bool:
    """Return True if a file's name ends as a picture's."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    ends: bool = has_file_allowed_extension(name, (*IMG_EXTENSIONS, *MORE_ENDINGS))
    return ends


def decodable(samples: Sequence[Sample], read: Callable[[str], bytes]) -> tuple[list[Sample], dict[str, bytes]]:
    """Return the samples whose pictures can be decoded, and the hashes of their files; list the others on stderr."""

    def check(path: str) -> tuple[str | None, bytes]:
        try:
            body = read(path)
        except OSError as error:
            return str(error), b""
        return decoding_error(body), hashlib.sha256(body).digest()

    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(check, (path for path, _ in samples)))
    for (path, _), (problem, _) in zip(samples, checked, strict=True):
        if problem:
            print(f"skipped {legible(path)}: {problem}", file=sys.stderr)
    good = [sample for sample, (problem, _) in zip(samples, checked, strict=True) if not problem]
    return good, {path: digest for (path, _), (_, digest) in zip(samples, checked, strict=True)}


def decoding_error(body: bytes) -> str | None:
    """Return the reason why a picture cannot be trained on, or None if it can."""
    try:
        if channels := channels_too_many(body):
            return f"it has {channels} channels; grey or three colours are read, with or without transparency"
        picture = open_picture(essentials(body))
        picture.draft(None, (1, 1))  # a JPEG at an eighth: less work that finds the same errors
        to_mode(upright(picture), "RGB", 0)
    except Exception as error:  # Pillow raises nearly anything on a broken file
        return str(error) or type(error).__name__
    return None


def channels_too_many(body: bytes) -> int | None:
    """Return the number of channels of a TIFF that has others than colours and transparency, else None."""
    if not body.startswith(TIFF):
        return None
    file, directory = io.BytesIO(body), ImageFileDirectory_v2(body[:8])
    file.seek(directory.next)
    directory.load(file)
    channels, others = int(directory.get(BANDS, 1)), directory.get(MORE_BANDS, ())
    colours = 4 if directory.get(COLOURS) == CMYK else 3
    transparent = channels == colours + 1 and len(others) == 1 and {*others} <= ALPHA
    return channels if channels > colours and not transparent else None


def relative(root: Path, path: str) -> bytes:
    """Return a path, below `root` without it, as the bytes of its name, as the file system has them."""
    inside = Path(path).is_relative_to(root)
    return str(Path(path).relative_to(root) if inside else path).encode("utf-8", "surrogateescape")


def split_by_name(
    root: Path, labels: tuple[str, ...], samples: Sequence[Sample]
) -> tuple[str, list[Sample], list[Sample]]:
    """Split samples by a hash of each name: a tenth of each class is held out, at least one where there are two.

    Returns a description, the samples to train on, and the held-out ones. Adding or removing a picture moves no other.
    Raises DataError if no class has two pictures.
    """

    def position(path: str) -> float:  # 0 to 1, uniform over names
        return int.from_bytes(hashlib.sha256(relative(root, path)).digest()[:8]) / 2**64

    held_out: list[Sample] = []
    single: list[str] = []
    for target, label in enumerate(labels):
        ordered = sorted((sample for sample in samples if sample[1] == target), key=lambda sample: position(sample[0]))
        single += [label] if len(ordered) == 1 else []
        share = sum(position(path) < 0.1 for path, _ in ordered)
        held_out += ordered[: min(max(1, share), len(ordered) - 1)]
    if not held_out:
        raise DataError(f"{legible(root)}: each class has a single picture; two are needed, one of them to hold out")
    if single:
        warn(f"{legible(root)}: a single picture in {named(single)}: trained on, and measured by no held-out picture")
    chosen = set(held_out)
    names = b"".join(relative(root, path) for path, _ in sorted(chosen))
    described = f"about a tenth of each class held out, by name: {hashlib.sha256(names).hexdigest()[:8]}"
    return described, [sample for sample in samples if sample not in chosen], sorted(chosen)


def warn_of_doubles(train: Sequence[Sample], held_out: Sequence[Sample], digests: Mapping[str, bytes]) -> None:
    """Print a warning for files that are the same in both halves, and for those that are in several classes."""
    trained = {digests[path]: path for path, _ in train}
    both = [(path, trained[digests[path]]) for path, _ in held_out if digests[path] in trained]
    if both:
        pairs = named([f"{legible(path)} = {legible(other)}" for path, other in both])
        warn(f"{len(both)} of {len(held_out)} held-out pictures are trained on too, so top-1 says too much: {pairs}")
    classes: dict[bytes, set[int]] = {}
    for path, target in (*train, *held_out):
        classes.setdefault(digests[path], set()).add(target)
    several = [path for path, _ in (*train, *held_out) if len(classes[digests[path]]) > 1]
    if several:
        warn(f"{len(several)} pictures are in two classes or more: {named([legible(path) for path in several])}")


def warn_of_imbalance(spec: str, labels: tuple[str, ...], train: Images) -> None:
    """Print a warning if one class has many times the pictures of another."""
    counted = Counter(train.targets.tolist()).most_common()
    (most, many), (least, few) = counted[0], counted[-1]
    if many >= UNBALANCED * few:
        remedy = "--set balanced=true weighs all classes alike"
        warn(f"{spec}: {many} pictures of {labels[most]}, {few} of {labels[least]}: {remedy}")


def named(names: Sequence[str]) -> str:
    """Return the first names as text, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def edge_of(images: Images) -> int | None:
    """Return the edge in pixels of pictures that all are squares of one size, SMALL at most, else None."""
    width, height = size = images.pictures[0].size
    small = width == height <= SMALL
    return width if small and all(images.pictures[index].size == size for index in images.evenly(SAMPLE)) else None


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return mean and standard deviation per channel, 0 to 1, and the background, 0 to 255, of at most SAMPLE images.

    At 256 x 256 pixels, the first two are those of the central 224 x 224, and the background is the border's median.
    """
    pixels = images.pixels(Preprocess(mode="RGB", resize_edge=256, crop=256), images.evenly(SAMPLE))
    values = pixels[:, 16:-16, 16:-16].reshape(-1, 3) / np.float32(255)
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    sides = pixels[:, [0, -1]], pixels[:, :, [0, -1]].swapaxes(1, 2)
    background = round(float(np.median(np.concatenate(sides))))
    return tuple(mean.round(4).tolist()), tuple(std.clip(1e-3).round(4).tolist()), background
