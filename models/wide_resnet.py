"""Wide ResNet: Zagoruyko, Komodakis, "Wide Residual Networks", 2016, arXiv:1605.07146, Table 1 and section 2.4.

Rows over PreActResNet (CIFAR) and ResNet (ImageNet: the 3x3 of each bottleneck twice as wide). Module names of the
latter are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from models.card import Architecture, Paper, Weights, on_cifar10, single_crop
from models.preact_resnet import PreActBasicBlock, PreActResNet
from models.residual import Bottleneck, ResNet

variant = partial(
    Architecture,
    family="wide_resnet",
    paper=Paper(
        title="Wide Residual Networks",
        authors="S. Zagoruyko, N. Komodakis",
        year=2016,
        id="arXiv:1605.07146",
    ),
    smallest=1,
)
cifar = partial(variant, input_shape=(3, 32, 32), classes=10, small=32)
imagenet = partial(variant, input_shape=(3, 224, 224), classes=1000, small=64, recipe="facebook")


def wrn(depth: int, widening: int) -> Callable[[int], nn.Module]:
    """Return WRN-`depth`-`widening`: 3 stages of (depth - 4) / 6 blocks, with dropout of 0.3 between two 3x3."""
    block = partial(PreActBasicBlock, dropout=0.3)
    return partial(PreActResNet, block=block, depths=((depth - 4) // 6,) * 3, planes=16 * widening)


def wrn_bottleneck(depths: Sequence[int]) -> Callable[[int], nn.Module]:
    """Return a ResNet whose bottlenecks' 3x3 are twice as wide."""
    return partial(ResNet, block=partial(Bottleneck, width=128), depths=depths)


ARCHITECTURES = (
    cifar(
        name="wrn_16_8",
        build=wrn(16, 8),
        recipe="wrn_16_8",
        published=(on_cifar10(95.73, "paper, Table 5, trained without dropout"),),
    ),
    cifar(
        name="wrn_28_10",
        build=wrn(28, 10),
        recipe="wrn_28_10",
        published=(on_cifar10(96.11, "authors' README"), on_cifar10(96.0, "authors' README, trained without dropout")),
    ),
    imagenet(
        name="wide_resnet50_2",
        build=wrn_bottleneck((3, 4, 6, 3)),
        published=(single_crop(78.468, 94.086), single_crop(78.1, 93.97, "authors' README")),
        weights=Weights(library="torchvision", model="wide_resnet50_2"),
    ),
    imagenet(
        name="wide_resnet101_2",
        build=wrn_bottleneck((3, 4, 23, 3)),
        published=(single_crop(78.848, 94.284),),
        weights=Weights(library="torchvision", model="wide_resnet101_2"),
    ),
)
