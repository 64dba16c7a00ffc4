"""Tests that folding batch norms into convolutions changes no logit, and folds every batch norm that it may."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from engines.runtimes.torch import FromPixels, Normalise
from models.densenet import cifar_densenet
from models.fold import fold_batch_norms, foldable
from models.preact_resnet import PreActBasicBlock, PreActResNet
from models.zoo import ZOO
from tests.training.test_export import SE_RESNEXT, after_a_step

TOLERANCE = 1e-4  # of the largest logit, both float32
# Batch norms that stay: they follow a concatenation, an addition or a pool, or belong to a head for training.
LEFT = {"googlenet_bn_tv": 2, "inception_v3": 2, "preact_resnet200": 66, "densenet121": 62, "densenet_40_12": 39}


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def check_logits(net: nn.Module, channels: int, edge: int) -> nn.Module:
    """Return the folded network, whose logits are those of the network as it was."""
    pixels = torch.randint(256, (4, edge, edge, channels), dtype=torch.uint8)
    module = after_a_step(FromPixels(net, Normalise((0.5,) * channels, (0.5,) * channels)), pixels)
    folded = copy.deepcopy(module)
    fold_batch_norms(folded.net, (channels, edge, edge))
    with torch.inference_mode():
        expected, logits = module(pixels), folded(pixels)
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return folded.net


@pytest.mark.parametrize(
    ("build_net", "left"),
    [
        (partial(PreActResNet, block=PreActBasicBlock, depths=(1, 1, 1)), 3),
        (SE_RESNEXT, 0),
        (partial(cifar_densenet, depth=10, growth=4, bc=True), 6),
    ],
    ids=["preact_resnet", "se_resnext", "densenet"],
)
def test_small_nets_return_the_same_logits(build_net: Callable[[int], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    assert norms(check_logits(build_net(10), 3, 32)) == left


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_returns_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    card = ZOO[name]
    check_logits(card.build(10), card.input_shape[0], card.small)


@pytest.mark.parametrize(("name", "left"), [*LEFT.items(), ("resnet50", 0), ("inception_v4", 0), ("senet154", 0)])
def test_every_batch_norm_after_a_convolution_is_folded(name: str, left: int) -> None:
    with torch.device("meta"):
        net = ZOO[name].build(10).eval()
    pairs = foldable(net, (ZOO[name].input_shape[0], ZOO[name].small, ZOO[name].small))
    assert len(pairs) == norms(net) - left


class Shared(nn.Module):
    """Network of one channel whose convolution and batch norm are used in a way that forbids folding."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv, self.bn = way, nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        match self.way:
            case "output read twice":
                y = self.bn(y) + y
            case "ReLU between, in place":
                y = self.bn(y.relu_())
            case "convolution run twice":
                y = self.bn(self.conv(y))
            case "batch norm run twice":
                y = self.bn(self.bn(y))
            case _:
                y = self.bn(y)
        return y


@pytest.mark.parametrize(
    ("way", "count"),
    [
        ("alone", 1),
        ("output read twice", 0),
        ("ReLU between, in place", 0),
        ("convolution run twice", 0),
        ("batch norm run twice", 0),
    ],
)
def test_only_the_sole_reader_of_a_convolution_is_folded(way: str, count: int) -> None:
    assert len(foldable(Shared(way).eval(), (1, 4, 4))) == count
