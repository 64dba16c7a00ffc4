"""Checkpoints: a folder of safetensors and one `checkpoint.json` that says which of them hold.

Replacing that file is what makes a new epoch's checkpoint the current one, so a kill at any moment leaves a whole one.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from engines.manifest import Sha256, sha256
from training.recipe import Recipe

FILE = "checkpoint.json"


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or not the one that is meant."""


class Epoch(BaseModel):
    """What one epoch gave: mean training loss, held-out top-1 (0 to 1), training images a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    top1: float
    images_per_s: float


class TensorFile(BaseModel):
    """A safetensors file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: Sha256


class Checkpoint(BaseModel):
    """What `checkpoint.json` holds; `optimizer` is there until the last epoch is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    dataset: str
    labels: tuple[str, ...]
    recipe: Recipe
    seed: int
    epochs: tuple[Epoch, ...]
    versions: dict[str, str]
    weights: TensorFile
    optimizer: TensorFile | None

    @property
    def done(self) -> bool:
        """Whether every epoch of the recipe has been trained."""
        return len(self.epochs) == self.recipe.epochs


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "pillow")}}


def load(folder: Path) -> Checkpoint:
    """Read `checkpoint.json` and check its files; CheckpointError says what is wrong."""
    try:
        checkpoint = Checkpoint.model_validate_json((folder / FILE).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder} is no checkpoint: {FILE}: {error.strerror}") from error
    except ValidationError as error:
        raise CheckpointError(f"{folder}/{FILE} is damaged: {error.errors()[0]['msg']}") from error
    for tensors in (checkpoint.weights, checkpoint.optimizer):
        if tensors and not (folder / tensors.file).is_file():
            raise CheckpointError(f"{folder}/{tensors.file} is missing")
        if tensors and sha256(folder / tensors.file) != tensors.sha256:
            raise CheckpointError(f"{folder}/{tensors.file} is damaged: its sha256 is not the one in {FILE}")
    return checkpoint


def save(folder: Path, checkpoint: dict[str, Any], net: nn.Module, optimizer: Optimizer | None) -> Checkpoint:
    """Write the tensors of `net` and `optimizer`, then `checkpoint.json`; then remove those it no longer names.

    `checkpoint` has the fields of a Checkpoint that are not made here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    epoch = len(checkpoint["epochs"])
    saved = Checkpoint(
        **checkpoint,
        versions=versions(),
        weights=_write(folder / f"weights-{epoch:03}.safetensors", net.state_dict()),
        optimizer=_write(folder / f"optimizer-{epoch:03}.safetensors", _state(optimizer)) if optimizer else None,
    )
    temporary = folder / f"{FILE}.new"
    temporary.write_text(saved.model_dump_json(indent=1))
    os.replace(temporary, folder / FILE)
    named = {tensors.file for tensors in (saved.weights, saved.optimizer) if tensors}
    for pattern in ("weights-???.safetensors", "optimizer-???.safetensors"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()
    return saved


def restore(folder: Path, checkpoint: Checkpoint, net: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Load the weights, and with `optimizer` its state; CheckpointError where they do not fit the network."""
    try:
        net.load_state_dict(load_file(folder / checkpoint.weights.file))
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit {checkpoint.architecture}: {error}") from error
    if optimizer and checkpoint.optimizer:
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / checkpoint.optimizer.file).items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _write(path: Path, tensors: dict[str, Tensor]) -> TensorFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return TensorFile(file=path.name, sha256=sha256(path))


def _state(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }
