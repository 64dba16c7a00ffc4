"""Tests against torchvision and timm: the same keys, shapes and, with the same weights, logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from models.card import Weights
from models.preact_resnet import PreActBottleneck, PreActResNet
from models.residual import BasicBlock, OptionA, ResNet, cifar_stem, imagenet_stem
from models.zoo import ZOO
from tests.models.largest import without_the_largest

# With random weights the 600 blocks of resnet1202_cifar overflow; its blocks are those of resnet110_cifar.
WITH_WEIGHTS = [name for name, card in ZOO.items() if card.weights and name != "resnet1202_cifar"]
TOLERANCE = 1e-5  # of the largest logit


class ZerosAround(OptionA):
    """Option A with half of the zeros before the old channels, as pytorch_resnet_cifar10 has it."""

    def forward(self, x: Tensor) -> Tensor:
        half = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


def idelbayevs(model: str) -> nn.Module:
    """Return the network of a file of pytorch_resnet_cifar10, such as resnet20-12fca82f.th."""
    blocks = (int(model.removeprefix("resnet").partition("-")[0]) - 2) // 6
    block = partial(BasicBlock, shortcut=ZerosAround)
    return ResNet(1000, block=block, depths=(blocks,) * 3, stem=cifar_stem, planes=16)


def reference(weights: Weights) -> nn.Module:
    """Return the library's own network, including auxiliary heads."""
    if weights.library == "pytorch_resnet_cifar10":
        return idelbayevs(weights.model)
    if weights.library == "timm":
        return timm.create_model(weights.model)
    slow_to_draw = weights.model in {"googlenet", "inception_v3"}
    options = {"init_weights": False} if slow_to_draw else {}
    net: nn.Module = torchvision.models.get_model(weights.model, **options)
    return net


def random_state(net: nn.Module) -> dict[str, Tensor]:
    """Return random weights that keep the scale of activations, with batch statistics that are not the initial ones."""
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
    """Return the largest difference of the logits of one picture, as a share of the largest logit."""
    state = random_state(theirs)
    theirs.load_state_dict(state, assign=True)
    ours.load_state_dict(translate(state), assign=True)
    x = torch.randn(1, 3, edge, edge)
    expected = theirs.eval()(x)
    return float((ours.eval()(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", without_the_largest(WITH_WEIGHTS))
def test_the_same_weights_give_the_same_logits(name: str) -> None:
    card = ZOO[name]
    assert card.weights
    with torch.device("meta"):
        ours, theirs = ZOO[name].build(1000), reference(card.weights)
    largest = error(ours, theirs, card.weights.translate, card.input_shape[1])
    print(f"{name}: {largest:.1e} of the largest logit")  # shown by -s
    assert largest <= TOLERANCE


# No library has the next two variants, but a library has the class of each.


def test_densenet264_is_torchvisions_class_with_its_depths() -> None:
    with torch.device("meta"):
        ours, theirs = ZOO["densenet264"].build(1000), torchvision.models.DenseNet(32, (6, 12, 64, 48), 64)
    assert error(ours, theirs, dict, 224) <= TOLERANCE


def test_preactivated_bottlenecks_are_timms() -> None:
    """Compare with timm's ResNetV2-50, which pools before the first batch norm: equal for weights above 0."""
    with torch.device("meta"):
        block = partial(PreActBottleneck, stride_in_3x3=True)
        ours = PreActResNet(1000, block, (3, 4, 6, 3), imagenet_stem, planes=64)
        theirs = timm.create_model("resnetv2_50")

    def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
        rules = (
            *(
                (r"stem\.conv", "conv1"),
                (r"stages\.0\.blocks\.0\.norm1", "bn1"),
                (r"^norm", "norm"),
                (r"head\.fc", "fc"),
            ),
            *((r"stages\.0", "layer1"), (r"stages\.1", "layer2"), (r"stages\.2", "layer3"), (r"stages\.3", "layer4")),
            *((r"blocks\.", ""), (r"\.norm(\d)", r".bn\1"), (r"downsample\.conv", "downsample")),
        )
        named = Weights(library="timm", model="resnetv2_50", rename=rules).translate(state)
        return named | {"fc.weight": named["fc.weight"].flatten(1)}  # timm's linear layer is a 1x1 convolution

    assert error(ours, theirs, translate, 224) <= TOLERANCE


def test_translate_renames_and_drops_keys() -> None:
    weights = Weights(library="timm", model="none", rename=(("^a", "b"), ("c$", "d")), drop=("num",))
    assert weights.translate({"a.c": 1, "num_batches": 2, "x.a": 3}) == {"b.d": 1, "x.a": 3}
