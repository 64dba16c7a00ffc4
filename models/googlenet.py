"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv:1409.4842, Table 1 and Figure 3.

`googlenet` is the paper's network; its pools round up as in BVLC's Caffe definition, which yields Table 1's sizes.
`googlenet_bn_tv` is torchvision's, for the published weights: BN after each convolution, 3x3 where the paper has 5x5,
no LRN, a 2x2 fourth pool; but its auxiliary heads pool as in the paper. Module names are torchvision's. In training
both return three sets of logits, the auxiliary heads' last (section 5; their loss weighs 0.3); otherwise the heads are
not computed.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from models.card import Architecture, Paper, Published, Weights, single_crop
from models.layers import Concat, ConvBN, ConvReLU, grid_mean, he_normal

# Table 1: inputs; #1x1; #3x3 reduce, #3x3; #5x5 reduce, #5x5; pool proj
MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}

Conv = type[ConvReLU] | type[ConvBN]


def inception(widths: tuple[int, int, int, int, int, int, int], conv: Conv, large: int) -> Concat:
    """Return an inception module, four branches: 1x1; 1x1, 3x3; 1x1, 5x5; 3x3 max pool, 1x1 (Figure 2b)."""
    inputs, one, reduce3, three, reduce5, five, pool = widths
    return Concat(
        branch1=conv(inputs, one, 1),
        branch2=nn.Sequential(conv(inputs, reduce3, 1), conv(reduce3, three, 3)),
        branch3=nn.Sequential(conv(inputs, reduce5, 1), conv(reduce5, five, large)),
        branch4=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, pool, 1)),
    )


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier: 5x5/3 mean to 4x4, 1x1 of 128, 1024, dropout, classes."""

    def __init__(self, inputs: int, classes: int, conv: Conv) -> None:
        super().__init__()
        self.conv = conv(inputs, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 512, 14, 14)
        x = self.conv(grid_mean(x, kernel=5, stride=3, grid=4)).flatten(1)
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet: 7x7/2, pool, 1x1, 3x3, pool, nine inceptions with two pools in between, mean, dropout, linear."""

    def __init__(self, classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        conv: Conv = ConvBN if batch_norm else ConvReLU
        self.conv1 = conv(3, 64, 7, 2, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = nn.Identity() if batch_norm else nn.LocalResponseNorm(5)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.norm2 = nn.Identity() if batch_norm else nn.LocalResponseNorm(5)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        for name, widths in MODULES.items():
            self.add_module(f"inception{name}", inception(widths, conv, large=3 if batch_norm else 5))
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2 if batch_norm else 3, 2, ceil_mode=True)
        self.aux1 = AuxiliaryHead(512, classes, conv)
        self.aux2 = AuxiliaryHead(528, classes, conv)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2 if batch_norm else 0.4)
        self.fc = nn.Linear(1024, classes)
        he_normal(self)

    def inceptions(self, x: Tensor, names: str) -> Tensor:
        for name in names.split():
            x = self.get_submodule(f"inception{name}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:  # (N, 3, 224, 224)
        x = self.norm1(self.maxpool1(self.conv1(x)))  # (N, 64, 56, 56)
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))  # (N, 192, 28, 28)
        x = self.maxpool3(self.inceptions(x, "3a 3b"))  # (N, 480, 14, 14)
        after_4a = self.inceptions(x, "4a")
        after_4d = self.inceptions(after_4a, "4b 4c 4d")
        x = self.maxpool4(self.inceptions(after_4d, "4e"))  # (N, 832, 7, 7)
        x = self.inceptions(x, "5a 5b")  # (N, 1024, 7, 7)
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return (logits, self.aux1(after_4a), self.aux2(after_4d)) if self.training else logits


variant = partial(
    Architecture,
    family="googlenet",
    paper=Paper(
        title="Going Deeper with Convolutions",
        authors="C. Szegedy et al.",
        year=2014,
        id="arXiv:1409.4842",
    ),
    input_shape=(3, 224, 224),
    classes=1000,
    small=64,
)

ARCHITECTURES = (
    variant(
        name="googlenet",
        smallest=31,
        build=partial(GoogLeNet, batch_norm=False),
        recipe="googlenet",
        published=(
            single_crop(68.7, 88.9, "BVLC's README"),
            Published(data="ImageNet", top5=89.93, protocol="validation, one crop", source="paper, Table 3"),
            Published(data="ImageNet", top5=93.33, protocol="test, 7 networks, 144 crops", source="paper, Table 2"),
        ),
    ),
    variant(
        name="googlenet_bn_tv",
        smallest=15,
        build=partial(GoogLeNet, batch_norm=True),
        recipe="googlenet_bn_tv",
        published=(single_crop(69.778, 89.53),),
        weights=Weights(library="torchvision", model="googlenet"),
    ),
)
