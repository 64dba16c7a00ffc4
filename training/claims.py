"""Experiments on the lecture's claims: networks that differ in one thing, trained alike, from several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from torch import Tensor

from engines import markdown
from models.layers import SqueezeExcitation
from models.preact_resnet import PreActBasicBlock, PreActResNet
from models.residual import BasicBlock, OptionA, ResNet, cifar_stem
from models.stochastic_depth import StochasticBlock, StochasticDepthResNet
from models.zoo import ZOO
from training.plot import comparison
from training.recipes import Recipe
from training.results import TrainingResult
from training.train import TrainingRun

SEEDS = (0, 1, 2)
RECIPE = Recipe(
    source="ours, the same for every network: ResNet's for CIFAR-10 (paper, section 4.2), shorter",
    edge=32,
    optimizer="sgd",
    lr=0.1,
    warmup_epochs=1,
    weight_decay=1e-4,
    batch=64,
    epochs=8,
    shift=2,
)


class PlainBlock(BasicBlock):
    """Residual block of ResNet without its shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x))
        return out


class SEBasicBlock(BasicBlock):
    """Residual block of ResNet with squeeze-and-excitation before the addition."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__(inputs, planes, stride, OptionA)
        self.gate = SqueezeExcitation(planes)

    def residual(self, x: Tensor) -> Tensor:
        out: Tensor = self.gate(super().residual(x))
        return out


resnet = partial(ResNet, stem=cifar_stem, planes=16)
plain = partial(resnet, block=partial(PlainBlock, shortcut=OptionA))
RESNET_20, RESNET_56 = ZOO["resnet20_cifar"], ZOO["resnet56_cifar"]
CARDS = {
    card.name: card
    for card in (
        replace(RESNET_20, name="plain20", build=partial(plain, depths=(3, 3, 3))),
        RESNET_20,
        replace(RESNET_20, name="se_resnet20", build=partial(resnet, block=SEBasicBlock, depths=(3, 3, 3))),
        replace(RESNET_56, name="plain56", build=partial(plain, depths=(9, 9, 9))),
        RESNET_56,
        replace(
            RESNET_56,
            name="preact_resnet56",
            build=partial(PreActResNet, block=partial(PreActBasicBlock, shortcut=OptionA), depths=(9, 9, 9)),
        ),
        replace(
            RESNET_56,
            name="resnet56_sd",
            build=partial(
                StochasticDepthResNet, depths=(9, 9, 9), last=0.5, block=partial(StochasticBlock, shortcut=OptionA)
            ),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Statement of the lecture, and the networks, by their names in CARDS, that test the statement."""

    name: str
    statement: str
    nets: tuple[str, ...]


CLAIMS = (
    Claim(
        name="depth",
        statement="a deeper plain network trains worse, a deeper residual one does not",
        nets=("plain20", "plain56", "resnet20_cifar", "resnet56_cifar"),
    ),
    Claim(
        name="preactivation",
        statement="BN and ReLU before the convolution are better than after it",
        nets=("resnet56_cifar", "preact_resnet56"),
    ),
    Claim(
        name="se",
        statement="squeeze-and-excitation raises accuracy",
        nets=("resnet20_cifar", "se_resnet20"),
    ),
    Claim(
        name="stochastic_depth",
        statement="dropping blocks at random in training raises accuracy and saves time",
        nets=("resnet56_cifar", "resnet56_sd"),
    ),
)


def runs(dataset: str, seeds: Sequence[int], out: Path) -> list[TrainingRun]:
    """Return all trainings that the claims need, seed by seed."""
    return [
        TrainingRun(card, RECIPE, seed, out / f"{card.name}-{dataset}-{seed}")
        for seed in seeds
        for card in CARDS.values()
    ]


def results_by_network(claim: Claim, results: list[TrainingResult]) -> dict[str, list[TrainingResult]]:
    """Return the results of each network of the claim, sorted by seed."""
    ordered = sorted(results, key=lambda result: result.seed)
    return {net: [result for result in ordered if result.architecture == net] for net in claim.nets}


def table(claim: Claim, results: list[TrainingResult]) -> str:
    """Return a claim's results as a Markdown table: means over seeds, and the value of each seed."""
    head = "network", "parameters", "MACs", "training loss", "each seed", "top-1", "each seed", "minutes"
    rows = []
    for net, trained in results_by_network(claim, results).items():
        losses, top1s = [result.losses[-1] for result in trained], [result.top1 for result in trained]
        cells = (
            *(f"`{net}`", f"{trained[0].params:,}", f"{trained[0].macs:,}"),
            *(f"{mean(losses):.3f}", ", ".join(f"{loss:.3f}" for loss in losses)),
            *(f"{mean(top1s):.1%}", ", ".join(f"{top1:.1%}" for top1 in top1s)),
            f"{mean(result.minutes for result in trained):.1f}",
        )
        rows.append(cells)
    return markdown.table(head, rows, right=(1, 2, 3, 5, 7)) + "\n"


def write_pictures(results: list[TrainingResult], folder: Path) -> None:
    """Write the curves of each claim's networks as `claim_<name>.png`."""
    for claim in CLAIMS:
        series = {
            net: ([row.losses for row in rows], [row.top1s for row in rows])
            for net, rows in results_by_network(claim, results).items()
            if rows
        }
        comparison(claim.statement, series, folder / f"claim_{claim.name}.png")
