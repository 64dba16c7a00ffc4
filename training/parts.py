"""Parts of a network: its head, its stem and stages, and the choice of those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn

from models.card import Architecture
from training.errors import RecipeError
from training.recipes import HEAD_ONLY, Recipe

FEWER = 0.6  # of the rows of a map, at most, that a stage's first layer leaves; convolutions without padding leave more


@cache
def head_of(card: Architecture) -> frozenset[str]:
    """Return the names of the head's tensors: those whose shape depends on the number of classes."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # no memory, no random numbers of the training's
        two, three = (card.build(classes).state_dict() for classes in (2, 3))
    return frozenset(name for name, tensor in two.items() if tensor.shape != three[name].shape)


@cache
def stages_of(card: Architecture) -> tuple[tuple[str, ...], ...]:
    """Return the names of the weights of the stem and of each stage, in the order of computation, without the head's.

    A stage begins with the layer that halves the maps, the first also with the first block of several layers.
    Auxiliary heads belong to no stage.
    """
    channels, edge, _ = card.input_shape
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        net, pixels = card.build(card.classes).eval(), torch.empty(1, channels, edge, edge)
    units = dict(units_of(net))
    calls: list[tuple[str, bool]] = []

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        maps = inputs[0].ndim == output.ndim == 4
        calls.append((name, maps and output.shape[2] <= FEWER * inputs[0].shape[2]))

    for name, unit in units.items():
        unit.register_forward_hook(partial(note, name))
    with torch.no_grad():
        net(pixels)
    head, blocks = head_of(card), False
    stages: list[list[str]] = [[]]
    for name, smaller in calls:
        block = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in units[name].modules()) > 1
        if stages[-1] and (smaller or (block and not blocks)):
            stages.append([])
        blocks = blocks or block
        weights = (f"{name}.{weight}" for weight, _ in units[name].named_parameters())
        stages[-1] += [weight for weight in weights if weight not in head]
    return tuple(tuple(stage) for stage in stages if stage)


def units_of(net: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers and blocks of a network with their names; plain sequences are resolved into theirs."""
    for name, child in net.named_children():
        if type(child) is nn.Sequential:
            yield from units_of(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


@cache
def frozen_by(card: Architecture, freeze: str) -> frozenset[str]:
    """Return the names of the weights that the recipe's `freeze` excludes from training, but for "head-only".

    Raises RecipeError, which lists the network's own, for a name that the network lacks.
    """
    if freeze == "none":
        return frozenset()
    stages = stages_of(card)
    names = ["stem", *(f"stage{number}" for number in range(1, len(stages)))]
    if freeze not in names:
        raise RecipeError(f"freeze: {card.name} has none, {', '.join(names)} and {HEAD_ONLY}, not {freeze!r}")
    return frozenset(weight for stage in stages[: names.index(freeze) + 1] for weight in stage)


def choose_trained(net: nn.Module, card: Architecture, recipe: Recipe, *, head_only: bool) -> None:
    """Let the steps to come change the head's weights only, or all weights but those that the recipe freezes.

    Raises RecipeError if no weights would be left, or if the network lacks what the recipe names.
    """
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in head_of(card) if head_only else name not in frozen_by(card, recipe.freeze))
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise RecipeError(
            f"freeze: {card.name}'s head has no weights to train: --set head_epochs=0, without --freeze {HEAD_ONLY}"
        )


def resting(net: nn.Module) -> list[nn.Module]:
    """Return the modules of which no weight is trained: they compute as in inference, with the statistics they have."""
    return [module for module in net.modules() if is_frozen(module)]


def is_frozen(module: nn.Module) -> bool:
    """Return True for a module that has weights of which none is trained."""
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)
