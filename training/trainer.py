"""Trainer of one network: losses, optimizers, schedules, and an epoch's steps."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

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
from training.average import Average
from training.batches import Batch, Source, TrainingBatches, held_out_batches
from training.checkpoint import Epoch
from training.data import DataSet
from training.errors import DivergedError, RecipeError
from training.input import Input
from training.losses import LOSSES, balanced_weights, divergence
from training.mixing import Mixing
from training.parts import resting
from training.processes import Processes
from training.recipes import Recipe
from training.schedule import learning_rate
from training.teacher import Teacher

TIMED_STEPS = 4  # The first of them is a warm-up.
TIMED_SECONDS = 30


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
    decay = recipe.weight_decay
    parameters = groups(net, decay=recipe.norm_decay)
    if recipe.optimizer == "adamw":
        return AdamW(parameters, lr=recipe.lr, weight_decay=decay, fused=True)
    if recipe.optimizer == "rmsprop":  # "decay of 0.9 and epsilon = 1.0" (Inception v3's paper, section 8)
        return RMSprop(parameters, recipe.lr, alpha=0.9, eps=1, weight_decay=decay, momentum=recipe.momentum)
    nesterov = recipe.optimizer == "nesterov"
    # Fused SGD fails if a weight receives its first gradient later than other weights (torch 2.14).
    fused = not drops_blocks(net)
    return SGD(parameters, recipe.lr, recipe.momentum, weight_decay=decay, nesterov=nesterov, fused=fused)


def groups(net: nn.Module, *, decay: bool) -> list[dict[str, Any]]:
    """Return the trained weights of a network in groups for an optimizer; batch norms apart if they do not decay."""
    norms = {
        id(weight)
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d) and not decay
        for weight in module.parameters()
    }
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    without = [weight for weight in trained if id(weight) in norms]
    rest = [weight for weight in trained if id(weight) not in norms]
    return [{"params": rest}, *([{"params": without, "weight_decay": 0}] if without else [])]


def drops_blocks(net: nn.Module) -> bool:
    """Return True if a step can leave weights without a gradient, as stochastic depth does."""
    return any(isinstance(module, StochasticBlock) for module in net.modules())


Network = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


class PreparedData:
    """Data of one process: batches of a data set's training images, its held-out images, and their normalisation."""

    def __init__(self, data: DataSet, recipe: Recipe, network_input: Input, seed: int, processes: Processes) -> None:
        device = processes.device
        self.batches = TrainingBatches(data.train, recipe, network_input, seed, processes.rank, processes.size, device)
        self.held_out, self.held_out_source = data.held_out, Source(data.held_out, network_input, device=device)
        self.normalise = Normalise(network_input.mean, network_input.std).to(device)
        self.classes = len(data.labels)
        self.class_weights = balanced_weights(data.train.targets, self.classes) if recipe.balanced else None


