"""Fits of time to costs over networks, on logarithmic scales: how well MACs predict time, and who deviates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.landscape.networks import CARDS
from loadtest.landscape.rows import LandscapeRow

BATCH = 8
FLOAT_BYTES = 4  # of the cards' intensity, in operations per byte; two operations are one MAC
FEWEST = 5  # networks to fit
DEVIATES = 1.2  # times the predicted time, or as much less
LIES_IN_WEIGHTS = 0.5  # share of all moved values, from which on weights are the reason
MANY = 1.2  # times the values that networks with as many MACs move
UNFOLDED = {  # by family: work that neither MACs nor the values moved count
    "densenet": "Thin convolutions, with norms and concatenations between, which engines cannot fold into these",
    "preact_resnet": "Norms before the convolutions, which engines cannot fold into these",
}
IN_PATHS = re.compile(r"(\d+)x(\d+)d$")  # ResNeXt's names: paths, and maps of each


@dataclass(frozen=True)
class TimedNetwork:
    """Network with its costs, and median milliseconds of the engine alone for 1 image and for 8.

    `moved` is the number of values that convolutions and linear layers read and write for one image: weights, inputs
    and outputs, each once.
    """

    name: str
    family: str
    macs: int
    params: int
    activations: int
    moved: float
    batch1_ms: float
    batch8_ms: float

    @property
    def weights_share(self) -> float:
        """Share of the weights in the values that are moved."""
        return self.params / self.moved

    @property
    def gain(self) -> float:
        """Factor by which 8 images at once are faster than one by one."""
        return BATCH * self.batch1_ms / self.batch8_ms


@dataclass(frozen=True)
class CostFit:
    """Least-squares fit of a target's logarithm to those of costs: powers of the costs, R², usual factor of error."""

    costs: str
    powers: tuple[float, ...]
    r_squared: float
    factor: float


@dataclass(frozen=True)
class Deviation:
    """Network whose time is `ratio` times what its MACs predict, with the reason.

    `rest` is its time as a multiple of what MACs and values moved together predict.
    """

    network: TimedNetwork
    ratio: float
    rest: float
    reason: str


@dataclass(frozen=True)
class FamilyDeviations:
    """Least and largest multiple, within a family, of what MACs predict, and of what MACs and values moved predict."""

    family: str
    networks: int
    ratios: tuple[float, float]
    rests: tuple[float, float]


def timed(rows: Sequence[LandscapeRow], precision: str) -> list[TimedNetwork]:
    """Return the measured networks at a precision."""
    intensity = {card["name"]: card["intensity"] for card in json.loads(CARDS.read_text())}
    return [
        TimedNetwork(
            row.name,
            row.family,
            row.macs,
            row.params,
            row.activations,
            2 * row.macs / intensity[row.name] / FLOAT_BYTES,
            row.batch1_ms,
            row.batch8_ms,
        )
        for row in rows
        if row.precision == precision and row.batch1_ms and row.batch8_ms and row.name in intensity
    ]


COSTS: dict[str, Callable[[TimedNetwork], tuple[float, ...]]] = {
    "MACs": lambda network: (network.macs,),
    "parameters": lambda network: (network.params,),
    "activations": lambda network: (network.activations,),
    "values moved": lambda network: (network.moved,),
    "MACs and values moved": lambda network: (network.macs, network.moved),
}


def fits(networks: Sequence[TimedNetwork]) -> list[CostFit]:
    """Return the fit to each of COSTS; none with fewer than FEWEST networks."""
    return [fit(networks, costs)[0] for costs in COSTS] if len(networks) >= FEWEST else []


def fit(
    networks: Sequence[TimedNetwork],
    costs: str,
    target: Callable[[TimedNetwork], float] = lambda network: network.batch1_ms,
) -> tuple[CostFit, list[float]]:
    """Return the fit of a target to costs, and each network's target as a multiple of the predicted one."""
    logs = np.log([COSTS[costs](network) for network in networks])
    targets = np.log([target(network) for network in networks])
    design = np.column_stack([np.ones(len(networks)), logs])
    solution, *_ = np.linalg.lstsq(design, targets, rcond=None)
    errors = targets - design @ solution
    total = float(((targets - targets.mean()) ** 2).sum())
    r_squared = 1 - float((errors**2).sum()) / total if total else 1.0
    factor = float(np.exp(np.sqrt((errors**2).mean())))
    return CostFit(costs, tuple(map(float, solution[1:])), r_squared, factor), [float(r) for r in np.exp(errors)]


def ratios_and_rests(networks: Sequence[TimedNetwork]) -> tuple[list[float], list[float]]:
    """Return each network's time as a multiple of what MACs predict, and of what MACs and values moved predict."""
    (_, ratios), (_, rests) = fit(networks, "MACs"), fit(networks, "MACs and values moved")
    return ratios, rests


def deviations(networks: Sequence[TimedNetwork]) -> list[Deviation]:
    """Return the networks that deviate from what their MACs predict by DEVIATES or more, the slowest first."""
    if len(networks) < FEWEST:
        return []
    _, usual = fit(networks, "MACs", lambda network: network.moved)
    far = [
        Deviation(network, ratio, rest, reason(network, ratio, share))
        for network, ratio, rest, share in zip(networks, *ratios_and_rests(networks), usual, strict=True)
        if ratio >= DEVIATES or ratio <= 1 / DEVIATES
    ]
    return sorted(far, key=lambda deviation: -deviation.ratio)


def by_family(networks: Sequence[TimedNetwork]) -> list[FamilyDeviations]:
    """Return the deviations of each family, those first that take longest for MACs and values moved."""
    if len(networks) < FEWEST:
        return []
    ratios, rests = ratios_and_rests(networks)
    families = []
    for family in dict.fromkeys(network.family for network in networks):
        own = [place for place, network in enumerate(networks) if network.family == family]
        first, second = ([each[place] for place in own] for each in (ratios, rests))
        families.append(FamilyDeviations(family, len(own), (min(first), max(first)), (min(second), max(second))))
    return sorted(families, key=lambda each: -sum(each.rests))


def reason(network: TimedNetwork, ratio: float, usual: float) -> str:
    """Return a sentence on the cost by which a network that deviates differs from others.

    `usual` is the values that the network moves, as a multiple of what networks with as many MACs usually move.
    """
    many = f"moves {usual:.2f} times the values that networks with as many MACs usually move"
    unexplained = (
        f"Values moved do not explain the time: {many}; 8 images at once are {network.gain:.1f} times as fast as one by"
        " one."
    )
    if ratio < 1:
        return f"Few values: {many}." if usual * MANY < 1 else unexplained
    if network.weights_share > LIES_IN_WEIGHTS and usual > MANY:
        return (
            f"Weights: {many}; {network.weights_share:.0%} of the values are weights, {network.params / 1e6:.0f}"
            f" million; batches, which share the reading, are {network.gain:.1f} times as fast."
        )
    if paths := IN_PATHS.search(network.name):
        return f"Groups: {paths[1]} paths of {paths[2]} maps, too narrow to fill a processor's vectors; {many}."
    if network.family in UNFOLDED:
        return f"{UNFOLDED[network.family]}; {many}, norms not counted."
    if usual > MANY:
        return f"Activations: {many}; {1 - network.weights_share:.0%} of the values are inputs and outputs."
    return unexplained
