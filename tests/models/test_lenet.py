"""Tests of LeNet-5 against the numbers of its paper."""

from __future__ import annotations

import pytest
import torch

from models.complexity import complexity
from models.lenet import C3_FOUR, C3_THREE, LeNet5, PartialConv, ScaledTanh, Subsampling, digit_codes
from models.zoo import ZOO

LAYERS = {layer.name: layer for layer in complexity(ZOO["lenet5"]).layers}


@pytest.mark.parametrize(
    ("layers", "params"),
    [
        (["c1"], 156),
        (["s2"], 12),
        (["c3.three", "c3.four", "c3.six"], 1_516),
        (["s4"], 32),
        (["c5"], 48_120),
        (["f6"], 10_164),
        (["output"], 0),
    ],
)
def test_parameters_of_each_layer(layers: list[str], params: int) -> None:
    assert sum(LAYERS[name].params for name in layers) == params


def test_connections_are_the_papers() -> None:
    # Each output is connected to its dot product's inputs and a bias, a subsampling unit to four inputs and a bias.
    convolutions = sum(layer.macs + layer.activations for layer in LAYERS.values())
    subsamplings = 5 * (6 * 14 * 14 + 16 * 5 * 5)
    assert convolutions + subsamplings + 10 * 84 == 340_908


def test_output_shapes_of_each_layer() -> None:
    assert [LAYERS[name].output_shape for name in ("c1", "s2", "s4", "c5", "f6", "output")] == [
        *[(6, 28, 28), (6, 14, 14), (16, 5, 5), (120, 1, 1), (84,), (10,)]
    ]


def test_each_c3_map_sees_its_row_of_table_1_and_no_other() -> None:
    c3, x = PartialConv(), torch.randn(1, 6, 14, 14, requires_grad=True)
    for output, row in enumerate([*C3_THREE, *C3_FOUR, tuple(range(6))]):
        (seen,) = torch.autograd.grad(c3(x)[0, output].sum(), x)
        assert {index for index in range(6) if seen[0, index].any()} == set(row)


def test_the_squashing_function_maps_one_to_one() -> None:
    assert ScaledTanh()(torch.tensor([1.0, -1.0])).tolist() == pytest.approx([1, -1], abs=1e-4)


def test_subsampling_sums_scales_and_shifts() -> None:
    layer = Subsampling(1)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(3.0)
    assert layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).item() == 0.5 * 10 + 3


def test_a_code_has_distance_zero_to_its_own_class() -> None:
    net = LeNet5(10)
    codes = digit_codes()
    assert codes.shape == (10, 84)
    logits = net.output(codes)
    assert torch.equal(logits.argmax(1), torch.arange(10))
    assert torch.equal(logits.diagonal(), torch.zeros(10))
    assert logits[0, 1] == -((codes[0] - codes[1]) ** 2).sum()


def test_an_eleventh_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 10 classes"):
        LeNet5(11)
