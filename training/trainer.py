"""Trainer of one network: losses, optimizers, schedules, and an epoch's steps."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from tqdm import tqdm

from engines.runtimes.torch import DTYPES, Normalise
from models.card import Architecture
from models.residual import ResidualBlock
from models.stochastic_depth import StochasticBlock, StochasticDepthResNet
from training.batches import Batch, Source, TrainingBatches, held_out_batches
from training.checkpoint import Epoch
from training.data import DataSet
from training.errors import DivergedError, RecipeError
from training.input import Input
from training.processes import Processes
from training.recipes import Recipe

TIMED_STEPS = 4  # The first of them is a warm-up.
TIMED_SECONDS = 30


def map_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0) -> Tensor:
    """Return the maximum a posteriori loss (LeCun et al. 1998, equation 9): a "rubbish" class at the distance j.

    The paper states no value for j. Here j is the distance of a code with a tenth of its 84 pixels flipped, 4 each.
    """
    j = 4 * 84 / 10
    rubbish = logits.new_full((len(logits), 1), -j)
    return F.cross_entropy(torch.cat([logits, rubbish], dim=1), targets, label_smoothing=label_smoothing)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "map": map_loss}


def make_net(card: Architecture, classes: int, recipe: Recipe) -> nn.Module:
    """Build a network whose initial weights, dropout and survival of blocks follow the recipe.

    Raises RecipeError if the architecture does not support the recipe.
    """
    try:
        net = card.build(classes)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    modules = dict(net.named_modules())
    for layer in recipe.init_ones:
        if layer not in modules:
            raise RecipeError(f"init_ones: {card.name} has no layer {layer}")
    if recipe.zero_init_residual:
        blocks = [module for module in modules.values() if isinstance(module, ResidualBlock)]
        if not blocks:
            raise RecipeError(f"zero_init_residual: {card.name} has no residual blocks that end with batch norm")
        for block in blocks:
            nn.init.zeros_(block.last_norm.weight)
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


def check_trains_on_one(card: Architecture, network_input: Input) -> None:
    """Raise RecipeError if the network cannot be trained on one image a step, for want of a variance to normalise."""
    height, width, channels = network_input.preprocess.shape
    with torch.device("meta"):  # shapes only
        net, pixels = card.build(10), torch.empty(1, channels, height, width)
    try:
        net.train()(pixels)
    except ValueError as error:
        raise RecipeError(
            f"batch: {card.name} has batch norm, which cannot normalise one value: a step needs two images in each "
            "process, --set batch=2 or more, or larger pictures, --set edge=…"
        ) from error


def make_optimizer(recipe: Recipe, net: nn.Module) -> Optimizer:
    """Return the recipe's optimizer; "nesterov" is SGD with Nesterov's momentum."""
    parameters, decay = net.parameters(), recipe.weight_decay
    if recipe.optimizer == "adamw":
        return AdamW(parameters, lr=recipe.lr, weight_decay=decay, fused=True)
    if recipe.optimizer == "rmsprop":  # "decay of 0.9 and epsilon = 1.0" (Inception v3's paper, section 8)
        return RMSprop(parameters, recipe.lr, alpha=0.9, eps=1, weight_decay=decay, momentum=recipe.momentum)
    nesterov = recipe.optimizer == "nesterov"
    # Fused SGD fails if a weight receives its first gradient later than other weights (torch 2.14).
    fused = not drops_blocks(net)
    return SGD(parameters, recipe.lr, recipe.momentum, weight_decay=decay, nesterov=nesterov, fused=fused)


def drops_blocks(net: nn.Module) -> bool:
    """Return True if a step can leave weights without a gradient, as stochastic depth does."""
    return any(isinstance(module, StochasticBlock) for module in net.modules())


def learning_rate(recipe: Recipe, epoch: float, top1s: Sequence[float] = ()) -> float:
    """Return the learning rate at a time in epochs, which may be fractional.

    `top1s` holds the held-out top-1 of each earlier epoch; only the schedule "plateau" uses them.
    """
    if epoch <= recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    progress = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    match recipe.schedule:
        case "cosine":
            return recipe.lr * (1 + math.cos(math.pi * progress)) / 2
        case "steps":
            return recipe.lr * float(recipe.factor ** sum(epoch > drop * recipe.epochs for drop in recipe.drops))
        case "exponential":
            return recipe.lr * float(recipe.factor ** (epoch - recipe.warmup_epochs))
        case "plateau":
            return recipe.lr * float(recipe.factor ** min(recipe.falls, plateaus(top1s, recipe.patience)))


def plateaus(top1s: Sequence[float], patience: int) -> int:
    """Count the plateaus: runs of `patience` epochs without a new best top-1."""
    count, best, since_best = 0, -1.0, 0
    for top1 in top1s:
        best, since_best = (top1, 0) if top1 > best else (best, since_best + 1)
        if since_best == patience:
            count, since_best = count + 1, 0
    return count


Network = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


class PreparedData:
    """Data of one process: batches of a data set's training images, its held-out images, and their normalisation."""

    def __init__(self, data: DataSet, recipe: Recipe, network_input: Input, seed: int, processes: Processes) -> None:
        self.batches = TrainingBatches(data.train, recipe, network_input, seed, processes.rank, processes.size)
        self.held_out, self.held_out_source = data.held_out, Source(data.held_out, network_input)
        self.normalise = Normalise(network_input.mean, network_input.std).to(processes.device)


