"""What several families share."""

from __future__ import annotations

from torch import Tensor, nn


def he_normal(net: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / fan-out) (He et al. 2015, arXiv:1502.01852)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SqueezeExcitation(nn.Module):
    """x * sigmoid(1x1, ReLU, 1x1 of the mean over height and width) (Hu et al. 2017, arXiv:1709.01507, Figure 1)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))
        return x * scale
