"""Inception-ResNet: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections", 2016.

arXiv:1602.07261. v1 follows the paper, Figures 10 to 15. v2 is the network whose weights were released, which differs
from Figures 3 and 16 to 19: v3's stem, 10, 20 and 10 blocks, the last scaled by 1 and without ReLU, and a 1x1 of 1536
at the end. v2 scales residuals by 0.17, 0.1 and 0.2, and so does v1 here (section 3.3 says 0.1 to 0.3). Modules are
named as in timm.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.card import Architecture, Weights, single_crop
from models.inception_v3 import paper_crop
from models.inception_v4 import PAPER, mean_chain, reduction_a
from models.layers import Classifier, Concat, ConvBN, chain


class ResidualInception(nn.Module):
    """Residual block: relu(x + scale * 1x1(concatenated branches)); the 1x1 has a bias and no BN."""

    def __init__(self, channels: int, mixed: int, scale: float, *, relu: bool = True, **branches: nn.Module) -> None:
        super().__init__()
        self.branches = Concat(**branches)
        self.conv2d = nn.Conv2d(mixed, channels, 1)
        self.scale = scale
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = x + self.scale * self.conv2d(self.branches(x))
        return F.relu(out) if self.relu else out


def block35(channels: int, double: tuple[int, int]) -> ResidualInception:
    """Return the block at 35x35: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3 (Figures 10 and 16)."""
    return ResidualInception(
        channels,
        64 + double[1],
        scale=0.17,
        branch0=ConvBN(channels, 32, 1),
        branch1=chain(channels, (32, 1), (32, 3)),
        branch2=chain(channels, (32, 1), (double[0], 3), (double[1], 3)),
    )


def block17(channels: int, one: int, widths: tuple[int, int, int]) -> ResidualInception:
    """Return the block at 17x17: 1x1; 1x1, 1x7, 7x1 (Figures 11 and 17)."""
    return ResidualInception(
        channels,
        one + widths[2],
        scale=0.1,
        branch0=ConvBN(channels, one, 1),
        branch1=chain(channels, (widths[0], 1), (widths[1], (1, 7)), (widths[2], (7, 1))),
    )


def block8(channels: int, widths: tuple[int, int], scale: float = 0.2, *, relu: bool = True) -> ResidualInception:
    """Return the block at 8x8: 1x1; 1x1, 1x3, 3x1 (Figures 13 and 19)."""
    return ResidualInception(
        channels,
        192 + widths[1],
        scale=scale,
        relu=relu,
        branch0=ConvBN(channels, 192, 1),
        branch1=chain(channels, (192, 1), (widths[0], (1, 3)), (widths[1], (3, 1))),
    )


def reduction_b(inputs: int, second: int, third: tuple[int, int]) -> Concat:
    """Return the second reduction: 1x1, 3x3/2; 1x1, 3x3/2; 1x1, 3x3, 3x3/2; max pool (Figures 12 and 18)."""
    return Concat(
        branch0=chain(inputs, (256, 1), (384, 3, 2)),
        branch1=chain(inputs, (256, 1), (second, 3, 2)),
        branch2=chain(inputs, (256, 1), (third[0], 3), (third[1], 3, 2)),
        branch3=nn.MaxPool2d(3, 2),
    )


def stem() -> OrderedDict[str, nn.Module]:
    """Return the stem: 299 to 71 pixels, 192 channels (Figure 14)."""
    return OrderedDict(
        conv2d_1a=ConvBN(3, 32, 3, 2, padding=0),
        conv2d_2a=ConvBN(32, 32, 3, padding=0),
        conv2d_2b=ConvBN(32, 64, 3),
        maxpool_3a=nn.MaxPool2d(3, 2),
        conv2d_3b=ConvBN(64, 80, 1),
        conv2d_4a=ConvBN(80, 192, 3, padding=0),
    )


def inception_resnet_v1(classes: int) -> nn.Module:
    """Return v1: stem, 5 blocks at 35x35, reduction, 10 at 17x17, reduction, 5 at 8x8 (Figure 15)."""
    features = nn.Sequential(
        OrderedDict(
            **stem(),
            conv2d_5a=ConvBN(192, 256, 3, 2, padding=0),
            repeat=nn.Sequential(*(block35(256, (32, 32)) for _ in range(5))),
            mixed_6a=reduction_a(256, 192, 192, 256, 384),
            repeat_1=nn.Sequential(*(block17(896, 128, (128, 128, 128)) for _ in range(10))),
            mixed_7a=reduction_b(896, 256, (256, 256)),
            repeat_2=nn.Sequential(*(block8(1792, (192, 192)) for _ in range(5))),
        )
    )
    return Classifier(features, 1792, classes, dropout=0.2)


def inception_resnet_v2(classes: int) -> nn.Module:
    """Return v2: stem, 10 blocks at 35x35, reduction, 20 at 17x17, reduction, 10 at 8x8, 1x1."""
    mixed_5b = Concat(
        branch0=ConvBN(192, 96, 1),
        branch1=chain(192, (48, 1), (64, 5)),
        branch2=chain(192, (64, 1), (96, 3), (96, 3)),
        branch3=mean_chain(192, 64),
    )
    features = nn.Sequential(
        OrderedDict(
            **stem(),
            maxpool_5a=nn.MaxPool2d(3, 2),
            mixed_5b=mixed_5b,
            repeat=nn.Sequential(*(block35(320, (48, 64)) for _ in range(10))),
            mixed_6a=reduction_a(320, 256, 256, 384, 384),
            repeat_1=nn.Sequential(*(block17(1088, 192, (128, 160, 192)) for _ in range(20))),
            mixed_7a=reduction_b(1088, 288, (288, 320)),
            repeat_2=nn.Sequential(*(block8(2080, (224, 256)) for _ in range(9))),
            block8=block8(2080, (224, 256), 1, relu=False),
            conv2d_7b=ConvBN(2080, 1536, 1),
        )
    )
    return Classifier(features, 1536, classes, dropout=0.2)


variant = partial(
    Architecture,
    family="inception_resnet",
    paper=PAPER,
    input_shape=(3, 299, 299),
    classes=1000,
    smallest=75,
    small=80,
    recipe="inception_v4",
)

ARCHITECTURES = (
    variant(
        name="inception_resnet_v1",
        build=inception_resnet_v1,
        published=(paper_crop(top1=78.7, top5=94.5, source="paper, Table 2"),),
    ),
    variant(
        name="inception_resnet_v2",
        build=inception_resnet_v2,
        published=(
            single_crop(80.434, 95.312, "timm tf_in1k", edge=299),
            paper_crop(top1=80.1, top5=95.1, source="paper, Table 2"),
        ),
        weights=Weights(
            library="timm",
            model="inception_resnet_v2.tf_in1k",
            accuracy=(80.434, 95.312),
            rename=(
                ("classif", "fc"),
                (r"^(?!fc)", "features."),
                (r"((repeat|repeat_1|repeat_2)\.\d+|block8)\.branch", r"\1.branches.branch"),
            ),
        ),
    ),
)
