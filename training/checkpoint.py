"""Checkpoints: a folder of safetensors and one `checkpoint.json` that says which of them hold.

Replacing that file is what makes a new epoch's checkpoint the current one, so a kill at any moment leaves a whole one.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from engines.published import files
from engines.published.manifest import Record, Sha256, sha256
from engines.runtimes.torch import FromPixels, Normalise
from models.zoo import ZOO
from training.errors import CheckpointError
from training.input import Input
from training.recipes import Recipe

FILE = "checkpoint.json"
SCALER = "scaler"


class Epoch(Record):
    """What one epoch gave.

    `loss` is the mean over training images, without that of auxiliary heads; `top1` (0 to 1) is of the held-out ones;
    `lr` is the rate at its end; `input_share` (0 to 1) is how much of the training went by waiting for pixels;
    `seconds` are training and held-out images together.
    """

    epoch: int
    loss: float
    top1: float
    lr: float
    images_per_s: float
    input_share: float
    seconds: float


class TensorFile(Record):
    """A safetensors file of the folder."""

    file: str
    sha256: Sha256


class Imported(Record):
    """Whose weights these are, where they were not trained here; top-1 and top-5 are their authors', in percent."""

    library: str
    name: str
    licence: str
    source: str
    top1: float | None
    top5: float | None


class Checkpoint(Record):
    """What `checkpoint.json` holds.

    `dataset` is the data set's name, `data` what `training.data.load` takes for it. `optimizer` is there until the last
    epoch is done. Weights are trained here, by `recipe` from `seed`, or `imported`.
    """

    architecture: str
    dataset: str
    data: str
    split: str
    labels: tuple[str, ...]
    input: Input
    recipe: Recipe | None = None
    seed: int | None = None
    imported: Imported | None = None
    epochs: tuple[Epoch, ...]
    versions: dict[str, str]
    weights: TensorFile
    optimizer: TensorFile | None

    @property
    def done(self) -> bool:
        """Whether every epoch of the recipe has been trained."""
        return self.recipe is None or len(self.epochs) == self.recipe.epochs


def versions() -> dict[str, str]:
    """Of what the numbers depend on; `convserve` is the commit."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "convserve": described.stdout.strip() or "unknown",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
    }


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


def save(
    folder: Path, checkpoint: dict[str, Any], net: nn.Module, unfinished: tuple[Optimizer, GradScaler] | None
) -> Checkpoint:
    """Write the tensors of `net` and what is `unfinished`, then `checkpoint.json`; then remove what it no longer names.

    `checkpoint` has the fields of a Checkpoint that are not made here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    epoch = len(checkpoint["epochs"])
    saved = Checkpoint(
        **checkpoint,
        versions=versions(),
        weights=_write(folder / f"weights-{epoch:03}.safetensors", net.state_dict()),
        optimizer=_write(folder / f"optimizer-{epoch:03}.safetensors", _state(*unfinished)) if unfinished else None,
    )
    files.write(folder / FILE, saved.model_dump_json(indent=1))
    named = {tensors.file for tensors in (saved.weights, saved.optimizer) if tensors}
    for pattern in ("weights-[0-9]*.safetensors", "optimizer-[0-9]*.safetensors"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()
    return saved


def restore(folder: Path, checkpoint: Checkpoint, net: nn.Module) -> None:
    """Load the weights; CheckpointError where they do not fit the network."""
    try:
        net.load_state_dict(load_file(folder / checkpoint.weights.file))
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit {checkpoint.architecture}: {error}") from error


def network(folder: Path, checkpoint: Checkpoint) -> FromPixels:
    """Return the checkpoint's network, from pixels to logits. Raises CheckpointError for an unknown architecture."""
    if checkpoint.architecture not in ZOO:
        raise CheckpointError(f"{folder}: there is no architecture {checkpoint.architecture}")
    net = ZOO[checkpoint.architecture].build(len(checkpoint.labels))
    restore(folder, checkpoint, net)
    return FromPixels(net, Normalise(checkpoint.input.mean, checkpoint.input.std)).eval()


def restore_optimizer(folder: Path, checkpoint: Checkpoint, optimizer: Optimizer, scaler: GradScaler) -> None:
    """Load what an unfinished training needs besides its weights."""
    if checkpoint.optimizer is None:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    scaling: dict[str, float] = {}
    for key, tensor in load_file(folder / checkpoint.optimizer.file).items():
        index, name = key.split(".")
        if index == SCALER:
            scaling[name] = tensor.item()
            continue
        parameter = parameters[int(index)]
        # fused optimizers walk a parameter and its state in the order of their bytes, which must be the same
        same_layout = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(index), {})[name] = same_layout.detach()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    if scaling:
        scaler.load_state_dict(scaling)


def _write(path: Path, tensors: dict[str, Tensor]) -> TensorFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # The tensors are on the disk before checkpoint.json names them.
    return TensorFile(file=path.name, sha256=sha256(path))


def _state(optimizer: Optimizer, scaler: GradScaler) -> dict[str, Tensor]:
    """The optimizer's tensors by `<parameter index>.<name>`, the scaler's by `scaler.<name>`."""
    state = {**optimizer.state_dict()["state"], SCALER: scaler.state_dict()}
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }
