"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, Table 1 and 4.2.

ResNeXt, Wide ResNet and SE-ResNet are rows over the same class, in files of their own. Module names are
torchvision's. Two deviations: a bottleneck's stride is in its 3x3, as in torchvision and fb.resnet.torch ("v1.5":
the paper has it in the first 1x1, with the same parameters and 6 % fewer MACs for ResNet-50); and the paper does not
say on which side option A pads the channels: here at the end, as fb.resnet.torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from models.card import Architecture, Paper, Published, Weights, on_cifar10, single_crop
from models.layers import he_normal


class OptionA(nn.Module):
    """Shortcut without parameters: every other pixel, zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def option_b(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut by projection: 1x1/s, BN."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


Shortcut = Callable[[int, int, int], nn.Module]


class ResidualBlock(nn.Module):
    """relu(residual(x) + x), where the shape changes + shortcut(x)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.outputs = outputs
        same = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if same else shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x) + self.downsample(x))
        return out


class BasicBlock(ResidualBlock):
    """3x3/s, BN, ReLU, 3x3, BN, + x, ReLU."""

    def __init__(self, inputs: int, planes: int, stride: int, shortcut: Shortcut = option_b) -> None:
        super().__init__(inputs, planes, stride, shortcut)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def residual(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out


class Bottleneck(ResidualBlock):
    """1x1, BN, ReLU, 3x3/s in `groups`, BN, ReLU, 1x1, BN, `gate`, + x, ReLU; or the stride in the first 1x1.

    A group is `width` channels wide where planes are 64.
    """

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        groups: int = 1,
        width: int = 64,
        *,
        stride_in_3x3: bool = True,
        gate: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__(inputs, planes * 4, stride, option_b)
        inner = planes * width // 64 * groups
        first, second = (1, stride) if stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, inner, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.gate = gate(planes * 4)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.gate(self.bn3(self.conv3(x)))
        return out


Block = Callable[[int, int, int], ResidualBlock]  # of inputs, planes, stride


class Stem(NamedTuple):
    """What comes before the first stage: `conv`, BN, ReLU, `pool`."""

    conv: nn.Module
    channels: int
    pool: nn.Module


def imagenet_stem() -> Stem:
    """7x7/2 of 64, 3x3/2 max pool: 224 to 56."""
    return Stem(nn.Conv2d(3, 64, 7, 2, 3, bias=False), 64, nn.MaxPool2d(3, 2, 1))


def cifar_stem(channels: int = 16) -> Stem:
    """3x3."""
    return Stem(nn.Conv2d(3, channels, 3, 1, 1, bias=False), channels, nn.Identity())


class ResNet(nn.Module):
    """Stem, a stage of blocks for each of `depths`, mean, dropout, linear; a stage doubles planes and halves sizes."""

    def __init__(
        self,
        classes: int,
        block: Block,
        depths: Sequence[int],
        stem: Callable[[], Stem] = imagenet_stem,
        planes: int = 64,
        dropout: float = 0,
    ) -> None:
        super().__init__()
        self.conv1, channels, self.maxpool = stem()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stages = [f"layer{number + 1}" for number in range(len(depths))]
        for number, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            blocks = [block(channels, planes * 2**number, 2 if number else 1)]
            channels = blocks[0].outputs
            blocks += [block(channels, planes * 2**number, 1) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, classes)
        he_normal(self)

    def features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, 56, 56), of CIFAR's (N, 16, 32, 32)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x  # (N, 2048, 7, 7) of bottlenecks, (N, 64, 8, 8) of CIFAR's

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224), of CIFAR's (N, 3, 32, 32)
        logits: Tensor = self.fc(self.dropout(self.avgpool(self.features(x)).flatten(1)))
        return logits


PAPER = Paper(
    title="Deep Residual Learning for Image Recognition",
    authors="K. He, X. Zhang, S. Ren, J. Sun",
    year=2015,
    id="arXiv:1512.03385",
)
IDENTITY_MAPPINGS = Paper(
    title="Identity Mappings in Deep Residual Networks",
    authors="K. He, X. Zhang, S. Ren, J. Sun",
    year=2016,
    id="arXiv:1603.05027",
)


def ten_crop(top1: float, top5: float) -> Published:
    """Of ImageNet's 50,000 validation images, with projections as shortcuts."""
    return Published(data="ImageNet", top1=top1, top5=top5, protocol="validation, ten crops", source="paper, Table 3")


def imagenet(name: str, block: Block, depths: Sequence[int], *published: Published) -> Architecture:
    """A column of Table 1."""
    return Architecture(
        name=name,
        family="resnet",
        paper=PAPER,
        input_shape=(3, 224, 224),
        classes=1000,
        smallest=1,
        small=64,
        build=partial(ResNet, block=block, depths=depths),
        published=published,
        weights=Weights(library="torchvision", model=name),
    )


cifar = partial(Architecture, family="resnet", paper=PAPER, input_shape=(3, 32, 32), classes=10, smallest=1, small=32)


def basic_blocks(blocks: int) -> Callable[[int], nn.Module]:
    """Section 4.2: stages of 16, 32 and 64 planes, 6 * `blocks` + 2 layers."""
    return partial(
        ResNet, block=partial(BasicBlock, shortcut=OptionA), depths=(blocks,) * 3, stem=cifar_stem, planes=16
    )


table_6 = partial(on_cifar10, source="paper, Table 6")

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
    cifar(name="resnet20_cifar", build=basic_blocks(3), published=(table_6(91.25),)),
    cifar(name="resnet32_cifar", build=basic_blocks(5), published=(table_6(92.49),)),
    cifar(name="resnet44_cifar", build=basic_blocks(7), published=(table_6(92.83),)),
    cifar(name="resnet56_cifar", build=basic_blocks(9), published=(table_6(93.03),)),
    cifar(
        name="resnet110_cifar", build=basic_blocks(18), published=(on_cifar10(93.57, "paper, Table 6, best of 5 runs"),)
    ),
    cifar(name="resnet1202_cifar", build=basic_blocks(200), published=(table_6(92.07),)),
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
        published=(on_cifar10(94.07, "paper, Table 2"),),
    ),
)
