"""Fits of time to costs over networks, on logarithmic scales: how well MACs predict time, and who deviates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from loadtest.landscape.networks import CARDS
from loadtest.landscape.rows import LandscapeRow

BATCH = 8
FLOAT_BYTES = 4  # of the cards' intensity, in operations per byte; two operations are one MAC
FEWEST = 5  # networks to fit
DEVIATES = 1.25  # times the predicted time, or as much less
LIES_IN_WEIGHTS = 0.5  # share of all moved values, from which on weights are the reason
MANY = 1.2  # times the median of the values moved for each MAC
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
    def moved_per_mac(self) -> float:
        """Values that are moved for each multiply-accumulate."""
        return self.moved / self.macs

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
    """Least-squares fit of log(time) to logarithms of costs: powers of the costs, R², and the usual factor of error."""

    costs: str
    powers: tuple[float, ...]
    r_squared: float
    factor: float


@dataclass(frozen=True)
class Deviation:
    """Network whose time is `ratio` times what its MACs predict, with the reason."""

    network: TimedNetwork
    ratio: float
    reason: str


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


def fit(networks: Sequence[TimedNetwork], costs: str) -> tuple[CostFit, list[float]]:
    """Return the fit to costs, and each network's time as a multiple of the predicted one."""
    logs = np.log([COSTS[costs](network) for network in networks])
    times = np.log([network.batch1_ms for network in networks])
    design = np.column_stack([np.ones(len(networks)), logs])
    solution, *_ = np.linalg.lstsq(design, times, rcond=None)
    errors = times - design @ solution
    total = float(((times - times.mean()) ** 2).sum())
    r_squared = 1 - float((errors**2).sum()) / total if total else 1.0
    factor = float(np.exp(np.sqrt((errors**2).mean())))
    return CostFit(costs, tuple(map(float, solution[1:])), r_squared, factor), [float(r) for r in np.exp(errors)]


def deviations(networks: Sequence[TimedNetwork]) -> list[Deviation]:
    """Return the networks that deviate from what their MACs predict by DEVIATES or more, the slowest first."""
    if len(networks) < FEWEST:
        return []
    _, ratios = fit(networks, "MACs")
    far = [
        Deviation(network, ratio, reason(network, ratio, networks))
        for network, ratio in zip(networks, ratios, strict=True)
        if ratio >= DEVIATES or ratio <= 1 / DEVIATES
    ]
    return sorted(far, key=lambda deviation: -deviation.ratio)


def reason(network: TimedNetwork, ratio: float, networks: Sequence[TimedNetwork]) -> str:
    """Return a sentence on the cost by which a network that deviates differs from the median network."""
    usual = median(other.moved_per_mac for other in networks)
    moved = f"moves {network.moved_per_mac / usual:.1f} times the median's values for each MAC"
    if ratio < 1:
        return f"Compute-bound: {moved}." if network.moved_per_mac < 0.9 * usual else f"Not from memory: {moved}."
    if network.weights_share > LIES_IN_WEIGHTS and network.moved_per_mac > MANY * usual:
        return (
            f"Weights: {moved}, {network.weights_share:.0%} of these weights, {network.params / 1e6:.0f} million;"
            f" batches, which share the reading, are {network.gain:.1f} times as fast."
        )
    if paths := IN_PATHS.search(network.name):
        return f"Groups: {paths[1]} paths of {paths[2]} maps, too narrow to fill a processor's vectors; {moved}."
    if network.family in UNFOLDED:
        return f"{UNFOLDED[network.family]}; {moved}, norms not counted."
    if network.moved_per_mac > MANY * usual:
        return f"Activations: {moved}, {1 - network.weights_share:.0%} of these inputs and outputs."
    return f"Not from memory: {moved}; 8 images at once are {network.gain:.1f} times as fast as one by one."
