"""Stochastic depth: Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth", 2016, arXiv:1603.09382.

ResNet-110 whose blocks are dropped at random in training, each with its own probability, a whole mini-batch at a time
(equations 2 to 5). As in the authors' code, the shortcut that changes shape averages 2x2 pixels and pads channels at
the end; unlike there, convolutions have no bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.card import Architecture, Paper, on_cifar10
from models.residual import BasicBlock, Block, ResNet, Shortcut, cifar_stem


class AverageOptionA(nn.Module):
    """Shortcut without parameters: s x s mean, over fewer pixels at odd edges, and zeros for new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride, ceil_mode=True)
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.new_channels))


class StochasticBlock(BasicBlock):
    """Block relu(b * residual(x) + x): b is 1 with probability `survival`, else 0; in inference b is `survival`."""

    def __init__(self, inputs: int, planes: int, stride: int, shortcut: Shortcut = AverageOptionA) -> None:
        super().__init__(inputs, planes, stride, shortcut)
        self.survival = 1.0

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        if not self.training:
            return F.relu(self.survival * self.residual(x) + shortcut)
        if torch.rand(()) < self.survival:
            return F.relu(self.residual(x) + shortcut)
        return F.relu(shortcut)


class StochasticDepthResNet(ResNet):
    """ResNet whose survival falls linearly, from 1 at the input to `last` at the last block (equation 4)."""

    def __init__(self, classes: int, depths: Sequence[int], last: float, block: Block = StochasticBlock) -> None:
        super().__init__(classes, block, depths, cifar_stem, planes=16)
        self.survive(last)

    def survive(self, last: float) -> None:
        """Set every block's probability of survival from the last block's."""
        blocks = [module for module in self.modules() if isinstance(module, StochasticBlock)]
        for number, module in enumerate(blocks, 1):
            module.survival = 1 - number / len(blocks) * (1 - last)


ARCHITECTURES = (
    Architecture(
        name="resnet110_sd",
        family="stochastic_depth",
        paper=Paper(
            title="Deep Networks with Stochastic Depth",
            authors="G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger",
            year=2016,
            id="arXiv:1603.09382",
        ),
        input_shape=(3, 32, 32),
        classes=10,
        smallest=1,
        small=32,
        build=partial(StochasticDepthResNet, depths=(18, 18, 18), last=0.5),
        recipe="stochastic_depth",
        published=(on_cifar10(94.75, "authors' README"),),
    ),
)
