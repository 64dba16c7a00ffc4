"""Data sets: pictures to train on and pictures held out, with their labels."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.data.dataset import DataSet
from training.data.folder import folder
from training.data.images import Arrays, Files, Images, Members, sample_pixels
from training.data.mnist5k import mnist5k
from training.data.shards import shards
from training.data.tables import table
from training.data.torchvision import IN_MEMORY, imagenet
from training.errors import DataError

__all__ = ["Arrays", "DataSet", "Files", "Images", "Members", "download", "load", "sample_pixels", "write_images"]

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
OF_PATHS = {"folder": folder, "csv": table, "tar": shards}  # each needs a path
NAMES = ("mnist5k", "imagenet", *OF_PATHS, *IN_MEMORY)


def load(spec: str) -> DataSet:
    """Load the data set NAME or NAME:PATH. Raises DataError, which says how to get it, if it is missing or broken."""
    name, _, path = spec.partition(":")
    root = Path(path or Path("data") / name)
    if name == "mnist5k":
        return mnist5k()
    if name == "imagenet":
        return imagenet(root)
    if name in IN_MEMORY:
        return IN_MEMORY[name].load(root, spec)
    if name not in OF_PATHS:
        raise DataError(f"no data set {name!r}; there are {', '.join(NAMES)}")
    if not path:
        raise DataError(f"{name} needs a path: --data {name}:PATH")
    return OF_PATHS[name](root, set(NAMES) - OF_PATHS.keys())


def download(spec: str) -> None:
    """Download a data set NAME or NAME:PATH into data/NAME or PATH. Raises DataError if torchvision cannot fetch it."""
    name, _, path = spec.partition(":")
    if name not in IN_MEMORY:
        raise DataError(f"{name!r} cannot be downloaded; there are {', '.join(IN_MEMORY)}")
    try:
        IN_MEMORY[name].download(Path(path or Path("data") / name))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} could not be downloaded: {error}") from error


def folder_of(label: str) -> str:
    """Return the name of a label's folder: a label of a table or a shard may be any text, such as `..`."""
    name = label.replace("/", "-")
    return "-" if name in {".", ".."} else name


def write_images(data: DataSet, out: Path) -> None:
    """Write the held-out pictures as `<out>/<label>/<number>.png`; the folder appears complete or not at all."""
    temporary = out.with_name(f"{out.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for number, target in enumerate(data.held_out.targets):
        path = temporary / folder_of(data.labels[target]) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = data.held_out.pictures[number]
        if picture.mode not in PNG_MODES and not picture.mode.startswith("I;16"):
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        picture.save(path)
    temporary.rename(out)
