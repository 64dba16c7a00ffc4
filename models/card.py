"""Cards of architectures, known before any weights exist: plain data, no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Paper that introduced an architecture; `id` is an arXiv number, a DOI, or the name of the proceedings."""

    title: str
    authors: str
    year: int
    id: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """Accuracies that `source` states, in percent; a stated error is converted to 100 minus the error.

    `top1` or `top5` is None if not stated. `protocol` describes the evaluation: images, crops, models.
    """

    data: Literal["MNIST", "CIFAR-10", "ImageNet"]
    top1: float | None = None
    top5: float | None = None
    protocol: str
    source: str


def single_crop(top1: float, top5: float, source: str = "torchvision IMAGENET1K_V1", edge: int = 224) -> Published:
    """Return the accuracy of one centre crop of each of ImageNet's 50,000 validation images."""
    return Published(data="ImageNet", top1=top1, top5=top5, protocol=f"validation, one {edge} crop", source=source)


def on_cifar10(top1: float, source: str) -> Published:
    """Return the accuracy on CIFAR-10's 10,000 test images, after training with shifts and flips."""
    return Published(data="CIFAR-10", top1=top1, protocol="test, with augmentation", source=source)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the same architecture in a library, and the translation of their keys to this project's names.

    Each pair of `rename`, a regular expression and its replacement, is applied to every key, in order. Keys that match
    one of `drop` are left out. `reorder` then puts the channels of all tensors into this project's order. `accuracy` is
    top-1 and top-5, in percent, for libraries whose metadata lack the accuracy: of one centre crop of each of
    ImageNet's validation images, or of CIFAR-10's test images, where a top-5 is not stated.
    """

    library: Literal["torchvision", "timm", "pytorch_resnet_cifar10"]
    model: str
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    reorder: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    accuracy: tuple[float, float | None] | None = None

    @property
    def data(self) -> Literal["imagenet", "cifar10"]:
        """Data set that the weights were trained on."""
        return "cifar10" if self.library == "pytorch_resnet_cifar10" else "imagenet"

    def translate(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return the library's state dict under this project's names."""
        translated = {}
        for key, value in state.items():
            if any(re.search(pattern, key) for pattern in self.drop):
                continue
            for pattern, replacement in self.rename:
                key = re.sub(pattern, replacement, key)  # noqa: PLW2901
            translated[key] = value
        return self.reorder(translated) if self.reorder else translated


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Card of one variant of a family: the facts about a network that hold before any weights exist.

    `input_shape` (channels, height, width) and `classes` are the paper's. `smallest` is the edge in pixels of the
    smallest square image that the network accepts; `small` is the edge for training on small images. `build(classes)`
    returns the network with fresh weights, drawn from torch's global generator. `recipe` is the key of the paper's
    training recipe in the training package; "modern" stands for a present-day recipe where the paper has none. The
    first of the `published` results is the one for comparisons.
    """

    name: str
    family: str
    paper: Paper
    input_shape: tuple[int, int, int]
    classes: int
    smallest: int
    small: int
    build: Callable[[int], nn.Module]
    recipe: str = "modern"
    published: tuple[Published, ...] = ()
    weights: Weights | None = None
