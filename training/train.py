"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from tqdm import tqdm

from models.zoo import build
from training import checkpoint
from training.checkpoint import Checkpoint, CheckpointError, Epoch
from training.data import DataSet, as_tensors
from training.recipe import Recipe

LOG = "log.jsonl"


class Normalise(nn.Module):
    """uint8 pixels, (N, channels, height, width), to the floats that the network takes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(recipe.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(recipe.std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.get_buffer("mean")) / self.get_buffer("std")


def map_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Maximum a posteriori (LeCun et al. 1998, equation 9): a "rubbish" class at the constant distance j.

    The paper gives no value for j; this is the distance of a code with a tenth of its 84 pixels flipped, 4 each.
    """
    j = 4 * 84 / 10
    rubbish = logits.new_full((len(logits), 1), -j)
    return F.cross_entropy(torch.cat([logits, rubbish], dim=1), targets)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "map": map_loss}


def make_optimizer(recipe: Recipe, net: nn.Module) -> Optimizer:
    """The recipe's optimizer; SGD is Nesterov's with momentum 0.9."""
    if recipe.optimizer == "adamw":
        return AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return SGD(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=0.9, nesterov=True)


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate at a point in time, counted in epochs and their fractions."""
    if epoch <= recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.lr * (1 + math.cos(math.pi * done)) / 2


def train(name: str, data: DataSet, recipe: Recipe, out: Path, *, seed: int, resume: bool) -> Checkpoint:
    """Train architecture `name` and leave its checkpoint, after every epoch a whole one, in the folder `out`.

    With `resume`, goes on from what is there and ends as if never stopped: every random draw of an epoch comes
    from `seed` and the epoch's number. CheckpointError if `out` holds another run, or any without `resume`.
    """
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    net = build(name, len(data.labels))
    optimizer = make_optimizer(recipe, net)
    run = {"architecture": name, "dataset": data.name, "labels": data.labels, "recipe": recipe, "seed": seed}
    epochs: list[Epoch] = []
    if (out / checkpoint.FILE).exists():
        latest = checkpoint.load(out)
        check_same_run(latest, run, out, resume=resume)
        epochs = list(latest.epochs)
        write_log(out, epochs)
        if latest.done:
            print(f"{out} has all its {recipe.epochs} epochs")
            return latest
        checkpoint.restore(out, latest, net, optimizer)

    normalise = Normalise(recipe)
    train_set, held_out = (as_tensors(images, recipe.preprocess) for images in (data.train, data.held_out))
    for number in range(len(epochs) + 1, recipe.epochs + 1):
        torch.manual_seed(seed * 100_003 + number)
        started = time.perf_counter()
        loss = train_epoch(net, optimizer, normalise, train_set, recipe, number)
        seconds = time.perf_counter() - started
        top1 = accuracy(net, normalise, held_out, recipe.batch)
        epochs.append(Epoch(epoch=number, loss=loss, top1=top1, images_per_s=len(data.train) / seconds))
        unfinished = optimizer if number < recipe.epochs else None
        saved = checkpoint.save(out, {**run, "epochs": epochs}, net, unfinished)
        write_log(out, epochs)
        print(
            f"{name} epoch {number}/{recipe.epochs}: loss {loss:.4f}, held-out top-1 {top1:.2%},"
            f" {epochs[-1].images_per_s:.0f} images/s",
            flush=True,
        )
    return saved


def write_log(out: Path, epochs: list[Epoch]) -> None:
    """JSON lines, an epoch a line, all that the checkpoint knows of."""
    (out / LOG).write_text("".join(epoch.model_dump_json() + "\n" for epoch in epochs))


def check_same_run(latest: Checkpoint, run: dict[str, object], out: Path, *, resume: bool) -> None:
    """CheckpointError unless `latest` may be gone on with as `run`."""
    if not resume:
        raise CheckpointError(f"{out} holds a checkpoint: --resume goes on with it, --out names another folder")
    different = [key for key, value in run.items() if getattr(latest, key) != value]
    if different:
        raise CheckpointError(f"{out} holds a run with another {', '.join(different)}: --out names another folder")


def train_epoch(
    net: nn.Module,
    optimizer: Optimizer,
    normalise: Normalise,
    train_set: tuple[Tensor, Tensor],
    recipe: Recipe,
    number: int,
) -> float:
    """One pass over the shuffled images; the mean loss, without that of auxiliary heads."""
    net.train()
    batches = torch.randperm(len(train_set[0])).split(recipe.batch)
    total = 0.0
    for step, batch in enumerate(tqdm(batches, f"epoch {number}", leave=False, disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, number - 1 + (step + 1) / len(batches))
        pixels, targets = (tensor[batch] for tensor in train_set)
        pixels = translate(pixels, recipe.shift, recipe.preprocess.fill)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            outputs = net(normalise(pixels))
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        loss, *others = (LOSSES[recipe.loss](head.float(), targets) for head in heads)
        optimizer.zero_grad()
        (loss + recipe.auxiliary * sum(others)).backward()
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(train_set[0])


def translate(pixels: Tensor, shift: int, fill: int) -> Tensor:
    """Move each image of (N, channels, height, width) by up to `shift` pixels, at random, `fill` coming in."""
    if shift == 0:
        return pixels
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (shift, shift, shift, shift), value=fill)
    corners = torch.randint(2 * shift + 1, (len(pixels), 2)).tolist()
    moved = [
        image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(moved)


@torch.no_grad()
def accuracy(net: nn.Module, normalise: Normalise, held_out: tuple[Tensor, Tensor], batch: int) -> float:
    """Share of images whose largest logit is their class."""
    net.eval()
    right = 0
    for pixels, targets in zip(*(tensor.split(batch) for tensor in held_out), strict=True):
        right += int((net(normalise(pixels)).argmax(1) == targets).sum())
    return right / len(held_out[1])
