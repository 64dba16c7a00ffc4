"""Exact costs, each against a number that somebody else stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.__main__ import cards
from models.complexity import complexity, trace
from models.zoo import ZOO, build

# parameters, MACs, activations at the paper's input
COUNTS = {
    "lenet5": (60_000, 325_680, 6_508),  # paper, section II.B: 60,000 trainable parameters
    "resnet20_cifar": (269_722, 40_551_040, 188_426),  # paper, Table 6: 0.27M
    "senet154": (115_088_984, 20_688_363_520, 38_687_384),  # the authors' Caffe prototxt; timm's legacy_senet154
}


def test_every_architecture_has_a_stated_count() -> None:
    assert COUNTS.keys() == ZOO.keys()


@pytest.mark.parametrize("name", ZOO)
def test_counts(name: str) -> None:
    cost = complexity(ZOO[name])
    assert (cost.params, cost.macs, cost.activations) == COUNTS[name]


@pytest.mark.parametrize("name", ZOO)
def test_no_parameter_is_missed(name: str) -> None:
    with torch.device("meta"):
        net = build(name, ZOO[name].classes)
    assert complexity(ZOO[name]).params == sum(parameter.numel() for parameter in net.parameters())


def test_bytes_are_float32() -> None:
    cost = complexity(ZOO["lenet5"])
    assert cost.param_bytes == 240_000
    assert cost.layers[0].output_bytes == 4 * 6 * 28 * 28


def test_a_smaller_input_costs_less_and_has_the_same_parameters() -> None:
    small, paper = complexity(ZOO["senet154"], (3, 64, 64), 10), complexity(ZOO["senet154"])
    assert small.macs < paper.macs / 10
    assert paper.params - small.params == 990 * (2048 + 1)


def test_an_unknown_architecture_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        build("lenet6", 10)


def test_what_the_service_shows_is_what_the_networks_cost() -> None:
    shown = Path(__file__).parents[2] / "service" / "architectures.json"
    assert json.loads(shown.read_text()) == json.loads(json.dumps(cards())), "run `make architectures`"


def test_macs_of_a_grouped_convolution_by_hand() -> None:
    (layer,) = trace(nn.Sequential(nn.Conv2d(8, 4, 3, groups=2)), torch.zeros(1, 8, 5, 5))
    assert layer.macs == (4 * 3 * 3) * (4 * 3 * 3)  # outputs, times the inputs that each sees
    assert layer.params == 4 * (4 * 3 * 3 + 1)
