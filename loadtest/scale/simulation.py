"""Simulation of many devices in virtual time, with the server's own scheduler, fair queues and admission."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.scale.arrivals import Arrivals, Layout, Model
from loadtest.scale.virtual_time import now, simulated
from service.admission import EngineQueue, Late, Overloaded
from service.batches import Inputs, Outcome
from service.clients import Client, current
from service.cost import BatchCost
from service.scheduler import Scheduler

MAX_WAITING = 1024  # images of one engine, the server's default
MAX_BATCH = 8
NOISE = 0.1  # standard deviation of the logarithm of a batch's time over the predicted one
PICTURE = np.zeros((1, 1, 1), np.uint8)
LOGITS = np.zeros(1, np.float32)


class Result(IntEnum):
    """Outcome of a simulated request."""

    ANSWERED = 0
    REFUSED = 1  # 503, before the body is read
    LATE = 2  # 504, in the queue


class Simulation(NamedTuple):
    """Outcome and wait in the queue, in ms, of each request; the seconds that each device computed for each model.

    The wait of a request without an answer is not a number. `routed` counts the requests by device and model.
    """

    results: NDArray[np.uint8]
    waits_ms: NDArray[np.float64]
    used_s: NDArray[np.float64]  # (devices, models)
    routed: NDArray[np.int64]  # (devices, models)
    seconds: float  # until the last answer


class SimulatedEngine:
    """Engine that computes nothing; `exact` is the time of a batch without noise, `used_s` what it has used."""

    runtime, precision, lanes = "simulated", "none", 1

    def __init__(self, model: Model) -> None:
        self.exact = BatchCost(model.seconds, MAX_BATCH)
        self.used_s = 0.0

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return zeros; nobody calls this."""
        return np.zeros((len(pixels), 1), np.float32)


@dataclass(eq=False)
class SimulatedDevice:
    """Device with a scheduler of its own, and queues of the models that are placed on it."""

    noise: np.random.Generator
    queues: dict[int, EngineQueue] = field(default_factory=dict)  # by the model's number
    under_way: int = 0
    chosen_at: int = 0  # number of the last request that was sent here

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(MAX_WAITING, self._run, now)

    def place(self, number: int, model: Model) -> None:
        """Load a model, by its number."""
        self.queues[number] = EngineQueue(SimulatedEngine(model), BatchCost(model.seconds, MAX_BATCH))

    async def _run(self, inputs: Inputs) -> Iterable[Outcome]:
        """Let the time of a batch pass."""
        engine = inputs.engine
        assert isinstance(engine, SimulatedEngine)
        seconds = engine.exact(len(inputs.pictures)) * self.noise.lognormal(0, NOISE)
        await asyncio.sleep(seconds)
        engine.used_s += seconds
        return [LOGITS] * len(inputs.pictures)


def least_busy(devices: Sequence[SimulatedDevice], model: int) -> SimulatedDevice:
    """Return the device with the fewest requests under way, as a proxy chooses; of several, each in its turn."""
    return min(devices, key=lambda device: (device.under_way, device.chosen_at))


def first_to_answer(devices: Sequence[SimulatedDevice], model: int) -> SimulatedDevice:
    """Return the device that is expected to answer first, as the server's fronts choose."""
    return min(devices, key=lambda device: device.scheduler.expected_answer_s(device.queues[model]))


CHOICES = {"fewest requests": least_busy, "first to answer": first_to_answer}


def simulate(
    layout: Layout, arrivals: Arrivals, clients: Sequence[Client], choice: str, deadline_s: float, seed: int = 0
) -> Simulation:
    """Send the requests to the devices, each with the same deadline from its arrival on, and return what came of them.

    Who is refused or late does not ask again.
    """
    noises = np.random.default_rng(seed).spawn(layout.devices)
    devices = [SimulatedDevice(noise) for noise in noises]
    holders = [[devices[place] for place in places] for places in layout.places]
    for number, holding in enumerate(holders):
        for device in holding:
            device.place(number, layout.models[number])
    results = np.full(len(arrivals.at), Result.ANSWERED, np.uint8)
    waits_ms = np.full(len(arrivals.at), np.nan)
    routed = np.zeros((layout.devices, len(layout.models)), np.int64)
    numbers = {device: number for number, device in enumerate(devices)}
    choose = CHOICES[choice]

    async def request(number: int, model: int, client: Client) -> None:
        device = choose(holders[model], model)
        device.chosen_at = number
        device.under_way += 1
        routed[numbers[device], model] += 1
        current.set(client)
        try:
            with device.scheduler.admit(device.queues[model], now() + deadline_s) as place:
                waits_ms[number] = (await place.infer(PICTURE)).queue_ms
        except Overloaded:
            results[number] = Result.REFUSED
        except Late:
            results[number] = Result.LATE
        finally:
            device.under_way -= 1

    async def run() -> float:
        async with asyncio.TaskGroup() as tasks:
            requests = zip(arrivals.at.tolist(), arrivals.model.tolist(), arrivals.client.tolist(), strict=True)
            for number, (at, model, client) in enumerate(requests):
                if at > now():
                    await asyncio.sleep(at - now())
                tasks.create_task(request(number, model, clients[client]))
        return now()

    seconds = simulated(run())
    used_s = np.zeros(routed.shape)
    for device, place in numbers.items():
        for model, queue in device.queues.items():
            assert isinstance(queue.engine, SimulatedEngine)
            used_s[place, model] = queue.engine.used_s
    return Simulation(results, waits_ms, used_s, routed, seconds)


def fair_shares(demands: NDArray[np.float64], capacity: float) -> NDArray[np.float64]:
    """Return the max-min fair shares of a capacity: nobody gets more than asked for, and the rest is shared evenly."""
    shares = np.zeros_like(demands)
    order = np.argsort(demands)
    for place, each in enumerate(order):
        shares[each] = min(demands[each], capacity / (len(order) - place))
        capacity -= shares[each]
    return shares
