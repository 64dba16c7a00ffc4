"""Trainings that take seconds: few images, one process, few epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import skimage.data
import torch
from PIL import Image

from models.zoo import ZOO
from training.data import Arrays, DataSet, Images
from training.input import input_of
from training.processes import Processes
from training.recipes import Recipe
from training.trainer import PreparedData, Trainer, make_net

ALONE = Processes(0, 1, torch.device("cpu"))


def few(digits: DataSet, images: int) -> DataSet:
    """Return the first images of every class, the same to train on and held out."""
    assert isinstance(digits.train.pictures, Arrays)
    step = len(digits.train) // images
    part = Images(pictures=Arrays(digits.train.pictures.array[::step]), targets=digits.train.targets[::step])
    return replace(digits, train=part, held_out=part)


def trainer(name: str, recipe: Recipe, data: DataSet) -> Trainer:
    """Return a trainer of an architecture's network for ten classes, with seed 0."""
    torch.manual_seed(0)
    net = make_net(ZOO[name], 10, recipe)
    prepared = PreparedData(data, recipe, input_of(ZOO[name], recipe, data), 0, ALONE)
    return Trainer(net, recipe, prepared, ALONE)


def arguments(out: Path, *more: str) -> list[str]:
    """Return the command that trains lenet5 for two epochs into the folder `out`."""
    return ["training", "lenet5", "--epochs", "2", "--seed", "3", "--out", str(out), *more]


def pictures(root: Path) -> None:
    """Write a folder of photos for each of two classes, six pictures each."""
    for label, name in (("cat", "chelsea"), ("cup", "coffee")):
        (root / label).mkdir(parents=True)
        for number in range(6):
            picture = Image.fromarray(getattr(skimage.data, name)()).resize((40 + number, 40))
            picture.save(root / label / f"{number}.png")
