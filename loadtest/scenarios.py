"""Scenarios: the times at which requests are sent. Names and rules are those of MLPerf Inference, with two more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Closed or open loop of requests.

    In a closed loop each of `in_flight` users sends its next request as soon as its last one is answered. In an open
    loop, where `in_flight` is None, requests arrive by a Poisson process and wait for no answer: `shape` maps the
    elapsed share of the run, 0 to 1, to a share of the highest rate, 0 to 1.
    """

    description: str
    in_flight: int | None = None
    shape: Callable[[float], float] = lambda elapsed: 1.0


SCENARIOS = {
    "single_stream": Scenario(description="latency of one image: one request after another", in_flight=1),
    "offline": Scenario(
        description="how many images per second the server can answer: a fixed number of requests in flight",
        in_flight=32,
    ),
    "server": Scenario(description="latency of requests that arrive at --rate, as from many independent people"),
    "ramp": Scenario(
        description="the same, with a rate that rises from 0 to --rate: where the server saturates",
        shape=lambda elapsed: elapsed,
    ),
    "spike": Scenario(
        description="a fifth of --rate, and all of --rate in the middle fifth of the run: how the server recovers",
        shape=lambda elapsed: 1.0 if 0.4 <= elapsed < 0.6 else 0.2,
    ),
}


def arrivals(scenario: Scenario, rate: float, seconds: float, random: Random) -> Iterator[float]:
    """Generate, without end, the times at which requests of an open loop are due, in seconds from its start.

    `rate` is the highest rate in requests per second; the shape repeats every `seconds`. Arrivals are thinned (Lewis
    and Shedler, 1979) from a Poisson process of the highest rate, so that the same seed of `random` draws the same
    times.
    """
    due = 0.0
    while True:
        due += random.expovariate(rate)
        if random.random() < scenario.shape(due / seconds % 1):
            yield due
