"""Networks that take longest, each with a smaller one that is built of the same classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

SMALLER = {
    **{"vgg13": "vgg11", "vgg16": "vgg11", "vgg19": "vgg11"},
    **{"vgg13_bn": "vgg11_bn", "vgg16_bn": "vgg11_bn", "vgg19_bn": "vgg11_bn"},
    **{"zfnet_wide": "zfnet", "resnet152": "resnet50", "resnet1202_cifar": "resnet110_cifar"},
    **{"preact_resnet200": "preact_resnet164", "preact_resnet1001": "preact_resnet164"},
    **{"se_resnet152": "se_resnet50", "se_resnext101_32x4d": "se_resnext50_32x4d"},
    **{"wide_resnet101_2": "wide_resnet50_2", "wrn_28_10": "wrn_16_8"},
    **{"densenet161": "densenet121", "densenet201": "densenet121", "densenet264": "densenet121"},
    **{"densenet_bc_190_40": "densenet_bc_100_12", "densenet_bc_250_24": "densenet_bc_100_12"},
    **{"densenet_100_24": "densenet_40_12", "resnext29_16x64d": "resnext29_8x64d"},
    **dict.fromkeys(("resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"), "resnext50_32x4d"),
}


def without_the_largest(names: Iterable[str], largest: Collection[str] = SMALLER) -> list[Any]:
    """Return names as parameters of a test, which is slow for the largest networks whose smaller one is there, too."""
    there = list(names)
    slow = {name for name in largest if SMALLER[name] in there}
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in there]
