"""DenseNet: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", 2016, arXiv:1608.06993.

Table 1 for ImageNet, section 3 for CIFAR. "B" stands for bottlenecks of 4k maps, "C" for transitions that halve the
channels; plain networks have neither, and 16 maps after the stem. Module names are torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.card import Architecture, Paper, Weights, on_cifar10, single_crop
from models.layers import he_normal


class DenseLayer(nn.Sequential):
    """Dense layer: BN, ReLU, 1x1 of 4k, BN, ReLU, 3x3 of k (the growth); without bottleneck BN, ReLU, 3x3 of k."""

    def __init__(self, inputs: int, growth: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
            self.norm2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)


class DenseBlock(nn.ModuleDict):
    """Dense block: each layer's input is the block's input with the outputs of all earlier layers."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Transition(nn.Sequential):
    """Transition between dense blocks: BN, ReLU, 1x1, 2x2 mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


class DenseNet(nn.Module):
    """DenseNet: stem, dense blocks with transitions between them, BN, ReLU, mean, linear."""

    def __init__(
        self,
        classes: int,
        stem: OrderedDict[str, nn.Module],
        channels: int,
        growth: int,
        depths: Sequence[int],
        *,
        bc: bool,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(stem)
        for number, depth in enumerate(depths, 1):
            layers = [
                (f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth, bottleneck=bc)) for i in range(depth)
            ]
            self.features.add_module(f"denseblock{number}", DenseBlock(OrderedDict(layers)))
            channels += depth * growth
            if number < len(depths):
                outputs = channels // 2 if bc else channels
                self.features.add_module(f"transition{number}", Transition(channels, outputs))
                channels = outputs
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.features.add_module("relu5", nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224), on CIFAR (N, 3, 32, 32)
        x = self.features(x)  # (N, 1024, 7, 7), on CIFAR (N, ..., 8, 8)
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def imagenet_densenet(classes: int, growth: int, depths: Sequence[int]) -> nn.Module:
    """Return an ImageNet network. The stem is 7x7/2 of 2k, BN, ReLU, 3x3/2 max pool: 224 to 56 pixels."""
    stem: dict[str, nn.Module] = {
        "conv0": nn.Conv2d(3, 2 * growth, 7, 2, 3, bias=False),
        "norm0": nn.BatchNorm2d(2 * growth),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, 2, 1),
    }
    return DenseNet(classes, OrderedDict(stem), 2 * growth, growth, depths, bc=True)


def cifar_densenet(classes: int, depth: int, growth: int, *, bc: bool) -> nn.Module:
    """Return a CIFAR network of three blocks. The stem is a 3x3 of 16, or of 2k with bottlenecks."""
    channels = 2 * growth if bc else 16
    stem: dict[str, nn.Module] = {"conv0": nn.Conv2d(3, channels, 3, 1, 1, bias=False)}
    layers = (depth - 4) // (6 if bc else 3)
    return DenseNet(classes, OrderedDict(stem), channels, growth, (layers,) * 3, bc=bc)


variant = partial(
    Architecture,
    family="densenet",
    paper=Paper(
        title="Densely Connected Convolutional Networks",
        authors="G. Huang, Z. Liu, L. van der Maaten, K. Weinberger",
        year=2016,
        id="arXiv:1608.06993",
    ),
)
imagenet = partial(variant, input_shape=(3, 224, 224), classes=1000, smallest=29, small=64, recipe="facebook")
cifar = partial(variant, input_shape=(3, 32, 32), classes=10, smallest=4, small=32, recipe="densenet_cifar")
# The published weights have older names: "norm.1" for "norm1".
torchvision = partial(Weights, library="torchvision", rename=((r"\.(norm|conv)\.(\d)\.", r".\1\2."),))
table_3 = partial(single_crop, source="paper, Table 3")
readme = partial(on_cifar10, source="authors' README")

ARCHITECTURES = (
    imagenet(
        name="densenet121",
        build=partial(imagenet_densenet, growth=32, depths=(6, 12, 24, 16)),
        published=(single_crop(74.434, 91.972), table_3(74.98, 92.29)),
        weights=torchvision(model="densenet121"),
    ),
    imagenet(
        name="densenet161",
        build=partial(imagenet_densenet, growth=48, depths=(6, 12, 36, 24)),
        published=(single_crop(77.138, 93.56),),
        weights=torchvision(model="densenet161"),
    ),
    imagenet(
        name="densenet169",
        build=partial(imagenet_densenet, growth=32, depths=(6, 12, 32, 32)),
        published=(single_crop(75.6, 92.806), table_3(76.2, 93.15)),
        weights=torchvision(model="densenet169"),
    ),
    imagenet(
        name="densenet201",
        build=partial(imagenet_densenet, growth=32, depths=(6, 12, 48, 32)),
        published=(single_crop(76.896, 93.37), table_3(77.42, 93.66)),
        weights=torchvision(model="densenet201"),
    ),
    imagenet(
        name="densenet264",
        build=partial(imagenet_densenet, growth=32, depths=(6, 12, 64, 48)),
        published=(table_3(77.85, 93.88),),
    ),
    cifar(
        name="densenet_bc_100_12",
        build=partial(cifar_densenet, depth=100, growth=12, bc=True),
        published=(readme(95.49),),
    ),
    cifar(
        name="densenet_bc_190_40",
        build=partial(cifar_densenet, depth=190, growth=40, bc=True),
        published=(readme(96.54),),
    ),
    cifar(
        name="densenet_40_12",
        build=partial(cifar_densenet, depth=40, growth=12, bc=False),
        published=(readme(94.76),),
    ),
    cifar(
        name="densenet_100_24",
        build=partial(cifar_densenet, depth=100, growth=24, bc=False),
        published=(readme(96.26),),
    ),
    cifar(
        name="densenet_bc_250_24",
        build=partial(cifar_densenet, depth=250, growth=24, bc=True),
        published=(readme(96.38),),
    ),
)
