"""Every architecture runs forward and backward."""

from __future__ import annotations

import pytest
import torch

from models.resnet import OptionA
from models.zoo import ZOO, build

SIZES = {"senet154": 64}


@pytest.mark.parametrize("name", ZOO)
def test_each_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    channels, height, _ = ZOO[name].input_shape
    edge = SIZES.get(name, height)
    net = build(name, 10)
    logits = net(torch.randn(2, channels, edge, edge))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    without = [key for key, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_option_a_subsamples_and_appends_zeros() -> None:
    x = torch.randn(1, 2, 4, 4)
    out = OptionA(2)(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()
    assert out.shape == (1, 4, 2, 2)
