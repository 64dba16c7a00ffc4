"""Library of residual networks: shortcuts, blocks, stems, and the network that stacks them.

Module names are torchvision's. Two deviations from "Deep Residual Learning" (arXiv:1512.03385): a bottleneck's stride
is in its 3x3, as in torchvision and fb.resnet.torch ("v1.5": the paper has it in the first 1x1, with the same
parameters and 6 % fewer MACs for ResNet-50); and the paper does not say on which side option A pads the channels: here
at the end, as fb.resnet.torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import he_normal


class OptionA(nn.Module):
    """Shortcut without parameters, the paper's option A: every s-th pixel, zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def option_b(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return a shortcut by projection, the paper's option B: 1x1/s, BN."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


Shortcut = Callable[[int, int, int], nn.Module]


class ResidualBlock(nn.Module):
    """Residual block: relu(residual(x) + x), or + shortcut(x) where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.outputs = outputs
        same = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if same else shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Batch norm before the addition."""
        return [layer for layer in self.children() if isinstance(layer, nn.BatchNorm2d)][-1]

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x) + self.downsample(x))
        return out


class BasicBlock(ResidualBlock):
    """Basic block: 3x3/s, BN, ReLU, 3x3, BN, + x, ReLU."""

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
    """Bottleneck: 1x1, BN, ReLU, 3x3/s in `groups`, BN, ReLU, 1x1, BN, `gate`, + x, ReLU.

    The stride can also be in the first 1x1. A group is `width` channels wide where planes are 64.
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


Block = Callable[[int, int, int], ResidualBlock]  # (inputs, planes, stride) -> block


class Stem(NamedTuple):
    """Layers before the first stage: `conv`, BN, ReLU, `pool`."""

    conv: nn.Module
    channels: int
    pool: nn.Module


def imagenet_stem() -> Stem:
    """Return ImageNet's stem, 7x7/2 of 64 and 3x3/2 max pool: 224 to 56 pixels."""
    return Stem(nn.Conv2d(3, 64, 7, 2, 3, bias=False), 64, nn.MaxPool2d(3, 2, 1))


def cifar_stem(channels: int = 16) -> Stem:
    """Return CIFAR's stem: one 3x3 convolution."""
    return Stem(nn.Conv2d(3, channels, 3, 1, 1, bias=False), channels, nn.Identity())


class ResNet(nn.Module):
    """ResNet: stem, a stage of blocks for each of `depths`, mean, dropout, linear.

    Each stage after the first doubles the planes and halves the sizes.
    """

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
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, 56, 56), on CIFAR (N, 16, 32, 32)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x  # (N, 2048, 7, 7) with bottlenecks, on CIFAR (N, 64, 8, 8)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224), on CIFAR (N, 3, 32, 32)
        logits: Tensor = self.fc(self.dropout(self.avgpool(self.features(x)).flatten(1)))
        return logits