class Trainer:
    """Network in a phase of its training: its optimizer and its data, in one process of `processes`.

    `recipe` is the phase's, which begins after `start` epochs. Weights that are not to be trained have been frozen. A
    `compiled` network is faster, after minutes of compilation.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        data: PreparedData,
        processes: Processes,
        *,
        start: int = 0,
        teacher: Teacher | None = None,
        compiled: bool = False,
    ) -> None:
        # Some of CUDA's kernels have no deterministic form.
        torch.use_deterministic_algorithms(True, warn_only=processes.device.type == "cuda")
        # Filling memory would cost a kernel for every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.recipe, self.data, self.processes, self.start = recipe, data, processes, start
        self.net = net.to(processes.device)
        self.resting = resting(self.net)
        self.teacher = teacher.to(processes.device) if teacher else None
        self.mixing = Mixing(recipe, data.classes)
        weights = data.class_weights
        self.class_weights = None if weights is None else weights.to(processes.device)
        self.average = Average(self.net, recipe.ema * recipe.epochs * len(data.batches)) if recipe.ema else None
        self.model: Network = self.net
        self.unshared: Callable[[], AbstractContextManager[None]] = nullcontext  # keeps gradients in the process
        if processes.size > 1:
            dropping = drops_blocks(self.net)
            parallel = DistributedDataParallel(self.net, find_unused_parameters=dropping, broadcast_buffers=False)
            self.model = parallel
            if not dropping:  # Of dropped blocks, all parts' gradients are shared: the last part may not use a weight.
                self.unshared = parallel.no_sync
        if compiled:
            self.model = torch.compile(self.model, mode=self.mode_of_compilation())
        self.optimizer = make_optimizer(recipe, self.net)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.precision == "fp16")

    @property
    def measured(self) -> nn.Module:
        """Network that is measured and saved: the average, if the recipe wants one, else the one in training."""
        return self.average.net if self.average else self.net

    def mode_of_compilation(self) -> str | None:
        """Return torch.compile's mode: CUDA graphs of whole passes, where every step is alike and its own."""
        alike = self.processes.device.type == "cuda" and self.processes.size == 1 and not drops_blocks(self.net)
        return "reduce-overhead" if alike and self.recipe.accumulate == 1 else None

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels, (N, channels, height, width), on the device, normalised."""
        normalised: Tensor = self.data.normalise(pixels.to(self.processes.device, non_blocking=True))
        return normalised

    def outputs(self, model: Network, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits of normalised images, computed in the precision of training.

        A network with auxiliary heads returns a tuple in training: its own logits, then the heads'.
        """
        precision = DTYPES[self.recipe.precision]
        with torch.autocast(self.processes.device.type, precision, enabled=precision != torch.float32):
            return model(images.contiguous(memory_format=torch.channels_last))

    def loss(self, images: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and the loss without auxiliary heads, of a part of a batch of `whole` images.

        Both are the part's share of the mean over the whole batch.
        """
        outputs = self.outputs(self.model, images)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        share, recipe, weights = len(targets) / whole, self.recipe, self.class_weights
        criterion = partial(LOSSES[recipe.loss], label_smoothing=recipe.label_smoothing, weight=weights)
        loss, *others = (share * criterion(head.float(), targets) for head in heads)
        if self.teacher:
            taught = self.outputs(self.teacher, images)
            assert isinstance(taught, Tensor)
            apart = share * divergence(heads[0].float(), taught.float(), recipe.temperature)
            loss = (1 - recipe.distil) * loss + recipe.distil * apart
        return loss + recipe.auxiliary * sum(others), loss

    def parts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and targets of the parts of a batch that are computed one after another, mixed beforehand."""
        targets = batch.targets.to(self.processes.device, non_blocking=True)
        images, targets = self.mixing(self.inputs(batch.pixels), targets)
        if self.class_weights is not None and not targets.is_floating_point():
            # The loss by shares of classes is divided by images, not by their weights, so that parts add up.
            targets = F.one_hot(targets, self.data.classes).float()
        parts = self.recipe.accumulate
        yield from zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)

    def step(self, batch: Batch) -> Tensor:
        """Run one step of the optimizer, and return this process's part of the batch's loss."""
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.processes.device)
        for number, (images, targets) in enumerate(self.parts(batch), 1):
            # Processes exchange their gradients once a step, with the last part's.
            with nullcontext() if number == self.recipe.accumulate else self.unshared():
                minimised, loss = self.loss(images, targets, batch.whole)
                # DistributedDataParallel averages over processes, but the batch's loss is the sum of their parts.
                self.scaler.scale(minimised * self.processes.size).backward()
            total += loss.detach()
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        return total

    def to_training(self) -> None:
        """Switch the network to training, all but the layers that are frozen."""
        self.net.train()
        for module in self.resting:
            module.eval()

    def train_epoch(self, number: int, top1s: Sequence[float] = ()) -> Epoch:
        """Train on every image once, in random order, then measure top-1 on the held-out images.

        Epochs are numbered from 1 in the first phase. `top1s` holds the top-1 of the phase's earlier epochs. Raises
        DivergedError if the loss is NaN or infinite.
        """
        self.to_training()
        torch.manual_seed(self.data.batches.seed * 100_003 + number + 7_919 * self.processes.rank)
        steps = len(self.data.batches)
        total, images, waited, started = torch.zeros((), device=self.processes.device), 0, 0.0, time.perf_counter()
        batches = self.data.batches.epoch(number)
        disable = None if self.processes.first else True  # None shows the progress bar on a terminal only.
        title = f"epoch {number}/{self.start + self.recipe.epochs}"
        for step in tqdm(range(steps), title, leave=False, disable=disable):
            wait_started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - wait_started
            rate = learning_rate(self.recipe, number - self.start - 1 + (step + 1) / steps, top1s)
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
        for net in dict.fromkeys((self.net, self.measured)):
            self.processes.share_buffers(net)
        self.measured.eval()
        right = torch.zeros((), device=self.processes.device)
        held_out, processes = self.data.held_out, self.processes
        for pixels, targets in held_out_batches(
            held_out, self.data.held_out_source, self.recipe.batch, processes.rank, processes.size
        ):
            logits = self.outputs(self.measured, self.inputs(pixels))
            assert isinstance(logits, Tensor)
            right += (logits.argmax(1) == targets.to(logits.device, non_blocking=True)).sum()
        return float(self.processes.sum(right)) / len(held_out)

    def epoch_seconds(self) -> float:
        """Return the expected seconds of an epoch with its held-out images. The timed steps change the weights.

        An epoch of few steps is timed whole, a longer one from its first steps.
        """
        batches = self.data.batches
        ahead = batches.source.ahead
        if len(batches) <= ahead + TIMED_STEPS:
            return self.train_epoch(self.start + 1).seconds
        self.to_training()
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
