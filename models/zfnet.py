"""ZFNet: Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", 2013, arXiv:1311.2901, Figure 3.

AlexNet on one GPU with a 7x7/2 first layer and a second of stride 2. `zfnet_wide` is the "512, 1024, 512 maps" row of
Table 2, which the lecture shows. The contrast normalisation is AlexNet's LRN, after the pool as Figure 3 has it. The
pool before FC6 adapts to the paper's 6x6, so that small pictures pass.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from models.alexnet import response_norm
from models.card import Architecture, Paper, Published
from models.layers import he_normal


class ZFNet(nn.Module):
    """ZFNet: 7x7/2 of 96, pool, LRN, 5x5/2 of 256, pool, LRN, three 3x3 of `widths`, pool, 4096, 4096, classes."""

    def __init__(self, classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2, 1)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = response_norm()
        self.conv2 = nn.Conv2d(96, 256, 5, 2)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm2 = response_norm()
        self.conv3 = nn.Conv2d(256, widths[0], 3, 1, 1)
        self.conv4 = nn.Conv2d(widths[0], widths[1], 3, 1, 1)
        self.conv5 = nn.Conv2d(widths[1], widths[2], 3, 1, 1)
        self.pool5 = nn.MaxPool2d(3, 2)
        self.adapt = nn.AdaptiveAvgPool2d(6)
        self.fc6 = nn.Linear(widths[2] * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224), conv1 (N, 96, 110, 110)
        x = self.norm1(self.pool1(self.relu(self.conv1(x))))  # (N, 96, 55, 55), conv2 (N, 256, 26, 26)
        x = self.norm2(self.pool2(self.relu(self.conv2(x))))  # (N, 256, 13, 13)
        x = self.relu(self.conv4(self.relu(self.conv3(x))))  # (N, 384, 13, 13)
        x = self.pool5(self.relu(self.conv5(x)))  # (N, 256, 6, 6)
        x = self.dropout(self.relu(self.fc6(self.adapt(x).flatten(1))))
        x = self.dropout(self.relu(self.fc7(x)))
        logits: Tensor = self.fc8(x)
        return logits


variant = partial(
    Architecture,
    family="zfnet",
    paper=Paper(
        title="Visualizing and Understanding Convolutional Networks",
        authors="M. Zeiler, R. Fergus",
        year=2013,
        id="arXiv:1311.2901",
    ),
    input_shape=(3, 224, 224),
    classes=1000,
    smallest=63,
    small=96,
    recipe="zfnet",
)
table_2 = partial(Published, data="ImageNet", protocol="validation, ten crops", source="paper, Table 2")

ARCHITECTURES = (
    variant(
        name="zfnet",
        build=partial(ZFNet, widths=(384, 384, 256)),
        published=(table_2(top1=61.6, top5=83.5),),
    ),
    variant(
        name="zfnet_wide",
        build=partial(ZFNet, widths=(512, 1024, 512)),
        published=(table_2(top1=62.5, top5=84.0),),
    ),
)
