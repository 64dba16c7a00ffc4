"""Inception v2: Ioffe, Szegedy, "Batch Normalization", 2015, arXiv:1502.03167, Figure 5.

The pool projections of 4c and 4d are 96 wide, which makes the figure's widths agree (Caffe's ports have 128:
`projection`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from torch import nn

from models.card import Architecture, Paper, Published, single_crop
from models.layers import Classifier, Concat, ConvBN, chain

# Figure 5: #1x1; #3x3 reduce, #3x3; double #3x3 reduce, double #3x3; pool; 0s where the map size is halved.
# A pool projection of None is 96 wide in the paper's network, 128 in Caffe's ports.
MODULES: dict[str, tuple[int, int, int, int, int, Literal["avg", "max"], int | None]] = {
    "3a": (64, 64, 64, 64, 96, "avg", 32),
    "3b": (64, 64, 96, 64, 96, "avg", 64),
    "3c": (0, 128, 160, 64, 96, "max", 0),
    "4a": (224, 64, 96, 96, 128, "avg", 128),
    "4b": (192, 96, 128, 96, 128, "avg", 128),
    "4c": (160, 128, 160, 128, 160, "avg", None),
    "4d": (96, 128, 192, 160, 192, "avg", None),
    "4e": (0, 128, 192, 192, 256, "max", 0),
    "5a": (352, 192, 320, 160, 224, "avg", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}


def inception_v2(classes: int, projection: int = 96, gate: Callable[[int], nn.Module] = nn.Identity) -> nn.Module:
    """Return the network: 7x7/2, pool, 1x1, 3x3, pool, ten inceptions, each followed by its `gate`, mean, linear."""
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", ConvBN(3, 64, 7, 2)),
        ("maxpool1", nn.MaxPool2d(3, 2, ceil_mode=True)),
        ("conv2", ConvBN(64, 64, 1)),
        ("conv3", ConvBN(64, 192, 3)),
        ("maxpool2", nn.MaxPool2d(3, 2, ceil_mode=True)),
    ]
    channels = 192
    for name in MODULES:
        module, channels = inception_module(channels, name, projection)
        stages += [(f"inception{name}", module), (f"gate{name}", gate(channels))]
    return Classifier(nn.Sequential(OrderedDict(stages)), channels, classes, dropout=0)


def inception_module(inputs: int, name: str, projection: int) -> tuple[Concat, int]:
    """Return a module of four branches: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pool, 1x1.

    A module that halves the picture has only the middle two branches and a pool.
    """
    one, reduce, three, reduce_double, double, pool, pooled = MODULES[name]
    pooled = projection if pooled is None else pooled
    if not one:
        return Concat(
            branch1=nn.Sequential(ConvBN(inputs, reduce, 1), ConvBN(reduce, three, 3, 2)),
            branch2=nn.Sequential(
                ConvBN(inputs, reduce_double, 1), ConvBN(reduce_double, double, 3), ConvBN(double, double, 3, 2)
            ),
            pool=nn.MaxPool2d(3, 2, ceil_mode=True),
        ), three + double + inputs
    return Concat(
        branch0=ConvBN(inputs, one, 1),
        branch1=chain(inputs, (reduce, 1), (three, 3)),
        branch2=chain(inputs, (reduce_double, 1), (double, 3), (double, 3)),
        pool=nn.Sequential(
            nn.AvgPool2d(3, 1, 1) if pool == "avg" else nn.MaxPool2d(3, 1, 1), ConvBN(inputs, pooled, 1)
        ),
    ), one + three + double + pooled


ARCHITECTURES = (
    Architecture(
        name="inception_v2",
        family="inception",
        paper=Paper(
            title="Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
            authors="S. Ioffe, C. Szegedy",
            year=2015,
            id="arXiv:1502.03167",
        ),
        input_shape=(3, 224, 224),
        classes=1000,
        smallest=31,
        small=64,
        build=inception_v2,
        recipe="inception_v2",
        published=(
            single_crop(74.8, 92.2, "paper"),
            Published(data="ImageNet", top5=95.18, protocol="test, 6 networks, 144 crops", source="paper"),
        ),
    ),
)
