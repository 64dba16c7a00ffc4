"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, Table 1 and 4.2.

Rows over the classes of residual.py, which states the two deviations. `resnet164_cifar` is the baseline of the
pre-activation paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from models.card import Architecture, Paper, Published, Weights, on_cifar10, single_crop
from models.preact_resnet import IDENTITY_MAPPINGS
from models.residual import BasicBlock, Block, Bottleneck, OptionA, ResNet, cifar_stem

PAPER = Paper(
    title="Deep Residual Learning for Image Recognition",
    authors="K. He, X. Zhang, S. Ren, J. Sun",
    year=2015,
    id="arXiv:1512.03385",
)


def ten_crop(top1: float, top5: float) -> Published:
    """Return the accuracy on ImageNet's 50,000 validation images, with projections as shortcuts."""
    return Published(data="ImageNet", top1=top1, top5=top5, protocol="validation, ten crops", source="paper, Table 3")


def imagenet(name: str, block: Block, depths: Sequence[int], *published: Published) -> Architecture:
    """Return the card of a column of Table 1."""
    return Architecture(
        name=name,
        family="resnet",
        paper=PAPER,
        input_shape=(3, 224, 224),
        classes=1000,
        smallest=1,
        small=64,
        build=partial(ResNet, block=block, depths=depths),
        recipe="resnet",
        published=published,
        weights=Weights(library="torchvision", model=name),
    )


def zeros_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a CIFAR network's tensors with the channels in the order of OptionA, which adds all zeros at the end.

    In `state` half of the zeros come before the old channels, and half after. The network's logits stay the same.
    Raises KeyError or IndexError for tensors of another network.
    """
    orders = [torch.arange(16)]
    for _ in range(2):
        old, half = len(orders[-1]), len(orders[-1]) // 2
        orders.append(torch.cat([half + orders[-1], torch.arange(half), torch.arange(half + old, 2 * old)]))
    reordered = {"fc.weight": state["fc.weight"][:, orders[-1]]}
    for key, value in state.items():
        if found := re.match(r"layer(\d)\.(\d+)\.(?:(conv1)|conv2|bn2)\.", key):
            stage = int(found[1]) - 1
            if found[3]:  # reads the block's input, in a stage's first block that of the stage before
                reordered[key] = value[:, orders[max(stage - 1, 0) if found[2] == "0" else stage]]
            elif value.ndim:  # not the batch norm's counter
                reordered[key] = value[orders[stage]]
    return state | reordered


def idelbayev(file: str, top1: float) -> Weights:
    """Return weights for CIFAR-10 of Y. Idelbayev's repository, whose README states the accuracy."""
    return Weights(
        library="pytorch_resnet_cifar10",
        model=file,
        rename=((r"^linear\.", "fc."),),
        reorder=zeros_last,
        accuracy=(top1, None),
    )


cifar = partial(
    Architecture,
    family="resnet",
    paper=PAPER,
    input_shape=(3, 32, 32),
    classes=10,
    smallest=1,
    small=32,
)


table_6 = partial(on_cifar10, source="paper, Table 6")


def section_4_2(blocks: int, published: Published, weights: Weights, recipe: str = "resnet_cifar") -> Architecture:
    """Return the card of a CIFAR network of section 4.2: stages of 16, 32 and 64 planes, 6 * `blocks` + 2 layers."""
    return cifar(
        name=f"resnet{6 * blocks + 2}_cifar",
        build=partial(
            ResNet, block=partial(BasicBlock, shortcut=OptionA), depths=(blocks,) * 3, stem=cifar_stem, planes=16
        ),
        recipe=recipe,
        published=(published,),
        weights=weights,
    )


ARCHITECTURES = (
    imagenet("resnet18", BasicBlock, (2, 2, 2, 2), single_crop(69.758, 89.078)),
    imagenet("resnet34", BasicBlock, (3, 4, 6, 3), single_crop(73.314, 91.42), ten_crop(75.48, 92.54)),
    imagenet("resnet50", Bottleneck, (3, 4, 6, 3), single_crop(76.13, 92.862), ten_crop(77.15, 93.29)),
    imagenet("resnet101", Bottleneck, (3, 4, 23, 3), single_crop(77.374, 93.546), ten_crop(78.25, 93.95)),
    imagenet(
        *("resnet152", Bottleneck, (3, 8, 36, 3)),
        single_crop(78.312, 94.046),
        ten_crop(78.57, 94.29),
        Published(data="ImageNet", top5=96.43, protocol="test, 6 networks of several depths", source="paper, Table 5"),
    ),
    section_4_2(3, table_6(91.25), idelbayev("resnet20-12fca82f.th", 91.73)),
    section_4_2(5, table_6(92.49), idelbayev("resnet32-d509ac18.th", 92.63)),
    section_4_2(7, table_6(92.83), idelbayev("resnet44-014dd654.th", 93.10)),
    section_4_2(9, table_6(93.03), idelbayev("resnet56-4bfd9763.th", 93.39)),
    section_4_2(
        18,
        on_cifar10(93.57, "paper, Table 6, best of 5 runs"),
        idelbayev("resnet110-1d1ed7c2.th", 93.68),
        recipe="warmed_up",
    ),
    section_4_2(200, table_6(92.07), idelbayev("resnet1202-f3b1deed.th", 93.82), recipe="warmed_up"),
    cifar(  # the baseline of the pre-activation paper, its stride in the first 1x1
        name="resnet164_cifar",
        paper=IDENTITY_MAPPINGS,
        build=partial(
            ResNet,
            block=partial(Bottleneck, stride_in_3x3=False),
            depths=(18, 18, 18),
            stem=cifar_stem,
            planes=16,
        ),
        recipe="warmed_up",
        published=(on_cifar10(94.07, "paper, Table 2"),),
    ),
)
