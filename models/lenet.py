"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998, Figure 2.

Two deviations. The outputs are the negated RBF distances, so that the largest wins and a softmax of the outputs is
the posterior of the classes (the paper adds a "rubbish" class to its posterior: map_loss in training/losses.py). The
RBF codes are a legible 7x12 alphabet drawn for this file in the style of the paper's Figure 3, not a copy of the
figure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.card import Architecture, Paper, Published

# Table I: the S2 maps that each C3 map reads, grouped by their number.
C3_THREE = ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5))
C3_FOUR = (
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
)

# The targets of F6: digits of 7x12 pixels, side by side.
BITMAPS = """
 .#####. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
 ##...## ..###.. ##...## ##...## ...###. ##..... .##.... ##...## ##...## ##...##
 ##...## .####.. ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
 ##...## ...##.. .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
 ##...## ...##.. .....## .....## ##..##. ######. ######. ....##. .##.##. ##...##
 ##...## ...##.. ....##. ..####. ##..##. .....## ##...## ...##.. .#####. .######
 ##...## ...##.. ...##.. .....## ####### .....## ##...## ...##.. ##...## .....##
 ##...## ...##.. ..##... .....## ....##. .....## ##...## ..##... ##...## .....##
 ##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
 ##...## ...##.. ##..... .....## ....##. ##...## ##...## ..##... ##...## ....##.
 ##...## ...##.. ##..... ##...## ....##. ##...## ##...## ..##... ##...## ...##..
 .#####. .###### ####### .#####. ....##. .#####. .#####. ..##... .#####. .###...
"""


def digit_codes() -> Tensor:
    """Return the ten RBF centres, (10, 84), of -1 and +1."""
    rows = [line.split() for line in BITMAPS.split("\n") if line]
    digits = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in digits])


class ScaledTanh(nn.Module):
    """Scaled tanh: f(a) = 1.7159 tanh(2/3 a), so that f(1) = 1 and f(-1) = -1 (Appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """Subsampling: sum of each 2x2 window, times a trainable coefficient a map, plus a trainable bias a map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps, 1, 1))
        self.bias = nn.Parameter(torch.empty(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) * 4 * self.weight + self.bias


class PartialConv(nn.Module):
    """Layer C3: 5x5 convolutions whose output maps each read only their row of Table I: 1,516 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Conv2d(18, 6, 5, groups=6)
        self.four = nn.Conv2d(36, 9, 5, groups=9)
        self.six = nn.Conv2d(6, 1, 5)
        self.register_buffer("three_maps", torch.tensor(C3_THREE).flatten(), persistent=False)
        self.register_buffer("four_maps", torch.tensor(C3_FOUR).flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        three = self.three(x.index_select(1, self.get_buffer("three_maps")))
        four = self.four(x.index_select(1, self.get_buffer("four_maps")))
        return torch.cat([three, four, self.six(x)], dim=1)


class RBF(nn.Module):
    """Output layer of Euclidean radial basis functions with fixed centres: -sum_j (x_j - w_ij)^2 for class i."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.register_buffer("centres", centres)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.unsqueeze(1) - self.get_buffer("centres")).square().sum(2)


class LeNet5(nn.Module):
    """LeNet-5: C1 5x5, S2, C3 5x5, S4, C5 5x5, F6, RBF; a scaled tanh after each but the last."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        if classes > 10:
            raise ValueError(f"lenet5 has a code for each of ten digits, so at most 10 classes, not {classes}")
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = PartialConv()
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = RBF(digit_codes()[:classes])
        self.squash = ScaledTanh()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly from +-2.4 / fan-in (Appendix A)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | Subsampling):
                fan_in = 4 if isinstance(module, Subsampling) else module.weight[0].numel()
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 32, 32), background -0.1, ink 1.175
        x = self.squash(self.s2(self.squash(self.c1(x))))  # (N, 6, 14, 14)
        x = self.squash(self.s4(self.squash(self.c3(x))))  # (N, 16, 5, 5)
        x = self.squash(self.c5(x)).flatten(1)  # (N, 120)
        x = self.squash(self.f6(x))  # (N, 84)
        logits: Tensor = self.output(x)
        return logits


class LeNet5Modern(nn.Sequential):
    """LeNet-5 as usually built today: 5x5 of 6, pool, 5x5 of 16, pool, 5x5 of 120, 84, classes; a tanh after each.

    The lecture's [CONV-POOL-CONV-POOL-CONV-FC-FC]. Every map of C3 reads all maps of S2; the pool is a 2x2 mean.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.c1, self.tanh1, self.s2 = nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2)
        self.c3, self.tanh3, self.s4 = nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)
        self.c5, self.tanh5, self.flatten = nn.Conv2d(16, 120, 5), nn.Tanh(), nn.Flatten()
        self.f6, self.tanh6 = nn.Linear(120, 84), nn.Tanh()
        self.output = nn.Linear(84, classes)


def variant(name: str, build: Callable[[int], nn.Module], *published: Published) -> Architecture:
    """Return the card of a variant: digits of 28x28 in a field of 32x32, a size that C5 fixes."""
    return Architecture(
        name=name,
        family="lenet",
        paper=Paper(
            title="Gradient-Based Learning Applied to Document Recognition",
            authors="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner",
            year=1998,
            id="doi:10.1109/5.726791",
        ),
        input_shape=(1, 32, 32),
        classes=10,
        smallest=32,
        small=32,
        build=build,
        recipe=name,
        published=published,
    )


ARCHITECTURES = (
    variant(
        "lenet5",
        LeNet5,
        Published(data="MNIST", top1=99.05, protocol="test, trained on 60,000 undistorted images", source="paper"),
        Published(data="MNIST", top1=99.2, protocol="test, trained with distortions", source="paper"),
    ),
    variant("lenet5_modern", LeNet5Modern),
)
