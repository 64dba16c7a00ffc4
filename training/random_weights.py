"""Random weights as a checkpoint: to time a network before its weights exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engines.published.preprocess import Preprocess
from engines.runtimes.torch import FromPixels, Normalise
from models.card import Architecture
from models.zoo import ZOO
from training import checkpoint
from training.checkpoint import Checkpoint, Imported
from training.data import sample_pixels
from training.errors import CheckpointError
from training.input import Input

DATA = "random"  # name of the data set, and so part of the tag: resnet50:random-1a2b3c4d
IMAGES = 8  # pictures that settle the batch norms
SMALL = 64  # pixels: larger inputs are photos, which lose an eighth at the edges


def random_input(card: Architecture) -> Input:
    """Return the input of a network with random weights: the paper's size, and each channel from -1 to 1."""
    channels, edge, _ = card.input_shape
    preprocess = Preprocess(
        mode="L" if channels == 1 else "RGB", resize_edge=round(edge / 0.875) if edge > SMALL else edge, crop=edge
    )
    return Input(preprocess=preprocess, mean=(0.5,) * channels, std=(0.5,) * channels)


def random_checkpoint(name: str, out: Path) -> Checkpoint:
    """Make a checkpoint of the architecture `name` with random weights, the same each time, and the paper's classes.

    The biases of batch norms are 1, so that most activations pass the ReLU after them. With biases of 0 a rounding
    error grows by each layer: preact_resnet200's logits in fp32 and in double precision then differ by 1e-4 of the
    largest logit, with biases of 1 by 1e-6; and senet154's in fp32 by torch and by OpenVINO by 0.4.
    Raises CheckpointError if `out` holds a checkpoint.
    """
    if (out / checkpoint.FILE).exists():
        raise CheckpointError(f"{out} holds a checkpoint: --out names another folder")
    card, network_input = ZOO[name], random_input(ZOO[name])
    torch.manual_seed(0)
    net = card.build(card.classes)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.bias)
    settle(
        FromPixels(net, Normalise(network_input.mean, network_input.std)),
        sample_pixels(network_input.preprocess)[:IMAGES],
    )
    fields = {
        "architecture": name,
        "dataset": DATA,
        "data": "imagenet",
        "split": "none",
        "labels": tuple(f"class {index}" for index in range(card.classes)),
        "input": network_input,
        "imported": Imported(
            library=DATA, name="random weights", licence="none", source="torch's seed 0", top1=None, top5=None
        ),
        "epochs": (),
    }
    return checkpoint.save(out, fields, net, None)


@torch.no_grad()
def settle(module: FromPixels, pixels: NDArray[np.uint8]) -> None:
    """Set the statistics of batch norms to those of `pixels`, (N, height, width, channels).

    With the initial statistics, the activations of deep networks overflow.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    module.train().net(module.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    module.eval()
