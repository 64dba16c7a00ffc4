"""Scenarios of the simulation, and the table of their outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from numpy.typing import NDArray

from loadtest.scale.arrivals import Arrivals, Layout, arrive
from loadtest.scale.simulation import CHOICES, Result, Simulation, fair_shares, simulate
from service.clients import Client, ClientLimits, Clients

LOADS = 0.7, 0.9, 1.2, 2.0
BURSTS_AT = 0.7  # load beside which bursts come
DEADLINE_S = 1.0
WARM_UP_S = 2 * DEADLINE_S  # whose requests count for no figure but the fairness
WEIGHTS = {"one": 1.0, "two": 2.0}  # of the clients
ASKED = 100  # requests from which on a model's share of a device is judged
PRESSED = 0.2  # share of refusals from which on a model counts as asked for more than there is


@dataclass(frozen=True)
class Scenario:
    """Load as a multiple of what the devices compute, with or without bursts, and how a device is chosen."""

    choice: str
    load: float
    bursts: bool = False


@dataclass(frozen=True)
class Figures:
    """Figures of a scenario: requests a second, waits in the queue, shares of requests and of device time, fairness.

    `beside_ms` is the p99 of the requests for models that share a device with one that has a burst in that second, or,
    in a scenario without bursts, would have one. `fair` is the 5th percentile, over models and devices, of the device
    time that a model got, over its fair share. `weighted` is the ratio of what two clients got of models for which
    both were refused much.
    """

    rate: float
    busy: float
    p50_ms: float
    p99_ms: float
    beside_ms: float
    refused: float
    refused_of_bursts: float
    late: float
    fair: float
    weighted: float


def scenarios() -> Iterator[Scenario]:
    """Yield every scenario of the page."""
    for choice in CHOICES:
        for load in LOADS:
            yield Scenario(choice, load)
            if load == BURSTS_AT:
                yield Scenario(choice, load, bursts=True)


def weighted_clients() -> Sequence[Client]:
    """Return two clients, the second of twice the weight of the first."""
    limits = {
        name: ClientLimits(key_sha256=f"{number:064x}", weight=weight)
        for number, (name, weight) in enumerate(WEIGHTS.items())
    }
    return Clients(limits).by_number[1:]


def play(layout: Layout, scenario: Scenario, seconds: int) -> Figures:
    """Simulate a scenario for some seconds."""
    clients = weighted_clients()
    arrivals = arrive(layout, scenario.load, seconds, len(clients))
    if not scenario.bursts:
        arrivals = arrivals.only(~arrivals.burst)  # the same requests but for the bursts
    return figures(layout, arrivals, simulate(layout, arrivals, clients, scenario.choice, DEADLINE_S))


def figures(layout: Layout, arrivals: Arrivals, simulation: Simulation) -> Figures:
    """Return the figures of a simulation."""
    steady = arrivals.at >= WARM_UP_S
    arrivals, results, waits = arrivals.only(steady), simulation.results[steady], simulation.waits_ms[steady]
    normal, answered = ~arrivals.burst, results == Result.ANSWERED
    return Figures(
        rate=len(results) / float(arrivals.at[-1] - WARM_UP_S),
        busy=float(simulation.used_s.sum() / layout.devices / simulation.seconds),
        p50_ms=percentile(waits[normal & answered], 50),
        p99_ms=percentile(waits[normal & answered], 99),
        beside_ms=percentile(waits[normal & answered & arrivals.beside], 99),
        refused=share(results[normal] == Result.REFUSED),
        refused_of_bursts=share(results[~normal] == Result.REFUSED),
        late=share(results == Result.LATE),
        fair=percentile(fairness(layout, simulation), 5),
        weighted=weighted(arrivals, results),
    )


def percentile(values: NDArray[np.float64], percent: float) -> float:
    """Return a percentile, or not a number if there are no values."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def share(chosen: NDArray[np.bool_]) -> float:
    """Return the share of True, or not a number if there are no values."""
    return float(chosen.mean()) if len(chosen) else float("nan")


def fairness(layout: Layout, simulation: Simulation) -> NDArray[np.float64]:
    """Return the device time that each model got on each device, over its max-min fair share of that device."""
    ratios = []
    image_s = np.array([model.image_s for model in layout.models])
    for used_s, routed in zip(simulation.used_s, simulation.routed, strict=True):
        asked = routed >= ASKED
        shares = fair_shares((routed * image_s), float(used_s.sum()))
        ratios.append(used_s[asked] / shares[asked])
    return np.concatenate(ratios)


def weighted(arrivals: Arrivals, results: NDArray[np.uint8]) -> float:
    """Return the answers to the second client over those to the first, of models refused much to both."""
    requests = np.zeros((len(Result), 2, arrivals.model.max() + 1))
    np.add.at(requests, (results, arrivals.client, arrivals.model), 1)
    pressed = (requests[Result.REFUSED] / np.maximum(1, requests.sum(axis=0)) > PRESSED).all(axis=0)
    first, second = requests[Result.ANSWERED][:, pressed].sum(axis=1)
    return float(second / first) if first else float("nan")


def cells(scenario: Scenario, figures: Figures) -> list[str]:
    """Return the cells of a scenario's line, in the order of HEADINGS."""
    shares = (figures.refused, figures.refused_of_bursts, figures.late)
    waits = (figures.p50_ms, figures.p99_ms, figures.beside_ms)
    return [
        scenario.choice,
        f"{scenario.load:g}{', bursts' if scenario.bursts else ''}",
        f"{figures.rate:,.0f}",
        f"{figures.busy:.0%}",
        *(f"{wait:,.1f}" for wait in waits),
        *("" if isnan(part) else f"{part:.1%}" for part in shares),
        f"{figures.fair:.2f}",
        "" if isnan(figures.weighted) else f"{figures.weighted:.2f}",
    ]


HEADINGS = (
    "device chosen by",
    "load",
    "requests/s",
    "busy",
    "wait p50, ms",
    "p99",
    "p99 beside a burst",
    "refused",
    "refused of bursts",
    "late",
    "fair",
    "weights",
)
