"""Inception v2, v3 and v4, after GoogLeNet.

v2: Ioffe, Szegedy, "Batch Normalization", 2015, arXiv:1502.03167, Figure 5, with the pool projections of 96 in 4c and
4d that make its widths agree (Caffe's ports have 128: `projection`). v3: Szegedy et al., "Rethinking the Inception
Architecture", 2015, arXiv:1512.00567, Table 1, but with the 5x5 of the released weights where Figure 5 shows two 3x3.
v4: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections", 2016, arXiv:1602.07261,
Figures 3 to 9. The stages of v3 are named as in torchvision, those of v4 numbered as in timm; within them a branch is a
sequence, so that published weights need the renaming below. In training v3 answers with two sets of logits, the
auxiliary head's last; otherwise the head is not computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from models.card import Architecture, Paper, Published, Weights, single_crop
from models.layers import Classifier, Concat, ConvBN, Kernel, grid_mean, he_normal


def chain(inputs: int, *convs: tuple[int, Kernel] | tuple[int, Kernel, int]) -> nn.Sequential:
    """ConvBNs of (outputs, kernel), padded to keep the size, or of (outputs, kernel, stride), not padded."""
    layers = []
    for outputs, kernel, *stride in convs:
        layers.append(ConvBN(inputs, outputs, kernel, stride[0], 0) if stride else ConvBN(inputs, outputs, kernel))
        inputs = outputs
    return nn.Sequential(*layers)


# v2, Figure 5: inputs; #1x1; #3x3 reduce, #3x3; double #3x3 reduce, double #3x3; pool; 0s where the picture is halved.
# A pool projection of None is 96 in the paper's net, 128 in Caffe's.
V2_MODULES: dict[str, tuple[int, int, int, int, int, Literal["avg", "max"], int | None]] = {
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
    """7x7/2, pool, 1x1, 3x3, pool, ten inceptions, each followed by its `gate`, mean, linear."""
    stages: list[tuple[str, nn.Module]] = [
        ("conv1", ConvBN(3, 64, 7, 2)),
        ("maxpool1", nn.MaxPool2d(3, 2, ceil_mode=True)),
        ("conv2", ConvBN(64, 64, 1)),
        ("conv3", ConvBN(64, 192, 3)),
        ("maxpool2", nn.MaxPool2d(3, 2, ceil_mode=True)),
    ]
    channels = 192
    for name in V2_MODULES:
        module, channels = v2_module(channels, name, projection)
        stages += [(f"inception{name}", module), (f"gate{name}", gate(channels))]
    return Classifier(nn.Sequential(OrderedDict(stages)), channels, classes, dropout=0)


def v2_module(inputs: int, name: str, projection: int) -> tuple[Concat, int]:
    """1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pool, 1x1; side by side, or, to halve the picture, the middle two and a pool."""
    one, reduce, three, reduce_double, double, pool, pooled = V2_MODULES[name]
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


def v3_a(inputs: int, pooled: int) -> Concat:
    """1x1; 1x1, 5x5; 1x1, 3x3, 3x3; mean, 1x1 (Figure 5)."""
    return Concat(
        branch1x1=ConvBN(inputs, 64, 1),
        branch5x5=chain(inputs, (48, 1), (64, 5)),
        branch3x3dbl=chain(inputs, (64, 1), (96, 3), (96, 3)),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(inputs, pooled, 1)),
    )


def v3_b() -> Concat:
    """3x3/2; 1x1, 3x3, 3x3/2; max pool (Figure 10)."""
    return Concat(
        branch3x3=ConvBN(288, 384, 3, 2, padding=0),
        branch3x3dbl=chain(288, (64, 1), (96, 3), (96, 3, 2)),
        branch_pool=nn.MaxPool2d(3, 2),
    )


def v3_c(width: int) -> Concat:
    """1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; mean, 1x1 (Figure 6)."""
    return Concat(
        branch1x1=ConvBN(768, 192, 1),
        branch7x7=chain(768, (width, 1), (width, (1, 7)), (192, (7, 1))),
        branch7x7dbl=chain(768, (width, 1), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(768, 192, 1)),
    )


def v3_d() -> Concat:
    """1x1, 3x3/2; 1x1, 1x7, 7x1, 3x3/2; max pool."""
    return Concat(
        branch3x3=chain(768, (192, 1), (320, 3, 2)),
        branch7x7x3=chain(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
        branch_pool=nn.MaxPool2d(3, 2),
    )


def v3_e(inputs: int) -> Concat:
    """1x1; 1x1, 1x3 | 3x1; 1x1, 3x3, 1x3 | 3x1; mean, 1x1 (Figure 7)."""
    return Concat(
        branch1x1=ConvBN(inputs, 320, 1),
        branch3x3=nn.Sequential(ConvBN(inputs, 384, 1), split(384, 384)),
        branch3x3dbl=nn.Sequential(ConvBN(inputs, 448, 1), ConvBN(448, 384, 3), split(384, 384)),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(inputs, 192, 1)),
    )


def split(inputs: int, outputs: int) -> Concat:
    """1x3 | 3x1."""
    return Concat(a=ConvBN(inputs, outputs, (1, 3)), b=ConvBN(inputs, outputs, (3, 1)))


class V3Head(nn.Module):
    """5x5/3 mean to 5x5, 1x1 of 128, 5x5 of 768, linear (Figure 8)."""

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
    """3x3/2, 3x3, 3x3, pool, 1x1, 3x3, pool, eleven inceptions, mean, dropout, linear."""

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
            ("Mixed_5b", v3_a(192, 32)),
            ("Mixed_5c", v3_a(256, 64)),
            ("Mixed_5d", v3_a(288, 64)),
            ("Mixed_6a", v3_b()),
            ("Mixed_6b", v3_c(128)),
            ("Mixed_6c", v3_c(160)),
            ("Mixed_6d", v3_c(160)),
            ("Mixed_6e", v3_c(192)),
        ]
        self.features = nn.Sequential(OrderedDict(stages))
        self.aux = V3Head(classes)
        self.top = nn.Sequential(OrderedDict(Mixed_7a=v3_d(), Mixed_7b=v3_e(1280), Mixed_7c=v3_e(2048)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:  # (N, 3, 299, 299)
        x = self.features(x)  # (N, 768, 17, 17)
        top = self.top(x)  # (N, 2048, 8, 8)
        logits: Tensor = self.fc(self.dropout(self.avgpool(top).flatten(1)))
        return (logits, self.aux(x)) if self.training else logits


def mean_chain(inputs: int, outputs: int) -> nn.Sequential:
    """Mean of each 3x3, counting no padding, 1x1."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), ConvBN(inputs, outputs, 1))


