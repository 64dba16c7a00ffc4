"""Models on devices, and the times at which requests for them come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

BURST = 2.0  # times what all devices with a model compute, for a second
BURSTING = 50  # most popular models, of which each second another one bursts
LEAST_DEVICES = 2  # with each model
ROOM = 2.0  # times the devices that a model's requests need, that have it


@dataclass(frozen=True)
class Model:
    """Network and the seconds of its batches on one device, by batch size."""

    network: str
    seconds: dict[int, float]

    @property
    def image_s(self) -> float:
        """Seconds of an image in the batch with the best rate."""
        return min(seconds / batch for batch, seconds in self.seconds.items())


@dataclass(frozen=True)
class Layout:
    """Models in the order of their popularity, with their shares of all requests and the devices that have them."""

    models: Sequence[Model]
    popularity: NDArray[np.float64]
    places: Sequence[Sequence[int]]
    devices: int

    @property
    def image_s(self) -> float:
        """Mean seconds of a request on a device."""
        return float(sum(self.popularity * [model.image_s for model in self.models]))


@dataclass(frozen=True)
class Arrivals:
    """Times, models and clients of requests; those of bursts, and those for models beside a burst while it lasts."""

    at: NDArray[np.float64]
    model: NDArray[np.int64]
    client: NDArray[np.int64]
    burst: NDArray[np.bool_]
    beside: NDArray[np.bool_]

    def only(self, chosen: NDArray[np.bool_]) -> Arrivals:
        """Return some of the requests."""
        return Arrivals(
            self.at[chosen], self.model[chosen], self.client[chosen], self.burst[chosen], self.beside[chosen]
        )


def lay_out(networks: Sequence[Model], models: int, devices: int, seed: int = 0) -> Layout:
    """Draw a network for each of `models` models, and place each on at least two devices, more if it is asked often.

    The r-th model gets 1 / r of the requests of the first (Zipf). From the busiest on, each goes to those devices that
    have the least to do so far.
    """
    draw = np.random.default_rng(seed)
    chosen = [networks[number] for number in draw.integers(len(networks), size=models)]
    popularity = 1 / np.arange(1, models + 1)
    popularity /= popularity.sum()
    work = popularity * [model.image_s for model in chosen]
    work *= devices / work.sum()  # in devices
    busy = np.zeros(devices)
    places: list[list[int]] = [[] for _ in chosen]
    for number in np.argsort(-work):
        copies = min(devices, max(LEAST_DEVICES, ceil(ROOM * work[number])))
        places[number] = np.argsort(busy, kind="stable")[:copies].tolist()
        busy[places[number]] += work[number] / copies
    return Layout(chosen, popularity, places, devices)


def arrive(layout: Layout, load: float, seconds: int, clients: int, seed: int = 0) -> Arrivals:
    """Draw requests: a Poisson process of `load` times what the devices compute, and beside it a burst each second.

    Each second another one of the most popular models is asked for twice what all of its devices can compute.
    """
    draw = np.random.default_rng(seed)
    count = draw.poisson(load * seconds * layout.devices / layout.image_s)
    at = [np.sort(draw.uniform(0, seconds, count))]
    model = [draw.choice(len(layout.models), count, p=layout.popularity)]
    beside = [np.zeros(count, np.bool_)]
    places = [set(each) for each in layout.places]
    bursting = draw.permutation(min(BURSTING, len(layout.models)))
    for second in range(seconds):
        number = int(bursting[second % len(bursting)])
        more = round(BURST * len(places[number]) / layout.models[number].image_s)
        neighbours = [other for other, own in enumerate(places) if other != number and own & places[number]]
        beside[0] |= (at[0] >= second) & (at[0] < second + 1) & np.isin(model[0], neighbours)
        at.append(draw.uniform(second, second + 1, more))
        model.append(np.full(more, number))
        beside.append(np.zeros(more, np.bool_))
    burst = np.repeat([False, True], [count, sum(map(len, at[1:]))])
    order = np.argsort(np.concatenate(at), kind="stable")
    client = draw.integers(clients, size=len(order))
    return Arrivals(
        np.concatenate(at)[order], np.concatenate(model)[order], client, burst[order], np.concatenate(beside)[order]
    )
