"""When requests are sent: by the names and rules of MLPerf Inference's scenarios, and two more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A closed loop, or an open one.

    In a closed loop each of `in_flight` users asks again as soon as it has its answer. In an open one, where that is
    None, requests come by a Poisson process, whatever becomes of those before: at `shape` of the rate that is asked
    for, 0 to 1, when a share of the run, 0 to 1, is over.
    """

    tells: str
    in_flight: int | None = None
    shape: Callable[[float], float] = lambda over: 1.0


SCENARIOS = {
    "single_stream": Scenario(tells="how long one image takes: one request after another", in_flight=1),
    "offline": Scenario(tells="how many images a second there can be: always so many in flight", in_flight=32),
    "server": Scenario(tells="how long requests take that come at --rate, as from many people who do not wait"),
    "ramp": Scenario(tells="the same, from none to --rate: where it breaks", shape=lambda over: over),
    "spike": Scenario(
        tells="a fifth of --rate, and all of it for the middle fifth: how it recovers",
        shape=lambda over: 1.0 if 0.4 <= over < 0.6 else 0.2,
    ),
}


def arrivals(scenario: Scenario, rate: float, seconds: float, random: Random) -> Iterator[float]:
    """When requests of an open loop are due, in seconds from its start, without end.

    `rate` is the highest, requests a second; the run's shape comes again each `seconds`. It is thinned (Lewis and
    Shedler, 1979) from a process of that rate: `random` decides the same for the same seed.
    """
    due = 0.0
    while True:
        due += random.expovariate(rate)
        if random.random() < scenario.shape(due / seconds % 1):
            yield due
