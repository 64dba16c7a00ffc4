"""AlexNet: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012.

Figure 2 and section 3, the two GPUs as two groups of CONV2, CONV4 and CONV5. The paper states an input of 224, but its
55x55 maps need 227. torch's LRN divides alpha by its size where the paper does not, so 5e-4 here is the paper's 1e-4.
Convolutions start from He's normal draw and biases of 0, not N(0, 0.01) and some of 1. `alexnet_owt` is the one-tower
network of Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, arXiv:1404.5997, with
torchvision's layers and module names. The pool before FC6 adapts to the paper's 6x6, so that small pictures pass.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.card import Architecture, Paper, Published, Weights, single_crop
from models.layers import he_normal


def response_norm() -> nn.Module:
    """Divide x by (2 + 1e-4 * the sum of 5 neighbouring channels' squares) ** 0.75 (section 3.3)."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)


class AlexNet(nn.Module):
    """AlexNet: 11x11/4 of 96, LRN, pool, 5x5 of 256, LRN, pool, 3x3 of 384, 384 and 256, pool, 4096, 4096, classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, 4)
        self.norm1 = response_norm()
        self.pool1 = nn.MaxPool2d(3, 2)
        self.conv2 = nn.Conv2d(96, 256, 5, 1, 2, groups=2)
        self.norm2 = response_norm()
        self.pool2 = nn.MaxPool2d(3, 2)
        self.conv3 = nn.Conv2d(256, 384, 3, 1, 1)
        self.conv4 = nn.Conv2d(384, 384, 3, 1, 1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, 1, 1, groups=2)
        self.pool5 = nn.MaxPool2d(3, 2)
        self.adapt = nn.AdaptiveAvgPool2d(6)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 227, 227)
        x = self.pool1(self.norm1(self.relu(self.conv1(x))))  # (N, 96, 27, 27)
        x = self.pool2(self.norm2(self.relu(self.conv2(x))))  # (N, 256, 13, 13)
        x = self.relu(self.conv4(self.relu(self.conv3(x))))  # (N, 384, 13, 13)
        x = self.pool5(self.relu(self.conv5(x)))  # (N, 256, 6, 6)
        x = self.dropout(self.relu(self.fc6(self.adapt(x).flatten(1))))
        x = self.dropout(self.relu(self.fc7(x)))
        logits: Tensor = self.fc8(x)
        return logits


class AlexNetOWT(nn.Module):
    """One-tower AlexNet without groups or LRN.

    11x11/4 of 64, pool, 5x5 of 192, pool, 3x3 of 384, 256 and 256, pool, 4096, 4096, classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),  # (N, 64, 27, 27)
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),  # (N, 192, 13, 13)
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),  # (N, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            *(nn.Dropout(0.5), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)),
            *(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(inplace=True)),
            nn.Linear(4096, classes),
        )
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224)
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


ARCHITECTURES = (
    Architecture(
        name="alexnet",
        family="alexnet",
        paper=Paper(
            title="ImageNet Classification with Deep Convolutional Neural Networks",
            authors="A. Krizhevsky, I. Sutskever, G. Hinton",
            year=2012,
            id="NIPS 2012",
        ),
        input_shape=(3, 227, 227),
        classes=1000,
        smallest=67,
        small=96,
        build=AlexNet,
        recipe="alexnet",
        published=(
            single_crop(57.1, 80.2, "BVLC's README", edge=227),
            Published(data="ImageNet", top1=59.3, top5=81.8, protocol="validation, ten crops", source="paper"),
        ),
    ),
    Architecture(
        name="alexnet_owt",
        family="alexnet",
        paper=Paper(
            title="One weird trick for parallelizing convolutional neural networks",
            authors="A. Krizhevsky",
            year=2014,
            id="arXiv:1404.5997",
        ),
        input_shape=(3, 224, 224),
        classes=1000,
        smallest=63,
        small=96,
        build=AlexNetOWT,
        recipe="alexnet_owt",
        published=(single_crop(56.522, 79.066),),
        weights=Weights(library="torchvision", model="alexnet"),
    ),
)
