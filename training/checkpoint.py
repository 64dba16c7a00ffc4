"""Checkpoints: a folder of safetensors files, and `checkpoint.json`, which names the current files.

Replacing `checkpoint.json` makes a new epoch's checkpoint current, so a kill at any moment leaves a complete one.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from contextlib import ExitStack
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
from training.machine import machine_errors
from training.recipes import Recipe
from training.schedule import finished

FILE = "checkpoint.json"
SCALER, RAW = "scaler", "raw"  # prefixes of keys beside those of parameters' numbers
MOMENTS = {"sgd": 1, "nesterov": 1, "adamw": 2, "rmsprop": 2}  # tensors that an optimizer keeps for each parameter


class Epoch(Record):
    """Results of one epoch.

    `loss` is the mean over training images, without auxiliary heads; `top1` (0 to 1) is measured on the held-out
    images; `lr` is the learning rate at the epoch's end; `input_share` (0 to 1) is the share of the training time spent
    waiting for pixels; `seconds` include the held-out images.
    """

    epoch: int
    loss: float
    top1: float
    lr: float
    images_per_s: float
    input_share: float
    seconds: float


class TensorFile(Record):
    """Safetensors file of a checkpoint's folder, and its hash."""

    file: str
    sha256: Sha256


class Imported(Record):
    """Origin of weights that were trained elsewhere.

    Top-1 and top-5 are their authors' figures in percent, of one centre crop of each of ImageNet's validation images,
    or of CIFAR-10's test images; None for weights that no library publishes, and a top-5 that is not stated.
    """

    library: str
    name: str
    licence: str
    source: str
    top1: float | None
    top5: float | None


class Origin(Record):
    """Origin of trained weights that a training uses.

    `spec` is their name on the command line; `sha256` is of their file, or has the first digits, or is None, where a
    library states no more.
    """

    spec: str
    title: str
    sha256: str | None


class Checkpoint(Record):
    """Contents of `checkpoint.json`.

    `dataset` is the data set's name, `data` the argument of `training.data.load`. `optimizer` is None after the last
    epoch of a training, and of a phase, whose optimizer the next phase does not use. Weights are either trained here,
    by `recipe` and `seed`, or `imported`; those trained here may have a `start` from other weights, and a `teacher`.
    """

    architecture: str
    dataset: str
    data: str
    split: str
    labels: tuple[str, ...]
    input: Input
    recipe: Recipe | None = None
    seed: int | None = None
    start: Origin | None = None
    teacher: Origin | None = None
    imported: Imported | None = None
    epochs: tuple[Epoch, ...]
    versions: dict[str, str]
    weights: TensorFile
    optimizer: TensorFile | None

    @property
    def done(self) -> bool:
        """True if every epoch of the recipe has been trained, or as many as its early end wants."""
        return self.recipe is None or finished(self.recipe, [epoch.top1 for epoch in self.epochs])


def versions() -> dict[str, str]:
    """Return the versions of the software that results depend on; `convserve` is the commit."""
    return {
        "convserve": commit() or "unknown",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
    }


def commit() -> str | None:
    """Return the commit of the project's folder, or None without git, or in a copy that git does not know."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # there is no git, or this user may not run git
        return None
    return described.stdout.strip() or None


def load(folder: Path) -> Checkpoint:
    """Read `checkpoint.json` and check its files. Raises CheckpointError if a file is missing or damaged."""
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
    folder: Path,
    checkpoint: dict[str, Any],
    net: nn.Module,
    unfinished: tuple[Optimizer, GradScaler] | None,
    raw: nn.Module | None = None,
) -> Checkpoint:
    """Write tensors, then `checkpoint.json`, then remove the tensor files that `checkpoint.json` no longer names.

    `checkpoint` has the fields of a Checkpoint but for versions and files. `unfinished` is the optimizer and the scaler
    of a phase that has epochs left, `raw` its network in training if `net` is an average. Raises MachineError if the
    disk is full; the folder then holds what it held.
    """
    epoch = len(checkpoint["epochs"])
    weights, optimizer = (folder / f"{kind}-{epoch:03}.safetensors" for kind in ("weights", "optimizer"))
    with machine_errors(folder), ExitStack() as unsaved:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (weights, optimizer):
            unsaved.callback(path.unlink, missing_ok=True)
        saved = Checkpoint(
            **checkpoint,
            versions=versions(),
            weights=_write(weights, net.state_dict()),
            optimizer=_write(optimizer, _state(*unfinished, raw)) if unfinished else None,
        )
        files.write(folder / FILE, saved.model_dump_json(indent=1))
        unsaved.pop_all()  # the files are named now, and stay
    named = {tensors.file for tensors in (saved.weights, saved.optimizer) if tensors}
    for pattern in ("weights-[0-9]*.safetensors", "optimizer-[0-9]*.safetensors"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()
    return saved


def room(net: nn.Module, recipe: Recipe) -> int:
    """Return the bytes that a training's files take at most: an epoch's stay until the next epoch's are whole."""
    weights = sum(int(tensor.nbytes) for tensor in net.state_dict().values())
    optimizer = MOMENTS[recipe.optimizer] * sum(int(parameter.nbytes) for parameter in net.parameters())
    optimizer += weights if recipe.ema else 0  # the weights in training beside their averages
    most = {1: weights, 2: 2 * weights + optimizer}  # the last epoch saves no optimizer
    return most.get(recipe.epochs, 2 * (weights + optimizer))


def saving_seconds(
    folder: Path, net: nn.Module, unfinished: tuple[Optimizer, GradScaler], raw: nn.Module | None = None
) -> float:
    """Return the seconds that writing a checkpoint's tensors takes on the disk of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        started = time.perf_counter()
        _write(Path(temporary) / "weights", net.state_dict())
        _write(Path(temporary) / "optimizer", _state(*unfinished, raw))
        return time.perf_counter() - started


def restore(folder: Path, checkpoint: Checkpoint, net: nn.Module) -> None:
    """Load the weights into `net`. Raises CheckpointError if they do not fit the network."""
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


def restore_optimizer(
    folder: Path, checkpoint: Checkpoint, optimizer: Optimizer, scaler: GradScaler, raw: nn.Module
) -> None:
    """Load the state of an unfinished phase: optimizer, scaler, and the network in training, `raw`, if it was saved."""
    if checkpoint.optimizer is None:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    scaling: dict[str, float] = {}
    weights: dict[str, Tensor] = {}
    for key, tensor in load_file(folder / checkpoint.optimizer.file).items():
        index, _, name = key.partition(".")
        if index == RAW:
            weights[name] = tensor
            continue
        if index == SCALER:
            scaling[name] = tensor.item()
            continue
        parameter = parameters[int(index)]
        # Fused optimizers walk a parameter and its state in memory order, so both need the same layout.
        same_layout = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(index), {})[name] = same_layout.detach()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    if scaling:
        scaler.load_state_dict(scaling)
    if weights:
        raw.load_state_dict(weights)


def _write(path: Path, tensors: dict[str, Tensor]) -> TensorFile:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    files.follow_umask(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # The tensors are on the disk before checkpoint.json names them.
    return TensorFile(file=path.name, sha256=sha256(path))


def _state(optimizer: Optimizer, scaler: GradScaler, raw: nn.Module | None) -> dict[str, Tensor]:
    """Return the optimizer's tensors as `<parameter index>.<name>`, the scaler's as `scaler.<name>`, `raw.<name>`."""
    state = {
        **optimizer.state_dict()["state"],
        SCALER: scaler.state_dict(),
        RAW: {} if raw is None else raw.state_dict(),
    }
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }
