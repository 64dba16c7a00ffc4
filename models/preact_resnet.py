"""Pre-activated ResNet: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016, arXiv:1603.05027.

Figure 4(e), and the appendix for the ends: the first unit is activated right after the stem and before the branches,
and a BN and ReLU follow the last unit. Where the shape changes, the shortcut too starts from the activated tensor.
On CIFAR a bottleneck's stride is in its first 1x1 (the authors' resnet-1k-layers); on ImageNet in its 3x3
(fb.resnet.torch). Table 2's baseline of original units is resnet.py's `resnet164_cifar`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from models.card import Architecture, Paper, on_cifar10, single_crop
from models.residual import Block, OptionA, ResidualBlock, ResNet, Shortcut, Stem, cifar_stem, imagenet_stem


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return a shortcut by projection: 1x1/s without BN."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class PreActBlock(ResidualBlock):
    """Pre-activated block: residual(relu(BN(x))) + x; where the shape changes, + shortcut(relu(BN(x)))."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__(inputs, outputs, stride, shortcut)
        self.bn1: nn.Module = nn.BatchNorm2d(inputs)  # an Identity in the network's first block
        self.relu = nn.ReLU()  # not in place, since the shortcut may read the same tensor

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(activated)
        return self.residual(activated) + shortcut


class PreActBasicBlock(PreActBlock):
    """Pre-activated basic block: BN, ReLU, 3x3/s, BN, ReLU, dropout, 3x3, + x."""

    def __init__(
        self, inputs: int, planes: int, stride: int, shortcut: Shortcut = projection, dropout: float = 0
    ) -> None:
        super().__init__(inputs, planes, stride, shortcut)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)

    def residual(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.dropout(self.relu(self.bn2(self.conv1(x)))))
        return out


class PreActBottleneck(PreActBlock):
    """Pre-activated bottleneck: BN, ReLU, 1x1/s, BN, ReLU, 3x3, BN, ReLU, 1x1, + x; or the stride in the 3x3."""

    def __init__(self, inputs: int, planes: int, stride: int, *, stride_in_3x3: bool) -> None:
        super().__init__(inputs, planes * 4, stride, projection)
        first, second = (1, stride) if stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, planes, 1, first, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)

    def residual(self, x: Tensor) -> Tensor:
        x = self.conv2(self.relu(self.bn2(self.conv1(x))))
        out: Tensor = self.conv3(self.relu(self.bn3(x)))
        return out


class PreActResNet(ResNet):
    """ResNet of pre-activated blocks: the stem activates the first block; a BN and ReLU follow the last."""

    def __init__(
        self, classes: int, block: Block, depths: Sequence[int], stem: Callable[[], Stem] = cifar_stem, planes: int = 16
    ) -> None:
        super().__init__(classes, block, depths, stem, planes)
        first: PreActBlock = self.get_submodule("layer1.0")  # type: ignore[assignment]
        first.bn1 = nn.Identity()
        self.norm = nn.BatchNorm2d(self.fc.in_features)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.relu(self.norm(super().features(x)))
        return features


IDENTITY_MAPPINGS = Paper(
    title="Identity Mappings in Deep Residual Networks",
    authors="K. He, X. Zhang, S. Ren, J. Sun",
    year=2016,
    id="arXiv:1603.05027",
)

variant = partial(
    Architecture,
    family="preact_resnet",
    paper=IDENTITY_MAPPINGS,
    smallest=1,
)
cifar = partial(variant, input_shape=(3, 32, 32), classes=10, small=32, recipe="warmed_up")


def bottlenecks(blocks: int) -> Callable[[int], nn.Module]:
    """Return a CIFAR network of three stages of `blocks` bottlenecks: 9 * `blocks` + 2 layers."""
    return partial(PreActResNet, block=partial(PreActBottleneck, stride_in_3x3=False), depths=(blocks,) * 3)


table_2 = partial(on_cifar10, source="paper, Table 2, median of 5 runs")

ARCHITECTURES = (
    cifar(
        name="preact_resnet110",
        build=partial(PreActResNet, block=partial(PreActBasicBlock, shortcut=OptionA), depths=(18, 18, 18)),
        published=(table_2(93.63),),
    ),
    cifar(
        name="preact_resnet164",
        build=bottlenecks(18),
        published=(table_2(94.54),),
    ),
    cifar(
        name="preact_resnet1001",
        build=bottlenecks(111),
        published=(on_cifar10(95.08, "authors' README, batch 128 (95.38 with 64)"),),
    ),
    variant(
        name="preact_resnet200",
        input_shape=(3, 224, 224),
        classes=1000,
        small=64,
        recipe="preact_resnet200",
        build=partial(
            PreActResNet,
            block=partial(PreActBottleneck, stride_in_3x3=True),
            depths=(3, 24, 36, 3),
            stem=imagenet_stem,
            planes=64,
        ),
        published=(
            single_crop(78.34, 94.21, "fb.resnet.torch"),
            single_crop(79.9, 95.2, "paper", edge=320),
        ),
    ),
)
