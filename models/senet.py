"""SENet-154: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", 2017, arXiv:1709.01507, appendix.

Module names are those of timm's legacy_senet154, which are Cadene's.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from models.card import Architecture, Paper, Published
from models.layers import SqueezeExcitation, he_normal


class SEBottleneck(nn.Module):
    """1x1, BN, ReLU, 3x3/s in 64 groups, BN, ReLU, 1x1, BN, SE, + x, ReLU; the first 1x1 half as wide as usual."""

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes * 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes * 2)
        self.conv2 = nn.Conv2d(planes * 2, planes * 4, 3, stride, 1, groups=64, bias=False)
        self.bn2 = nn.BatchNorm2d(planes * 4)
        self.conv3 = nn.Conv2d(planes * 4, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SqueezeExcitation(planes * 4, reduction=16)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se_module(self.bn3(self.conv3(out))) + self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class SENet154(nn.Module):
    """Three 3x3 and a 3x3 max pool, stages of 3, 8, 36 and 3 blocks, mean, dropout, linear."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 64, 3, 2, 1, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(64, 64, 3, 1, 1, bias=False),
                bn2=nn.BatchNorm2d(64),
                relu2=nn.ReLU(inplace=True),
                conv3=nn.Conv2d(64, 128, 3, 1, 1, bias=False),
                bn3=nn.BatchNorm2d(128),
                relu3=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(3, 2, ceil_mode=True),
            )
        )
        self.layer1 = stage(128, 64, blocks=3, stride=1)
        self.layer2 = stage(256, 128, blocks=8, stride=2)
        self.layer3 = stage(512, 256, blocks=36, stride=2)
        self.layer4 = stage(1024, 512, blocks=3, stride=2)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.last_linear = nn.Linear(2048, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224)
        x = self.layer0(x)  # (N, 128, 56, 56)
        x = self.layer2(self.layer1(x))  # (N, 512, 28, 28)
        x = self.layer4(self.layer3(x))  # (N, 2048, 7, 7)
        logits: Tensor = self.last_linear(self.dropout(self.avg_pool(x).flatten(1)))
        return logits


def stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` blocks; the first projects its shortcut, by a 3x3 where it halves the picture, else by a 1x1."""
    kernel, padding = (3, 1) if stride == 2 else (1, 0)
    projection = nn.Sequential(
        nn.Conv2d(inputs, planes * 4, kernel, stride, padding, bias=False), nn.BatchNorm2d(planes * 4)
    )
    rest = [SEBottleneck(planes * 4, planes, 1, nn.Identity()) for _ in range(blocks - 1)]
    return nn.Sequential(SEBottleneck(inputs, planes, stride, projection), *rest)


SENET = (
    Architecture(
        name="senet154",
        family="senet",
        paper=Paper(
            title="Squeeze-and-Excitation Networks",
            authors="J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu",
            year=2017,
            id="arXiv:1709.01507",
        ),
        input_shape=(3, 224, 224),
        classes=1000,
        build=SENet154,
        published=(
            Published(metric="ImageNet top-1 error %, 224 px, one crop", value=18.68, source="authors' README"),
            Published(metric="ImageNet top-5 error %, 224 px, one crop", value=4.47, source="authors' README"),
        ),
    ),
)
