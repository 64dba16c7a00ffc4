"""ResNeXt: Xie, Girshick, Dollár, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", 2016.

arXiv:1611.05431, Table 1 and section 5.3, in form (c) of Figure 3: the 3x3 of a bottleneck in groups, one for each of
the paper's paths. Rows over ResNet; module names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from models.card import Architecture, Paper, Weights, on_cifar10, single_crop
from models.residual import Bottleneck, ResNet, cifar_stem

variant = partial(
    Architecture,
    family="resnext",
    paper=Paper(
        title="Aggregated Residual Transformations for Deep Neural Networks",
        authors="S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He",
        year=2016,
        id="arXiv:1611.05431",
    ),
    smallest=1,
)
imagenet = partial(variant, input_shape=(3, 224, 224), classes=1000, small=64, recipe="resnext")
cifar = partial(variant, input_shape=(3, 32, 32), classes=10, small=32, recipe="resnext_cifar")


def resnext(depths: Sequence[int], groups: int, width: int) -> Callable[[int], nn.Module]:
    """Return an ImageNet network of `groups` paths, each `width` channels wide in the first stage."""
    return partial(ResNet, block=partial(Bottleneck, groups=groups, width=width), depths=depths)


def resnext29(groups: int) -> Callable[[int], nn.Module]:
    """Return a CIFAR network with paths of 64 channels.

    Shortcuts are projections, since only these have the paper's 34.4M and 68.1M parameters.
    """
    return partial(
        ResNet, block=partial(Bottleneck, groups=groups), depths=(3, 3, 3), stem=partial(cifar_stem, channels=64)
    )


readme = partial(single_crop, source="authors' README")
table_7 = partial(on_cifar10, source="paper, Table 7, mean of 10 runs")

ARCHITECTURES = (
    imagenet(
        name="resnext50_32x4d",
        build=resnext((3, 4, 6, 3), 32, 4),
        published=(single_crop(77.618, 93.698),),
        weights=Weights(library="torchvision", model="resnext50_32x4d"),
    ),
    imagenet(
        name="resnext101_32x4d",
        build=resnext((3, 4, 23, 3), 32, 4),
        published=(readme(78.8, 94.4),),
        weights=Weights(library="timm", model="resnext101_32x4d.gluon_in1k", accuracy=(80.336, 94.908)),
    ),
    imagenet(
        name="resnext101_64x4d",
        build=resnext((3, 4, 23, 3), 64, 4),
        published=(readme(79.6, 94.7),),
        weights=Weights(library="torchvision", model="resnext101_64x4d"),
    ),
    imagenet(  # not in the paper
        name="resnext101_32x8d",
        build=resnext((3, 4, 23, 3), 32, 8),
        published=(single_crop(79.312, 94.526),),
        weights=Weights(library="torchvision", model="resnext101_32x8d"),
    ),
    cifar(
        name="resnext29_8x64d",
        build=resnext29(8),
        published=(table_7(96.35),),
    ),
    cifar(
        name="resnext29_16x64d",
        build=resnext29(16),
        published=(table_7(96.42),),
    ),
)
