"""The training loop."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from tqdm import tqdm

from engines.runtimes.torch import DTYPES, Normalise
from models.card import Architecture
from models.stochastic_depth import StochasticBlock, StochasticDepthResNet
from training import checkpoint
from training.batches import Batch, Source, TrainingBatches, held_out_batches
from training.checkpoint import Checkpoint, Epoch
from training.data import DataSet
from training.errors import CheckpointError, DivergedError, RecipeError
from training.input import Input, input_of
from training.plot import curves
from training.processes import Processes
from training.recipes import Recipe, shortened

LOG = "log.jsonl"
CURVES = "curves.png"
TIMED_STEPS = 4  # of which the first is a warm-up
TIMED_SECONDS = 30


def map_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0) -> Tensor:
    """Maximum a posteriori (LeCun et al. 1998, equation 9): a "rubbish" class at the constant distance j.

    The paper gives no value for j; this is the distance of a code with a tenth of its 84 pixels flipped, 4 each.
    """
    j = 4 * 84 / 10
    rubbish = logits.new_full((len(logits), 1), -j)
    return F.cross_entropy(torch.cat([logits, rubbish], dim=1), targets, label_smoothing=label_smoothing)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "map": map_loss}


def make_net(card: Architecture, classes: int, recipe: Recipe) -> nn.Module:
    """The network with fresh weights, drawn and dropping as the recipe says; RecipeError if it cannot be."""
    try:
        net = card.build(classes)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    modules = dict(net.named_modules())
    for layer in recipe.init_ones:
        if layer not in modules:
            raise RecipeError(f"init_ones: {card.name} has no layer {layer}")
    if recipe.survival is not None and isinstance(net, StochasticDepthResNet):
        net.survive(recipe.survival)
    for layer, module in modules.items():
        if isinstance(module, nn.Dropout) and recipe.dropout is not None:
            module.p = recipe.dropout
        if isinstance(module, nn.Conv2d | nn.Linear) and recipe.init_std is not None:
            nn.init.normal_(module.weight, std=recipe.init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if layer in recipe.init_ones:
            nn.init.ones_(net.get_parameter(f"{layer}.bias"))
    return net.to(memory_format=torch.channels_last)


def make_optimizer(recipe: Recipe, net: nn.Module) -> Optimizer:
    """The recipe's optimizer; "nesterov" is SGD with Nesterov's momentum."""
    parameters, decay = net.parameters(), recipe.weight_decay
    if recipe.optimizer == "adamw":
        return AdamW(parameters, lr=recipe.lr, weight_decay=decay, fused=True)
    if recipe.optimizer == "rmsprop":  # "decay of 0.9 and epsilon = 1.0" (Inception v3's paper, section 8)
        return RMSprop(parameters, recipe.lr, alpha=0.9, eps=1, weight_decay=decay, momentum=recipe.momentum)
    nesterov = recipe.optimizer == "nesterov"
    # the fused one fails where a weight has its first gradient later than others (torch 2.14)
    fused = not drops_blocks(net)
    return SGD(parameters, recipe.lr, recipe.momentum, weight_decay=decay, nesterov=nesterov, fused=fused)


def drops_blocks(net: nn.Module) -> bool:
    """Whether a step may leave weights without a gradient."""
    return any(isinstance(module, StochasticBlock) for module in net.modules())


def learning_rate(recipe: Recipe, epoch: float, top1s: Sequence[float] = ()) -> float:
    """The rate at a point in time, counted in epochs and their fractions; `top1s` are of the epochs before."""
    if epoch <= recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    match recipe.schedule:
        case "cosine":
            return recipe.lr * (1 + math.cos(math.pi * done)) / 2
        case "steps":
            return recipe.lr * float(recipe.factor ** sum(epoch > drop * recipe.epochs for drop in recipe.drops))
        case "exponential":
            return recipe.lr * float(recipe.factor ** (epoch - recipe.warmup_epochs))
        case "plateau":
            return recipe.lr * float(recipe.factor ** min(recipe.falls, plateaus(top1s, recipe.patience)))


def plateaus(top1s: Sequence[float], patience: int) -> int:
    """How often `patience` epochs went by without a new best."""
    found, best, since = 0, -1.0, 0
    for top1 in top1s:
        best, since = (top1, 0) if top1 > best else (best, since + 1)
        if since == patience:
            found, since = found + 1, 0
    return found


Network = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


class Trainer:
    """A network, its optimizer, and what they are trained on, in one process of `processes`."""

    def __init__(
        self, net: nn.Module, recipe: Recipe, entry: Input, data: DataSet, seed: int, processes: Processes
    ) -> None:
        # some of CUDA's kernels have no other form
        torch.use_deterministic_algorithms(True, warn_only=processes.device.type == "cuda")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it would be a fill for every tensor
        self.processes, self.recipe, self.seed = processes, recipe, seed
        self.net = net.to(processes.device)
        self.model: Network = self.net
        if processes.size > 1:
            self.model = DistributedDataParallel(
                self.net, find_unused_parameters=drops_blocks(net), broadcast_buffers=False
            )
        self.optimizer = make_optimizer(recipe, self.net)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.precision == "fp16")
        self.normalise = Normalise(entry.mean, entry.std).to(processes.device)
        self.batches = TrainingBatches(data.train, recipe, entry, seed, processes.rank, processes.size)
        self.held_out, self.held_out_source = data.held_out, Source(data.held_out, entry)

    def outputs(self, model: Network, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The logits of uint8 pixels, in training those of auxiliary heads too, in the precision of training."""
        entry = self.normalise(pixels.to(self.processes.device, non_blocking=True))
        precision = DTYPES[self.recipe.precision]
        with torch.autocast(self.processes.device.type, precision, enabled=precision != torch.float32):
            return model(entry.contiguous(memory_format=torch.channels_last))

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is minimised, and that without auxiliary heads: this process's part of the whole batch's mean."""
        targets = batch.targets.to(self.processes.device, non_blocking=True)
        outputs = self.outputs(self.model, batch.pixels)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        share = len(targets) / batch.whole
        loss, *others = (
            share * LOSSES[self.recipe.loss](head.float(), targets, label_smoothing=self.recipe.label_smoothing)
            for head in heads
        )
        return loss + self.recipe.auxiliary * sum(others), loss

    def step(self, batch: Batch) -> Tensor:
        """One step of the optimizer; this process's part of the batch's loss."""
        minimised, loss = self.loss(batch)
        self.optimizer.zero_grad()
        # DistributedDataParallel takes the mean over processes, each of which has only its part of the loss
        self.scaler.scale(minimised * self.processes.size).backward()
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def train_epoch(self, number: int, top1s: Sequence[float] = ()) -> Epoch:
        """One pass over the shuffled images, then over those held out."""
        self.net.train()
        torch.manual_seed(self.seed * 100_003 + number + 7_919 * self.processes.rank)
        steps = len(self.batches)
        total, images, waited, started = torch.zeros((), device=self.processes.device), 0, 0.0, time.perf_counter()
        batches = self.batches.epoch(number)
        hidden = None if self.processes.first else True  # else shown on a terminal
        for step in tqdm(range(steps), f"epoch {number}/{self.recipe.epochs}", leave=False, disable=hidden):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            rate = learning_rate(self.recipe, number - 1 + (step + 1) / steps, top1s)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self.step(batch) * batch.whole
            images += batch.whole
            if step % 20 == 0:  # on a GPU, to look is to wait
                self.check_finite(self.processes.sum(total.clone()), number)
        loss = float(self.processes.sum(total)) / images
        self.check_finite(total, number)
        seconds = time.perf_counter() - started
        return Epoch(
            epoch=number,
            loss=loss,
            top1=self.accuracy(),
            lr=rate,
            images_per_s=images / seconds,
            input_share=waited / seconds,
            seconds=time.perf_counter() - started,
        )

    def check_finite(self, total: Tensor, number: int) -> None:
        """DivergedError that says what to try, in all processes, if the sum of their losses is no number any more."""
        if not math.isfinite(float(total)):
            raise DivergedError(
                f"the loss became {float(total)} in epoch {number}; what was saved before is whole. Try a lower rate "
                f"(--set lr={self.recipe.lr / 10:g}), a longer warm-up (--set warmup_epochs="
                f"{self.recipe.warmup_epochs + 1:g}) or --set precision=fp32, with another --out"
            )

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of held-out images whose largest logit is their class, in the precision of training."""
        self.processes.share_buffers(self.net)
        self.net.eval()
        right = torch.zeros((), device=self.processes.device)
        shares = held_out_batches(
            self.held_out, self.held_out_source, self.recipe.batch, self.processes.rank, self.processes.size
        )
        for pixels, targets in shares:
            logits = self.outputs(self.net, pixels)
            assert isinstance(logits, Tensor)
            right += (logits.argmax(1).cpu() == targets).sum()
        return float(self.processes.sum(right)) / len(self.held_out)

    def epoch_minutes(self) -> float:
        """How long an epoch will take, by a few steps of a copy that is thrown away."""
        copied = copy.copy(self)
        copied.net = copied.model = copy.deepcopy(self.net).train()
        copied.optimizer = make_optimizer(self.recipe, copied.net)
        copied.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=self.recipe.precision == "fp16")
        source = self.batches.source
        seconds: list[float] = []
        started = time.perf_counter()
        for batch in islice(self.batches.epoch(1), source.ahead + TIMED_STEPS):
            float(copied.step(batch))
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > TIMED_SECONDS:
                break
            started = time.perf_counter()
        settled = seconds[source.ahead + 1 :] or seconds[-1:]
        # of a forward pass, a third of a step, unless decoding takes longer
        held_out_steps = len(self.held_out) / self.recipe.batch / (1 if source.ahead else 3)
        return statistics.median(settled) * (len(self.batches) + held_out_steps) / 60


