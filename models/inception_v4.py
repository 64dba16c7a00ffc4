"""Inception v4: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections", 2016.

arXiv:1602.07261, Figures 3 to 9. Stages are numbered as in timm; within them a branch is a sequence, so that published
weights need the renaming below.
"""

from __future__ import annotations

from torch import nn

from models.card import Architecture, Paper, Weights, single_crop
from models.inception_v3 import paper_crop
from models.layers import Classifier, Concat, ConvBN, chain, split


def mean_chain(inputs: int, outputs: int) -> nn.Sequential:
    """Return the mean of each 3x3, without counting the padding, and a 1x1."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), ConvBN(inputs, outputs, 1))


def stem() -> list[nn.Module]:
    """Return the stem: 299 to 35 pixels (Figure 3)."""
    return [
        *(ConvBN(3, 32, 3, 2, padding=0), ConvBN(32, 32, 3, padding=0), ConvBN(32, 64, 3)),
        Concat(maxpool=nn.MaxPool2d(3, 2), conv=ConvBN(64, 96, 3, 2, padding=0)),
        Concat(
            branch0=chain(160, (64, 1), (96, 3, 1)),
            branch1=chain(160, (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1)),
        ),
        Concat(conv=ConvBN(192, 192, 3, 2, padding=0), maxpool=nn.MaxPool2d(3, 2)),
    ]


def inception_a() -> Concat:
    """Return module A: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; mean, 1x1 (Figure 4)."""
    return Concat(
        branch0=ConvBN(384, 96, 1),
        branch1=chain(384, (64, 1), (96, 3)),
        branch2=chain(384, (64, 1), (96, 3), (96, 3)),
        branch3=mean_chain(384, 96),
    )


def reduction_a(inputs: int, k: int, l: int, m: int, n: int) -> Concat:  # noqa: E741 - the paper's names
    """Return reduction A: 3x3/2 of n; 1x1 of k, 3x3 of l, 3x3/2 of m; max pool (Figure 7, Table 1)."""
    return Concat(
        branch0=ConvBN(inputs, n, 3, 2, padding=0),
        branch1=chain(inputs, (k, 1), (l, 3), (m, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def inception_b() -> Concat:
    """Return module B: 1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; mean, 1x1 (Figure 5)."""
    return Concat(
        branch0=ConvBN(1024, 384, 1),
        branch1=chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
        branch2=chain(1024, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
        branch3=mean_chain(1024, 128),
    )


def reduction_b() -> Concat:
    """Return reduction B: 1x1, 3x3/2; 1x1, 1x7, 7x1, 3x3/2; max pool (Figure 8)."""
    return Concat(
        branch0=chain(1024, (192, 1), (192, 3, 2)),
        branch1=chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def inception_c() -> Concat:
    """Return module C: 1x1; 1x1, 1x3 | 3x1; 1x1, 3x1, 1x3, 1x3 | 3x1; mean, 1x1 (Figure 6)."""
    return Concat(
        branch0=ConvBN(1536, 256, 1),
        branch1=nn.Sequential(ConvBN(1536, 384, 1), split(384, 256)),
        branch2=chain(1536, (384, 1), (448, (3, 1)), (512, (1, 3))).append(split(512, 256)),
        branch3=mean_chain(1536, 256),
    )


def inception_v4(classes: int) -> nn.Module:
    """Return the network: stem, 4 A, reduction, 7 B, reduction, 3 C, mean, dropout, linear (Figure 9)."""
    features = nn.Sequential(
        *stem(),
        *(inception_a() for _ in range(4)),  # (N, 384, 35, 35)
        reduction_a(384, 192, 224, 256, 384),
        *(inception_b() for _ in range(7)),  # (N, 1024, 17, 17)
        reduction_b(),
        *(inception_c() for _ in range(3)),  # (N, 1536, 8, 8)
    )
    return Classifier(features, 1536, classes, dropout=0.2)


PAPER = Paper(
    title="Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
    authors="C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi",
    year=2016,
    id="arXiv:1602.07261",
)

ARCHITECTURES = (
    Architecture(
        name="inception_v4",
        family="inception",
        paper=PAPER,
        input_shape=(3, 299, 299),
        classes=1000,
        smallest=75,
        small=80,
        build=inception_v4,
        recipe="inception_v4",
        published=(
            single_crop(80.144, 94.982, "timm tf_in1k", edge=299),
            paper_crop(top1=80.0, top5=95.0, source="paper, Table 2"),
        ),
        weights=Weights(
            library="timm",
            model="inception_v4.tf_in1k",
            accuracy=(80.144, 94.982),
            rename=(("last_linear", "fc"), (r"_(\d)([ab])\.", r".\1.\2."), (r"(branch\d)_(\d)\.", r"\1.\2.")),
        ),
    ),
)
