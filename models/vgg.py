"""VGG: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014.

arXiv:1409.1556, Table 1, columns A, B, D and E; `_bn` puts a BN after each convolution, which keeps its bias, as
torchvision does (the paper predates it). Module names are torchvision's. Convolutions start from He's normal draw,
where the paper first trained column A; the pool before the first FC adapts to the paper's 7x7, so that small pictures
pass.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from models.card import Architecture, Paper, Published, Weights, single_crop
from models.layers import he_normal

# Table 1: the width of each 3x3; M is a 2x2 max pool.
COLUMNS = {
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",  # A
    "vgg13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",  # B
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",  # D
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",  # E
}


class VGG(nn.Module):
    """VGG: the 3x3 and pools of a column, a ReLU after each 3x3, then 4096, 4096, classes."""

    def __init__(self, classes: int, column: str, *, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in column.split():
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, int(width), 3, 1, 1))
            channels = int(width)
            layers += [nn.BatchNorm2d(channels)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            nn.Linear(4096, classes),
        )
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224)
        x = self.features(x)  # (N, 512, 7, 7)
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def variant(name: str, *published: Published) -> Architecture:
    """Return the card of a column of Table 1, with or without BN."""
    return Architecture(
        name=name,
        family="vgg",
        paper=Paper(
            title="Very Deep Convolutional Networks for Large-Scale Image Recognition",
            authors="K. Simonyan, A. Zisserman",
            year=2014,
            id="arXiv:1409.1556",
        ),
        input_shape=(3, 224, 224),
        classes=1000,
        smallest=32,
        small=64,
        build=partial(VGG, column=COLUMNS[name.removesuffix("_bn")], batch_norm=name.endswith("_bn")),
        recipe="torchvision" if name.endswith("_bn") else "vgg",
        published=published,
        weights=Weights(library="torchvision", model=name),
    )


dense = partial(Published, data="ImageNet", protocol="validation, one network, dense", source="paper, Table 3")

ARCHITECTURES = (
    variant("vgg11", single_crop(69.02, 88.628), dense(top1=70.4, top5=89.6)),
    variant("vgg11_bn", single_crop(70.37, 89.81)),
    variant("vgg13", single_crop(69.928, 89.246), dense(top1=71.3, top5=90.1)),
    variant("vgg13_bn", single_crop(71.586, 90.374)),
    variant("vgg16", single_crop(71.592, 90.382), dense(top1=74.4, top5=91.9)),
    variant("vgg16_bn", single_crop(73.36, 91.516)),
    variant("vgg19", single_crop(72.376, 90.876), dense(top1=74.5, top5=92.0)),
    variant("vgg19_bn", single_crop(74.218, 91.842)),
)