def train(
    card: Architecture,
    data: DataSet,
    recipe: Recipe,
    out: Path,
    *,
    seed: int,
    resume: bool,
    processes: Processes,
    max_minutes: float | None = None,
    compiled: bool = False,
) -> Checkpoint:
    """Train an architecture and leave its checkpoint, after every epoch a whole one, in the folder `out`.

    With `resume`, goes on from what is there and ends as if never stopped: every random draw of an epoch comes
    from `seed` and the epoch's number. With `max_minutes`, trains as many of the recipe's epochs as will fit, one at
    least, its schedule drawn together. CheckpointError if `out` holds another run, or any without `resume`;
    DivergedError when the loss is no number.
    """
    if recipe.batch < processes.size:
        raise RecipeError(f"a batch of {recipe.batch} cannot be shared by {processes.size} processes: --set batch=…")
    torch.manual_seed(seed)
    entry = input_of(card, recipe, data)
    net = make_net(card, len(data.labels), recipe)
    trainer = Trainer(net, recipe, entry, data, seed, processes)
    latest = checkpoint.load(out) if (out / checkpoint.FILE).exists() else None
    if max_minutes:
        epochs_that_fit = latest.recipe.epochs if latest and latest.recipe else fitting(trainer, max_minutes)
        trainer.recipe = recipe = shortened(recipe, epochs_that_fit)
    title = f"{card.name} on {data.name}, seed {seed}"
    run = {
        "architecture": card.name,
        "dataset": data.name,
        "data": data.spec,
        "split": data.split,
        "labels": data.labels,
        "input": entry,
        "recipe": recipe,
        "seed": seed,
    }
    epochs: list[Epoch] = []
    if latest:
        check_same_run(latest, run, out, resume=resume)
        epochs = list(latest.epochs)
        if latest.done:
            leave(out, title, epochs, processes)
            say(processes, f"{out} has all its {recipe.epochs} epochs")
            return latest
        checkpoint.restore(out, latest, net)
        checkpoint.restore_optimizer(out, latest, trainer.optimizer, trainer.scaler)
    if compiled:
        trainer.model = torch.compile(trainer.model)

    for number in range(len(epochs) + 1, recipe.epochs + 1):
        epochs.append(trainer.train_epoch(number, [epoch.top1 for epoch in epochs]))
        unfinished = (trainer.optimizer, trainer.scaler) if number < recipe.epochs else None
        if processes.first:
            checkpoint.save(out, {**run, "epochs": epochs}, net, unfinished)
            write_log(out, epochs)
        say(processes, describe(card.name, epochs, recipe))
        processes.wait()
    leave(out, title, epochs, processes)
    return checkpoint.load(out)


