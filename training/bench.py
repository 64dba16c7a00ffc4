"""Benchmark of this training loop and of torchvision's reference loop, in turn, each in its own process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from engines import markdown
from models.zoo import ZOO
from training.data import DataSet, Images, load
from training.errors import TrainingError
from training.input import Input, input_of
from training.processes import Processes
from training.recipes import Recipe, override, recipe_of
from training.trainer import PreparedData, Trainer, make_net

LOOPS = ("reference fp32", "ours fp32", "ours bf16")


class LoopSpeed(NamedTuple):
    """Speed of one loop: images/s, share of time waiting for pixels (0 to 1), peak memory of its process in MB."""

    images_per_s: float
    input_share: float
    peak_mb: float


class Pictures(Dataset[tuple[Tensor, int]]):
    """Data set of single images and targets, as torchvision's data sets are."""

    def __init__(self, images: Images, transform: transforms.Compose) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.pictures[index]), int(self.images.targets[index])


def reference(net: nn.Module, recipe: Recipe, network_input: Input, images: Images) -> LoopSpeed:
    """Run the loop of torchvision's references/classification: DataLoader, fp32, SGD, meters in every step."""
    edge = network_input.preprocess.crop + 2 * network_input.preprocess.pad
    changes = [
        transforms.Grayscale(len(network_input.mean)),
        transforms.Resize((edge, edge)),
        transforms.RandomCrop(edge, padding=recipe.shift),
        *([transforms.RandomHorizontalFlip()] if recipe.flip else []),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(network_input.mean, network_input.std),
    ]
    loader = DataLoader(
        Pictures(images, transforms.Compose(changes)),
        batch_size=recipe.batch,
        shuffle=True,
        num_workers=torch.get_num_threads(),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    net.train()
    for _ in range(2):  # The first pass is a warm-up.
        batches = iter(loader)
        batch = next(batches)  # The first batch is not timed, as workers have to start.
        waited, started = 0.0, time.perf_counter()
        while batch is not None:
            pixels, targets = batch
            outputs = net(pixels)
            loss = criterion(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            outputs.topk(5).indices.eq(targets[:, None]).sum(0).tolist()
            wait_started = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - wait_started
        seconds = time.perf_counter() - started
    return LoopSpeed(len(images) / seconds, waited / seconds, peak_mb())


def ours(net: nn.Module, recipe: Recipe, network_input: Input, data: DataSet) -> LoopSpeed:
    """Run the loop of `training.trainer`."""
    alone = Processes(0, 1, torch.device("cpu"))
    trainer = Trainer(net, recipe, PreparedData(data, recipe, network_input, 0, alone), alone)
    trainer.train_epoch(1)  # The first epoch is a warm-up.
    epoch = trainer.train_epoch(2)
    return LoopSpeed(epoch.images_per_s, epoch.input_share, peak_mb())


def peak_mb() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def measure(name: str, loop: str, steps: int) -> LoopSpeed:
    """Measure a loop over `steps` steps of mnist5k, with the quick recipe's image size and batch."""
    card, data = ZOO[name], load("mnist5k")
    kind, precision = loop.split()
    same = {"optimizer": "sgd", "lr": "1e-3", "weight_decay": "1e-4", "precision": precision}
    recipe = override(recipe_of(card, data, "quick"), same)
    count = min(len(data.train), steps * recipe.batch)
    data = replace(data, train=first(data.train, count), held_out=first(data.held_out, recipe.batch))
    network_input = input_of(card, recipe, data)
    if kind == "reference":
        return reference(card.build(len(data.labels)), recipe, network_input, data.train)
    return ours(make_net(card, len(data.labels), recipe), recipe, network_input, data)


def first(images: Images, count: int) -> Images:
    """Return the first `count` images."""
    return Images(pictures=images.pictures, targets=images.targets[:count])


def bench(names: list[str], rounds: int, steps: int) -> str:
    """Return medians over `rounds` as a Markdown table; every loop runs once in each round."""
    speeds_of: dict[tuple[str, str], list[LoopSpeed]] = {}
    for _ in tqdm(range(rounds), "rounds"):
        for name in names:
            for loop in LOOPS:
                command = [sys.executable, "-m", "training.bench", name, loop, str(steps)]
                done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
                if done.returncode:
                    *_, reason = f"ended with status {done.returncode}\n{done.stderr}".splitlines()
                    raise TrainingError(f"{name}, {loop}: {reason}")
                speeds_of.setdefault((name, loop), []).append(LoopSpeed(*json.loads(done.stdout)))
    head = "network", "loop", "images/s", "against the reference", "waiting for pixels", "peak memory, MB"
    rows = []
    for (name, loop), speeds in speeds_of.items():
        ratios = [
            speed.images_per_s / reference.images_per_s
            for speed, reference in zip(speeds, speeds_of[name, LOOPS[0]], strict=True)
        ]
        rate, share, memory = (median(values) for values in zip(*speeds, strict=True))
        rows.append((f"`{name}`", loop, f"{rate:.0f}", f"{median(ratios):.2f}", f"{share:.1%}", f"{memory:.0f}"))
    return markdown.table(head, rows, right=(2, 3, 4, 5))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
