"""Set-up of one training: its trained weights, input, network, teacher and data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models.card import Architecture
from training.checkpoint import Checkpoint, Epoch
from training.data import DataSet
from training.errors import RecipeError
from training.input import Input, input_of
from training.known_weights import KnownWeights, known_weights
from training.parts import choose_trained, head_of
from training.processes import Processes
from training.recipes import Recipe
from training.schedule import Phase, phases
from training.state_dict import fit
from training.teacher import Teacher, check_teacher
from training.trainer import PreparedData, Trainer, check_trains_on_one, make_net


class TrainingRun(NamedTuple):
    """Training of one network; `out` is the folder of its checkpoint.

    `start` and `teacher` name trained weights, see `known_weights`.
    """

    card: Architecture
    recipe: Recipe
    seed: int
    out: Path
    start: str | None = None
    teacher: str | None = None


@dataclass(kw_only=True)
class Training:
    """Training that is set up: the network, its input, and the fields and epochs of its checkpoint so far."""

    run: TrainingRun
    recipe: Recipe
    data_set: DataSet
    network_input: Input
    net: nn.Module
    teacher: Teacher | None
    processes: Processes
    fields: dict[str, object]
    epochs: list[Epoch] = field(default_factory=list)

    @cached_property
    def data(self) -> PreparedData:
        """Data of this process, prepared when `data` is first read, which may take minutes."""
        return PreparedData(self.data_set, self.recipe, self.network_input, self.run.seed, self.processes)

    def prepare(self) -> PreparedData:
        """Prepare `data`, and return them."""
        return self.data

    @property
    def top1s(self) -> list[float]:
        """Held-out top-1 of each epoch so far."""
        return [epoch.top1 for epoch in self.epochs]

    def trainer(
        self, phase: Phase, net: nn.Module | None = None, processes: Processes | None = None, *, compiled: bool = False
    ) -> Trainer:
        """Return a trainer for a phase, of `net` in `processes`: by default the training's own."""
        net = self.net if net is None else net
        choose_trained(net, self.run.card, self.recipe, head_only=phase.head_only)
        return Trainer(
            net,
            phase.recipe,
            self.data,
            processes or self.processes,
            start=phase.start,
            teacher=self.teacher,
            compiled=compiled,
        )


def set_up(run: TrainingRun, data: DataSet, processes: Processes, latest: Checkpoint | None = None) -> Training:
    """Return a training with its network's first weights, or with those of `latest`, a checkpoint to go on from.

    Raises RecipeError if the recipe does not fit network or processes, CheckpointError if the weights to start from, or
    the teacher, are missing or do not fit.
    """
    card, recipe = run.card, run.recipe
    check_batch(recipe, data, processes)
    check_distil(run)
    # A checkpoint has the weights that it went on from, and their input.
    goes_on = latest if latest and latest.start and latest.start.spec == run.start else None
    known = processes.from_first(partial(known_weights, run.start, card.name)) if run.start and not goes_on else None
    taught_by = processes.from_first(partial(known_weights, run.teacher)) if run.teacher else None
    trained = goes_on.input if goes_on else known.input if known else None
    network_input = input_of(card, recipe, data, trained)
    torch.manual_seed(run.seed)
    net = make_net(card, len(data.labels), recipe)
    for phase in phases(recipe):
        choose_trained(net, card, recipe, head_only=phase.head_only)
    if known:
        adopt(net, known, card, data)
    if min(recipe.batch, len(data.train)) < 2 * processes.size * recipe.accumulate:
        check_trains_on_one(card, network_input)
    if taught_by:
        check_teacher(taught_by, data)
    training = Training(
        run=run,
        recipe=recipe,
        data_set=data,
        network_input=network_input,
        net=net,
        teacher=Teacher(taught_by, network_input) if taught_by else None,
        processes=processes,
        fields={
            "architecture": card.name,
            "dataset": data.name,
            "data": data.spec,
            "split": data.split,
            "labels": data.labels,
            "input": network_input,
            "recipe": recipe,
            "seed": run.seed,
            "start": known.origin if known else goes_on and goes_on.start,
            "teacher": taught_by and taught_by.origin,
        },
    )
    if latest:
        training.epochs += latest.epochs
    return training


def adopt(net: nn.Module, known: KnownWeights, card: Architecture, data: DataSet) -> None:
    """Load trained weights into a network; its head stays as it is, unless the weights are for the same labels.

    Raises CheckpointError if other weights are missing or do not fit.
    """
    head: frozenset[str] = frozenset() if known.has_classes_of(data) else head_of(card)
    own = {name: tensor for name, tensor in net.state_dict().items() if name in head}
    body = {name: tensor for name, tensor in known.state.items() if name not in head}
    fit(net, own | body, f"{known.origin.spec} does not fit {card.name}")


def check_batch(recipe: Recipe, data: DataSet, processes: Processes) -> None:
    """Raise RecipeError if a batch has too few images for the processes and the parts of a step."""
    batch = min(recipe.batch, len(data.train))
    if batch < processes.size:
        raise RecipeError(f"a batch of {batch} cannot be shared by {processes.size} processes: --set batch=…")
    if batch < processes.size * recipe.accumulate:
        raise RecipeError(f"accumulate: a batch of {batch} cannot be computed in {recipe.accumulate} parts: less parts")


def check_distil(run: TrainingRun) -> None:
    """Raise RecipeError if the recipe has a weight for a teacher, and there is none, or the other way round."""
    if run.recipe.distil and not run.teacher:
        raise RecipeError("distil: there is no teacher; --teacher names a published model or a checkpoint")
    if run.teacher and not run.recipe.distil:
        raise RecipeError(f"distil: with 0 nothing is learnt from {run.teacher}; --set distil=0.5")
