"""SENet: Hu, Shen, Albanie, Sun, Wu, "Squeeze-and-Excitation Networks", 2017, arXiv:1709.01507, Table 1 and appendix.

Rows over ResNet, with a squeeze-and-excitation on each residual; `se_inception` puts one on each module of Inception
v2. All as the authors released them for Caffe: the stem's pool without padding, but rounding up; SE-ResNet's stride in
the first 1x1. Module names are torchvision's of ResNet; the released weights have Cadene's, hence the renaming.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from models.card import Architecture, Paper, Published, Weights, single_crop
from models.inception_v2 import inception_v2
from models.layers import SqueezeExcitation
from models.residual import Bottleneck, ResNet, Stem


class SENetBottleneck(Bottleneck):
    """Bottleneck of SENet-154.

    Unlike SE-ResNeXt's, 64x4d, the first 1x1 has half the maps, and a shortcut that halves the map size is a 3x3.
    """

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__(inputs, planes, stride, groups=64, width=4, gate=SqueezeExcitation)
        self.conv1 = nn.Conv2d(inputs, planes * 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes * 2)
        self.conv2 = nn.Conv2d(planes * 2, planes * 4, 3, stride, 1, groups=64, bias=False)
        if stride > 1:
            projection = nn.Conv2d(inputs, planes * 4, 3, stride, 1, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(planes * 4))


def caffe_stem() -> Stem:
    """Return the stem 7x7/2 of 64, 3x3/2 max pool."""
    return Stem(nn.Conv2d(3, 64, 7, 2, 3, bias=False), 64, nn.MaxPool2d(3, 2, ceil_mode=True))


def deep_stem() -> Stem:
    """Return the stem 3x3/2 of 64, 3x3 of 64, 3x3 of 128, 3x3/2 max pool."""
    convs = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        *(nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        nn.Conv2d(64, 128, 3, 1, 1, bias=False),
    )
    return Stem(convs, 128, nn.MaxPool2d(3, 2, ceil_mode=True))


RENAME = (("^layer0.", ""), ("se_module", "gate"), ("last_linear", "fc"))
RENAME_DEEP_STEM = (
    *((r"layer0\.conv1", "conv1.0"), (r"layer0\.bn1", "conv1.1")),
    *((r"layer0\.conv2", "conv1.3"), (r"layer0\.bn2", "conv1.4")),
    *((r"layer0\.conv3", "conv1.6"), (r"layer0\.bn3", "bn1")),
)


variant = partial(
    Architecture,
    family="senet",
    paper=Paper(
        title="Squeeze-and-Excitation Networks",
        authors="J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu",
        year=2017,
        id="arXiv:1709.01507",
    ),
    input_shape=(3, 224, 224),
    classes=1000,
    smallest=3,
    small=64,
    recipe="senet",
)
readme = partial(single_crop, source="authors' README")
table_2 = partial(single_crop, source="paper, Table 2")

se_bottleneck = partial(Bottleneck, gate=SqueezeExcitation)
se_resnet = partial(ResNet, block=partial(se_bottleneck, stride_in_3x3=False), stem=caffe_stem)
se_resnext = partial(ResNet, block=partial(se_bottleneck, groups=32, width=4), stem=caffe_stem)


def of_timm(model: str, accuracy: tuple[float, float], rename: tuple[tuple[str, str], ...] = RENAME) -> Weights:
    """Return timm's conversion of the authors' own weights."""
    return Weights(library="timm", model=model, accuracy=accuracy, rename=rename)


ARCHITECTURES = (
    variant(
        name="se_resnet50",
        build=partial(se_resnet, depths=(3, 4, 6, 3)),
        published=(readme(77.63, 93.64), table_2(76.71, 93.38)),
        weights=of_timm("legacy_seresnet50.in1k", (77.65, 93.732)),
    ),
    variant(
        name="se_resnet101",
        build=partial(se_resnet, depths=(3, 4, 23, 3)),
        published=(readme(78.25, 94.28), table_2(77.62, 93.93)),
        weights=of_timm("legacy_seresnet101.in1k", (78.37, 94.264)),
    ),
    variant(
        name="se_resnet152",
        build=partial(se_resnet, depths=(3, 8, 36, 3)),
        published=(readme(78.66, 94.46), table_2(78.43, 94.27)),
        weights=of_timm("legacy_seresnet152.in1k", (78.662, 94.37)),
    ),
    variant(
        name="se_resnext50_32x4d",
        build=partial(se_resnext, depths=(3, 4, 6, 3)),
        published=(readme(79.03, 94.46), table_2(78.9, 94.51)),
        weights=of_timm("legacy_seresnext50_32x4d.in1k", (79.08, 94.428)),
    ),
    variant(
        name="se_resnext101_32x4d",
        build=partial(se_resnext, depths=(3, 4, 23, 3)),
        published=(readme(80.19, 95.04), table_2(79.3, 94.99)),
        weights=of_timm("legacy_seresnext101_32x4d.in1k", (80.274, 95.032)),
    ),
    variant(
        name="se_inception",
        smallest=31,
        build=partial(inception_v2, projection=128, gate=SqueezeExcitation),
        published=(readme(76.38, 92.96), table_2(75.77, 92.86)),
    ),
    variant(
        name="senet154",
        build=partial(ResNet, block=SENetBottleneck, depths=(3, 8, 36, 3), stem=deep_stem, dropout=0.2),
        recipe="senet154",
        published=(
            readme(81.32, 95.53),
            single_crop(82.72, 96.21, "paper", edge=320),
            Published(data="ImageNet", top5=97.749, protocol="test, several networks", source="paper"),
        ),
        weights=of_timm("legacy_senet154.in1k", (81.32, 95.502), (*RENAME_DEEP_STEM, *RENAME)),
    ),
)