def leave(out: Path, title: str, epochs: list[Epoch], processes: Processes) -> None:
    """Write the log and the curves of what is finished."""
    if processes.first:
        write_log(out, epochs)
        curves(title, epochs, out / CURVES)


def write_log(out: Path, epochs: list[Epoch]) -> None:
    """JSON lines, an epoch a line, all that the checkpoint knows of."""
    (out / LOG).write_text("".join(epoch.model_dump_json() + "\n" for epoch in epochs))


def fitting(trainer: Trainer, max_minutes: float) -> int:
    """How many of the recipe's epochs fit into `max_minutes`; at least one. All processes take the first one's word."""
    estimate = torch.tensor(
        trainer.epoch_minutes() if trainer.processes.first else 0.0, device=trainer.processes.device
    )
    minutes = float(trainer.processes.sum(estimate))
    return max(1, min(trainer.recipe.epochs, int(max_minutes / minutes)))


def say(processes: Processes, line: str) -> None:
    """Print, once for all processes."""
    if processes.first:
        print(line, flush=True)


def describe(name: str, epochs: list[Epoch], recipe: Recipe) -> str:
    """The line that an epoch leaves."""
    last = epochs[-1]
    left = sum(epoch.seconds for epoch in epochs) / len(epochs) * (recipe.epochs - last.epoch) / 60
    return (
        f"{name} epoch {last.epoch}/{recipe.epochs}: loss {last.loss:.4f}, held-out top-1 {last.top1:.2%},"
        f" {last.images_per_s:.0f} images/s, {left:.1f} minutes left"
    )


def check_same_run(latest: Checkpoint, run: dict[str, object], out: Path, *, resume: bool) -> None:
    """CheckpointError unless `latest` may be gone on with as `run`."""
    if not resume:
        raise CheckpointError(f"{out} holds a checkpoint: --resume goes on with it, --out names another folder")
    different = [key for key, value in run.items() if getattr(latest, key) != value]
    if different:
        raise CheckpointError(f"{out} holds a run with another {', '.join(different)}: --out names another folder")
