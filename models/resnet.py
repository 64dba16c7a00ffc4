"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, section 4.2.

Module names are torchvision's. The paper does not say on which side option A pads the channels; the end, as in
facebook's fb.resnet.torch.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.card import Architecture, Paper, Published
from models.layers import he_normal


class OptionA(nn.Module):
    """Identity shortcut across a change of shape: every other pixel, zeros for the new channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """3x3/s, BN, ReLU, 3x3, BN, + x, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = OptionA(outputs - inputs) if stride == 2 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class CifarResNet(nn.Module):
    """3x3 of 16, then three stages of `blocks` basic blocks, 16, 32 and 64 wide: 6 * blocks + 2 layers."""

    def __init__(self, classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(16, 16, blocks, stride=1)
        self.layer2 = stage(16, 32, blocks, stride=2)
        self.layer3 = stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, 8, 8)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` blocks, the first of which changes shape."""
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


PAPER = Paper(
    title="Deep Residual Learning for Image Recognition",
    authors="K. He, X. Zhang, S. Ren, J. Sun",
    year=2015,
    id="arXiv:1512.03385",
)

RESNET = (
    Architecture(
        name="resnet20_cifar",
        family="resnet",
        paper=PAPER,
        input_shape=(3, 32, 32),
        classes=10,
        build=partial(CifarResNet, blocks=3),
        published=(Published(metric="CIFAR-10 test error %", value=8.75, source="paper, Table 6"),),
    ),
)
