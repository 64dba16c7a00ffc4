"""Layers that several families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kernel = int | tuple[int, int]


def he_normal(net: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / fan-in), biases 0 (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: x * sigmoid(1x1, ReLU, 1x1 of x's spatial mean) (Hu et al. 2017, arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))
        return x * scale


class ConvReLU(nn.Sequential):
    """Convolution and ReLU; at stride 1 the default padding keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding)
        self.relu = nn.ReLU(inplace=True)


class ConvBN(nn.Sequential):
    """Convolution without bias, BN and ReLU; at stride 1 the default padding keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        around = (height // 2, width // 2) if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, around, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)


class Concat(nn.ModuleDict):
    """Concatenation of the outputs of parallel branches, along the channels."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def chain(inputs: int, *convs: tuple[int, Kernel] | tuple[int, Kernel, int]) -> nn.Sequential:
    """Return a sequence of ConvBNs: (outputs, kernel) is padded to keep the size, (outputs, kernel, stride) is not."""
    layers = []
    for outputs, kernel, *stride in convs:
        layers.append(ConvBN(inputs, outputs, kernel, stride[0], 0) if stride else ConvBN(inputs, outputs, kernel))
        inputs = outputs
    return nn.Sequential(*layers)


def split(inputs: int, outputs: int) -> Concat:
    """Return a 1x3 and a 3x1 convolution side by side."""
    return Concat(a=ConvBN(inputs, outputs, (1, 3)), b=ConvBN(inputs, outputs, (3, 1)))


def grid_mean(x: Tensor, kernel: int, stride: int, grid: int) -> Tensor:
    """Return the mean of each `kernel` x `kernel` window, (N, C, grid, grid); small maps are cut into equal parts."""
    if min(x.shape[2:]) >= kernel + (grid - 1) * stride:
        x = F.avg_pool2d(x, kernel, stride)
    return F.adaptive_avg_pool2d(x, grid)


class Classifier(nn.Module):
    """Classifier: features, mean over the map, dropout, linear."""

    def __init__(self, features: nn.Module, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.dropout(self.avgpool(self.features(x)).flatten(1)))
        return logits