class Trainer:
    """Network in training: its optimizer and its data, in one process of `processes`."""

    def __init__(self, net: nn.Module, recipe: Recipe, data: PreparedData, processes: Processes) -> None:
        # Some of CUDA's kernels have no deterministic form.
        torch.use_deterministic_algorithms(True, warn_only=processes.device.type == "cuda")
        # Filling memory would cost a kernel for every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.recipe, self.data, self.processes = recipe, data, processes
        self.net = net.to(processes.device)
        self.model: Network = self.net
        if processes.size > 1:
            self.model = DistributedDataParallel(
                self.net, find_unused_parameters=drops_blocks(net), broadcast_buffers=False
            )
        self.optimizer = make_optimizer(recipe, self.net)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.precision == "fp16")

    def outputs(self, model: Network, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits of uint8 pixels, (N, channels, height, width), computed in the precision of training.

        A network with auxiliary heads returns a tuple in training: its own logits, then the heads'.
        """
        normalised = self.data.normalise(pixels.to(self.processes.device, non_blocking=True))
        precision = DTYPES[self.recipe.precision]
        with torch.autocast(self.processes.device.type, precision, enabled=precision != torch.float32):
            return model(normalised.contiguous(memory_format=torch.channels_last))

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and the loss without auxiliary heads.

        Both are this process's part of the mean over the whole batch.
        """
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
        """Run one step of the optimizer, and return this process's part of the batch's loss."""
        minimised, loss = self.loss(batch)
        self.optimizer.zero_grad()
        # DistributedDataParallel averages over processes, but the batch's loss is the sum of the processes' parts.
        self.scaler.scale(minimised * self.processes.size).backward()
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def train_epoch(self, number: int, top1s: Sequence[float] = ()) -> Epoch:
        """Train on every image once, in random order, then measure top-1 on the held-out images.

        `top1s` holds the top-1 of the earlier epochs. Raises DivergedError if the loss is NaN or infinite.
        """
        self.net.train()
        torch.manual_seed(self.data.batches.seed * 100_003 + number + 7_919 * self.processes.rank)
        steps = len(self.data.batches)
        total, images, waited, started = torch.zeros((), device=self.processes.device), 0, 0.0, time.perf_counter()
        batches = self.data.batches.epoch(number)
        disable = None if self.processes.first else True  # None shows the progress bar on a terminal only.
        for step in tqdm(range(steps), f"epoch {number}/{self.recipe.epochs}", leave=False, disable=disable):
            wait_started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - wait_started
            rate = learning_rate(self.recipe, number - 1 + (step + 1) / steps, top1s)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self.step(batch) * batch.whole
            images += batch.whole
            if step % 20 == 0:  # Reading a GPU's value waits for the GPU.
                self.check_finite(self.processes.sum(total.clone()), number)
        self.processes.sum(total)
        self.check_finite(total, number)
        loss = float(total) / images
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
        """Raise DivergedError, in all processes, if the sum of their losses is NaN or infinite."""
        if not math.isfinite(float(total)):
            raise DivergedError(
                f"the loss became {float(total)} in epoch {number}; the last saved checkpoint is intact. Try a lower "
                f"rate (--set lr={self.recipe.lr / 10:g}), a longer warm-up (--set warmup_epochs="
                f"{self.recipe.warmup_epochs + 1:g}) or --set precision=fp32, with another --out"
            )

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return top-1 (0 to 1) on the held-out images of all processes, in the precision of training."""
        self.processes.share_buffers(self.net)
        self.net.eval()
        right = torch.zeros((), device=self.processes.device)
        held_out, processes = self.data.held_out, self.processes
        for pixels, targets in held_out_batches(
            held_out, self.data.held_out_source, self.recipe.batch, processes.rank, processes.size
        ):
            logits = self.outputs(self.net, pixels)
            assert isinstance(logits, Tensor)
            right += (logits.argmax(1).cpu() == targets).sum()
        return float(self.processes.sum(right)) / len(held_out)

    def epoch_seconds(self) -> float:
        """Return the expected seconds of an epoch with its held-out images. The timed steps change the weights.

        An epoch of few steps is timed whole, a longer one from its first steps.
        """
        batches = self.data.batches
        ahead = batches.source.ahead
        if len(batches) <= ahead + TIMED_STEPS:
            return self.train_epoch(1).seconds
        self.net.train()
        seconds: list[float] = []
        started = time.perf_counter()
        for batch in islice(batches.epoch(1), ahead + TIMED_STEPS):
            float(self.step(batch))
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > TIMED_SECONDS:
                break
            started = time.perf_counter()
        settled = statistics.median(seconds[ahead + 1 :] or seconds[-1:])
        # A forward pass takes a third of a step, unless decoding takes longer. Workers start anew for both halves.
        held_out_steps = len(self.data.held_out) / self.recipe.batch / (1 if ahead else 3)
        starts = 2 * max(0.0, seconds[0] - settled) if ahead else 0.0
        return settled * (len(batches) + held_out_steps) + starts
