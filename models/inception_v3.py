"""Inception v3: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015, arXiv:1512.00567.

Table 1, but with the 5x5 of the released weights where Figure 5 shows two 3x3. Stages are named as in torchvision;
within them a branch is a sequence, so that published weights need the renaming below. In training the network returns
two sets of logits, the auxiliary head's last; otherwise the head is not computed.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from models.card import Architecture, Paper, Published, Weights, single_crop
from models.layers import Concat, ConvBN, chain, grid_mean, he_normal, split


def inception_a(inputs: int, pooled: int) -> Concat:
    """Return module A: 1x1; 1x1, 5x5; 1x1, 3x3, 3x3; mean, 1x1 (Figure 5)."""
    return Concat(
        branch1x1=ConvBN(inputs, 64, 1),
        branch5x5=chain(inputs, (48, 1), (64, 5)),
        branch3x3dbl=chain(inputs, (64, 1), (96, 3), (96, 3)),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(inputs, pooled, 1)),
    )


def inception_b() -> Concat:
    """Return reduction B: 3x3/2; 1x1, 3x3, 3x3/2; max pool (Figure 10)."""
    return Concat(
        branch3x3=ConvBN(288, 384, 3, 2, padding=0),
        branch3x3dbl=chain(288, (64, 1), (96, 3), (96, 3, 2)),
        branch_pool=nn.MaxPool2d(3, 2),
    )


def inception_c(width: int) -> Concat:
    """Return module C: 1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; mean, 1x1 (Figure 6)."""
    return Concat(
        branch1x1=ConvBN(768, 192, 1),
        branch7x7=chain(768, (width, 1), (width, (1, 7)), (192, (7, 1))),
        branch7x7dbl=chain(768, (width, 1), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(768, 192, 1)),
    )


def inception_d() -> Concat:
    """Return reduction D: 1x1, 3x3/2; 1x1, 1x7, 7x1, 3x3/2; max pool."""
    return Concat(
        branch3x3=chain(768, (192, 1), (320, 3, 2)),
        branch7x7x3=chain(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
        branch_pool=nn.MaxPool2d(3, 2),
    )


def inception_e(inputs: int) -> Concat:
    """Return module E: 1x1; 1x1, 1x3 | 3x1; 1x1, 3x3, 1x3 | 3x1; mean, 1x1 (Figure 7)."""
    return Concat(
        branch1x1=ConvBN(inputs, 320, 1),
        branch3x3=nn.Sequential(ConvBN(inputs, 384, 1), split(384, 384)),
        branch3x3dbl=nn.Sequential(ConvBN(inputs, 448, 1), ConvBN(448, 384, 3), split(384, 384)),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(inputs, 192, 1)),
    )


class AuxiliaryHeadV3(nn.Module):
    """Auxiliary classifier: 5x5/3 mean to 5x5, 1x1 of 128, 5x5 of 768, linear (Figure 8)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv0 = ConvBN(768, 128, 1)
        self.conv1 = ConvBN(128, 768, 5, padding=0)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 768, 17, 17)
        x = self.conv1(self.conv0(grid_mean(x, kernel=5, stride=3, grid=5)))  # (N, 768, 1, 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class InceptionV3(nn.Module):
    """Inception v3: 3x3/2, 3x3, 3x3, pool, 1x1, 3x3, pool, eleven inceptions, mean, dropout, linear."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        stages: list[tuple[str, nn.Module]] = [
            ("Conv2d_1a_3x3", ConvBN(3, 32, 3, 2, padding=0)),
            ("Conv2d_2a_3x3", ConvBN(32, 32, 3, padding=0)),
            ("Conv2d_2b_3x3", ConvBN(32, 64, 3)),
            ("maxpool1", nn.MaxPool2d(3, 2)),
            ("Conv2d_3b_1x1", ConvBN(64, 80, 1)),
            ("Conv2d_4a_3x3", ConvBN(80, 192, 3, padding=0)),
            ("maxpool2", nn.MaxPool2d(3, 2)),
            ("Mixed_5b", inception_a(192, 32)),
            ("Mixed_5c", inception_a(256, 64)),
            ("Mixed_5d", inception_a(288, 64)),
            ("Mixed_6a", inception_b()),
            ("Mixed_6b", inception_c(128)),
            ("Mixed_6c", inception_c(160)),
            ("Mixed_6d", inception_c(160)),
            ("Mixed_6e", inception_c(192)),
        ]
        self.features = nn.Sequential(OrderedDict(stages))
        self.aux = AuxiliaryHeadV3(classes)
        self.top = nn.Sequential(
            OrderedDict(Mixed_7a=inception_d(), Mixed_7b=inception_e(1280), Mixed_7c=inception_e(2048))
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:  # (N, 3, 299, 299)
        x = self.features(x)  # (N, 768, 17, 17)
        top = self.top(x)  # (N, 2048, 8, 8)
        logits: Tensor = self.fc(self.dropout(self.avgpool(top).flatten(1)))
        return (logits, self.aux(x)) if self.training else logits


paper_crop = partial(Published, data="ImageNet", protocol="validation without 1,762 blacklisted images, one 299 crop")

ARCHITECTURES = (
    Architecture(
        name="inception_v3",
        family="inception",
        paper=Paper(
            title="Rethinking the Inception Architecture for Computer Vision",
            authors="C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna",
            year=2015,
            id="arXiv:1512.00567",
        ),
        input_shape=(3, 299, 299),
        classes=1000,
        smallest=75,
        small=80,
        build=InceptionV3,
        recipe="inception_v3",
        published=(
            single_crop(77.294, 93.45, edge=299),
            paper_crop(top1=78.8, top5=94.4, source="paper, Table 3"),
        ),
        weights=Weights(
            library="torchvision",
            model="inception_v3",
            rename=(
                ("AuxLogits", "aux"),
                (r"^(Conv|Mixed_[56])", r"features.\1"),
                ("^Mixed_7", "top.Mixed_7"),
                ("branch_pool", "branch_pool.1"),
                *((rf"_{number + 1}\.", f".{number}.") for number in range(5)),  # branch7x7_1 is the first of a branch
                *((rf"_{number + 1}([ab])\.", rf".{number}.\1.") for number in range(1, 3)),
            ),
        ),
    ),
)