def v4_stem() -> list[nn.Module]:
    """299 to 35 pixels (Figure 3)."""
    return [
        *(ConvBN(3, 32, 3, 2, padding=0), ConvBN(32, 32, 3, padding=0), ConvBN(32, 64, 3)),
        Concat(maxpool=nn.MaxPool2d(3, 2), conv=ConvBN(64, 96, 3, 2, padding=0)),
        Concat(
            branch0=chain(160, (64, 1), (96, 3, 1)),
            branch1=chain(160, (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1)),
        ),
        Concat(conv=ConvBN(192, 192, 3, 2, padding=0), maxpool=nn.MaxPool2d(3, 2)),
    ]


def v4_a() -> Concat:
    """1x1; 1x1, 3x3; 1x1, 3x3, 3x3; mean, 1x1 (Figure 4)."""
    return Concat(
        branch0=ConvBN(384, 96, 1),
        branch1=chain(384, (64, 1), (96, 3)),
        branch2=chain(384, (64, 1), (96, 3), (96, 3)),
        branch3=mean_chain(384, 96),
    )


def reduction_a(inputs: int, k: int, l: int, m: int, n: int) -> Concat:  # noqa: E741 - the paper's names
    """3x3/2 of n; 1x1 of k, 3x3 of l, 3x3/2 of m; max pool (Figure 7, Table 1)."""
    return Concat(
        branch0=ConvBN(inputs, n, 3, 2, padding=0),
        branch1=chain(inputs, (k, 1), (l, 3), (m, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def v4_b() -> Concat:
    """1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; mean, 1x1 (Figure 5)."""
    return Concat(
        branch0=ConvBN(1024, 384, 1),
        branch1=chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
        branch2=chain(1024, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
        branch3=mean_chain(1024, 128),
    )


def v4_reduction_b() -> Concat:
    """1x1, 3x3/2; 1x1, 1x7, 7x1, 3x3/2; max pool (Figure 8)."""
    return Concat(
        branch0=chain(1024, (192, 1), (192, 3, 2)),
        branch1=chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def v4_c() -> Concat:
    """1x1; 1x1, 1x3 | 3x1; 1x1, 3x1, 1x3, 1x3 | 3x1; mean, 1x1 (Figure 6)."""
    return Concat(
        branch0=ConvBN(1536, 256, 1),
        branch1=nn.Sequential(ConvBN(1536, 384, 1), split(384, 256)),
        branch2=chain(1536, (384, 1), (448, (3, 1)), (512, (1, 3))).append(split(512, 256)),
        branch3=mean_chain(1536, 256),
    )


def inception_v4(classes: int) -> nn.Module:
    """Stem, 4 A, reduction, 7 B, reduction, 3 C, mean, dropout, linear (Figure 9)."""
    features = nn.Sequential(
        *v4_stem(),
        *(v4_a() for _ in range(4)),  # (N, 384, 35, 35)
        reduction_a(384, 192, 224, 256, 384),
        *(v4_b() for _ in range(7)),  # (N, 1024, 17, 17)
        v4_reduction_b(),
        *(v4_c() for _ in range(3)),  # (N, 1536, 8, 8)
    )
    return Classifier(features, 1536, classes, dropout=0.2)


INCEPTION_V4_PAPER = Paper(
    title="Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
    authors="C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi",
    year=2016,
    id="arXiv:1602.07261",
)

crop_299 = partial(single_crop, edge=299)
paper_crop = partial(Published, data="ImageNet", protocol="validation without 1,762 blacklisted images, one 299 crop")

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
        published=(
            single_crop(74.8, 92.2, "paper"),
            Published(data="ImageNet", top5=95.18, protocol="test, 6 networks, 144 crops", source="paper"),
        ),
    ),
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
        published=(
            crop_299(77.294, 93.45),
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
    Architecture(
        name="inception_v4",
        family="inception",
        paper=INCEPTION_V4_PAPER,
        input_shape=(3, 299, 299),
        classes=1000,
        smallest=75,
        small=80,
        build=inception_v4,
        published=(
            crop_299(80.144, 94.982, "timm tf_in1k"),
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
