"""Parts of networks: heads, stems and stages, of every architecture."""

from __future__ import annotations

import pytest

from models.zoo import ZOO
from training.errors import RecipeError
from training.parts import choose_trained, frozen_by, head_of, resting, stages_of
from training.recipes import PAPERS


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet50", {"fc.weight", "fc.bias"}),
        ("vgg16", {"classifier.6.weight", "classifier.6.bias"}),
        ("nin_cifar10", {"6.2.conv.weight", "6.2.conv.bias"}),
        (
            "googlenet_bn_tv",
            {f"{layer}.{kind}" for layer in ("fc", "aux1.fc2", "aux2.fc2") for kind in ("weight", "bias")},
        ),
        ("lenet5", {"output.centres"}),
    ],
)
def test_the_head_depends_on_the_classes(name: str, head: set[str]) -> None:
    assert head_of(ZOO[name]) == head


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet50", ["conv1 bn1", "layer1", "layer2", "layer3", "layer4"]),
        ("resnet20_cifar", ["conv1 bn1", "layer1", "layer2", "layer3"]),
        ("preact_resnet110", ["conv1 bn1", "layer1", "layer2", "layer3 norm"]),
        ("alexnet", ["conv1", "conv2", "conv3 conv4 conv5", "fc6 fc7"]),
        ("googlenet", ["conv1", "conv2 conv3", "inception3a inception3b", "inception4a", "inception5a inception5b"]),
        ("lenet5_modern", ["c1", "c3", "c5 f6"]),
    ],
)
def test_a_stage_begins_where_maps_are_halved(name: str, stages: list[str]) -> None:
    found = stages_of(ZOO[name])
    assert len(found) == len(stages)
    for weights, expected in zip(found, stages, strict=True):
        assert {weight.partition(".")[0] for weight in weights} >= {*expected.split()}
        assert not {weight.partition(".")[0] for weight in weights} & {
            word for other in stages if other != expected for word in other.split()
        }


def test_stages_of_sequences_are_resolved() -> None:
    vgg = stages_of(ZOO["vgg16"])
    assert [stage[0] for stage in vgg] == [
        *("features.0.weight", "features.5.weight", "features.10.weight", "features.17.weight", "features.24.weight"),
        "classifier.0.weight",
    ]
    dense = stages_of(ZOO["densenet121"])
    assert [stage[0].split(".")[1] for stage in dense] == [
        "conv0",
        *("denseblock1", "transition1", "transition2"),
        "transition3",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_network_has_a_head_and_stages_without_it(name: str) -> None:
    card = ZOO[name]
    assert head_of(card)
    stages = stages_of(card)
    assert len(stages) >= 3
    weights = [weight for stage in stages for weight in stage]
    assert len({*weights}) == len(weights)
    assert not {*weights} & head_of(card)


def test_frozen_layers_rest() -> None:
    card = ZOO["resnet20_cifar"]
    net = card.build(10)
    recipe = PAPERS["resnet_cifar"]
    choose_trained(net, card, recipe, head_only=True)
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}
    names = dict(net.named_modules())
    asleep = {name for name, module in names.items() if any(module is other for other in resting(net))}
    assert {"conv1", "bn1", "layer1", "layer3.2.bn2"} <= asleep
    assert not {"", "fc", "relu", "dropout", "avgpool"} & asleep
    choose_trained(net, card, recipe, head_only=False)
    assert not resting(net)


def test_a_name_that_the_network_lacks_is_answered_with_its_own() -> None:
    with pytest.raises(
        RecipeError, match="freeze: resnet50 has none, stem, stage1, stage2, stage3, stage4 and head-only"
    ):
        frozen_by(ZOO["resnet50"], "layer2")
