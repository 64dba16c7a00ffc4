"""The networks against those of torchvision and timm: the same keys, shapes and, with the same weights, logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from models.card import Weights
from models.densenet import imagenet_densenet
from models.preact_resnet import PreActBottleneck, PreActResNet
from models.resnet import imagenet_stem
from models.zoo import ZOO, build

WITH_WEIGHTS = [name for name, card in ZOO.items() if card.weights]
TOLERANCE = 1e-5  # of the largest logit


def reference(weights: Weights) -> nn.Module:
    """The library's own network, its auxiliary heads included."""
    heads = {"aux_logits": True} if weights.model in {"googlenet", "inception_v3"} else {}
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # torchvision's on slow initialisation
        if weights.library == "timm":
            return timm.create_model(weights.model)
        net: nn.Module = (
            torchvision.models.get_model(weights.model, init_weights=False, **heads)
            if heads
            else (torchvision.models.get_model(weights.model))
        )
        return net


def random_state(net: nn.Module) -> dict[str, Tensor]:
    """Weights that keep the size of what passes, and batch norms that have seen something."""
    torch.manual_seed(0)
    state = {}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            state[key] = torch.rand(value.shape) + 0.5
        elif value.ndim == 1:
            state[key] = torch.randn(value.shape) / 10
        else:
            state[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
    return state


@torch.no_grad()
def error(
    ours: nn.Module, theirs: nn.Module, translate: Callable[[dict[str, Tensor]], dict[str, Tensor]], edge: int
) -> float:
    """Largest difference of the logits of one picture, as a share of the largest logit."""
    state = random_state(theirs)
    theirs.load_state_dict(state, assign=True)
    ours.load_state_dict(translate(state), assign=True)
    x = torch.randn(1, 3, edge, edge)
    expected = theirs.eval()(x)
    return float((ours.eval()(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_same_weights_give_the_same_logits(name: str, record_property: Callable[[str, object], None]) -> None:
    card = ZOO[name]
    assert card.weights
    with torch.device("meta"):
        ours = build(name, 1000)
    found = error(ours, reference(card.weights), card.weights.translate, card.input_shape[1])
    record_property("error", f"{name} {found:.1e}")
    assert found <= TOLERANCE
