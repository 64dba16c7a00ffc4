"""Network in Network: Lin, Chen, Yan, "Network In Network", 2013, arXiv:1312.4400, Figure 2.

The paper prints no widths: `nin_cifar10` and `nin_imagenet` follow the author's own Caffe definitions. An mlpconv is a
convolution and two 1x1, a ReLU after each, even after the last, whose maps are the classes. Pools round up, as in
Caffe.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from models.card import Architecture, Paper, Published
from models.layers import ConvReLU, he_normal


def mlpconv(
    inputs: int, widths: tuple[int, int, int], kernel: int, stride: int = 1, padding: int | None = None
) -> nn.Module:
    """Return an mlpconv: convolution, ReLU, 1x1, ReLU, 1x1, ReLU (Figure 1b)."""
    return nn.Sequential(
        ConvReLU(inputs, widths[0], kernel, stride, padding),
        ConvReLU(widths[0], widths[1], 1),
        ConvReLU(widths[1], widths[2], 1),
    )


class NiN(nn.Sequential):
    """Network in Network: mlpconvs with pools and dropout between them, mean of each class's map."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        he_normal(self)


def nin_cifar10(classes: int) -> nn.Module:
    """Return the CIFAR-10 network; maps are 32, 16 and 8 pixels wide."""
    return NiN(
        mlpconv(3, (192, 160, 96), 5),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)),
        mlpconv(96, (192, 192, 192), 5),
        *(nn.AvgPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)),
        mlpconv(192, (192, 192, classes), 3),
    )


def nin_imagenet(classes: int) -> nn.Module:
    """Return the ImageNet network; maps are 54, 27, 13 and 6 pixels wide."""
    return NiN(
        mlpconv(3, (96, 96, 96), 11, stride=4, padding=0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        mlpconv(96, (256, 256, 256), 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        mlpconv(256, (384, 384, 384), 3),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)),
        mlpconv(384, (1024, 1024, classes), 3),
    )


variant = partial(
    Architecture,
    family="nin",
    paper=Paper(title="Network In Network", authors="M. Lin, Q. Chen, S. Yan", year=2013, id="arXiv:1312.4400"),
)

ARCHITECTURES = (
    variant(
        name="nin_cifar10",
        input_shape=(3, 32, 32),
        classes=10,
        smallest=4,
        small=32,
        build=nin_cifar10,
        recipe="nin_cifar",
        published=(
            Published(data="CIFAR-10", top1=91.19, protocol="test, with augmentation", source="paper, Table 1"),
            Published(data="CIFAR-10", top1=89.59, protocol="test, without augmentation", source="paper, Table 1"),
        ),
    ),
    variant(
        name="nin_imagenet",
        input_shape=(3, 224, 224),
        classes=1000,
        smallest=39,
        small=96,
        build=nin_imagenet,
        recipe="nin_imagenet",
        published=(
            Published(data="ImageNet", top1=59.36, protocol="validation, one 224 crop", source="author's README"),
        ),
    ),
)
