"""What a server promises under load: a light model beside a flood of a heavy one, overload, and endurance."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import gevent
from geventhttpclient import HTTPClient

from loadtest.scenarios import SCENARIOS, arrivals
from loadtest.server import usage
from loadtest.tally import histogram, micro
from loadtest.traffic import ScenarioError, path_of, probe, read_images

IN_FLIGHT = 32
LIGHT_RATE = 20.0  # requests a second beside the flood
OVERLOAD = 3.0  # times what the model can do
WINDOW = 10_000  # requests of the endurance run that are told together
CONNECTIONS = 4096
TIMEOUT_S = 60.0


@dataclass
class Seen:
    """What came of a load until its last answer: seconds of each answer and refusal (503), other statuses' counts."""

    seconds: float = 0.0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answered) / self.seconds

    def end(self, started: float) -> Seen:
        """All is answered; ScenarioError if nothing was, and well."""
        self.seconds = time.perf_counter() - started
        if not self.answered:
            raise ScenarioError(f"no answer in {self.seconds:.0f} s: {self}")
        return self

    def __str__(self) -> str:
        """One line."""
        others = ", ".join(f"{count} {status}" for status, count in self.other.items()) or "nothing else"
        return (
            f"{self.rate:.1f} answers/s, p50 {percentile_ms(self.answered, 50):.1f}, p99"
            f" {percentile_ms(self.answered, 99):.1f} ms; {len(self.refused)} refused, p99"
            f" {percentile_ms(self.refused, 99):.1f} ms; {others}"
        )


def percentile_ms(seconds: list[float], percentile: float) -> float:
    """Of what took so long each; 0 if there is none."""
    found = histogram()
    for one in seconds:
        found.record_value(micro(one))
    return float(found.get_value_at_percentile(percentile)) / 1000


class Load:
    """One model's requests, over connections that stay open."""

    def __init__(self, host: str, path: str, images: list[bytes]) -> None:
        address = urlsplit(host)
        self._client = HTTPClient(
            address.hostname or host,
            address.port,
            concurrency=CONNECTIONS,
            connection_timeout=TIMEOUT_S,
            network_timeout=TIMEOUT_S,
        )
        self._path = path
        self._images: Iterator[bytes] = itertools.cycle(images)

    def ask(self, seen: Seen) -> None:
        """One request."""
        started = time.perf_counter()
        try:
            response = self._client.request("POST", self._path, next(self._images))
            response.read()
        except Exception as error:  # of sockets, or of HTTP; told with the rest
            seen.other[type(error).__name__] += 1
            return
        took = time.perf_counter() - started
        if response.status_code == 200:
            seen.answered.append(took)
        elif response.status_code == 503:
            seen.refused.append(took)
        else:
            seen.other[str(response.status_code)] += 1

    def closed(self, in_flight: int, seconds: float) -> Seen:
        """Always so many in flight."""
        seen, started = Seen(), time.perf_counter()

        def one() -> None:
            while time.perf_counter() < started + seconds:
                self.ask(seen)

        gevent.joinall([gevent.spawn(one) for _ in range(in_flight)])
        return seen.end(started)

    def poisson(self, rate: float, seconds: float) -> Seen:
        """So many a second, whatever becomes of those before."""
        seen, started, asked = Seen(), time.perf_counter(), []
        for due in arrivals(SCENARIOS["server"], rate, seconds, Random(0)):  # noqa: S311 (no secret)
            if due > seconds:
                break
            gevent.sleep(max(0.0, started + due - time.perf_counter()))
            asked.append(gevent.spawn(self.ask, seen))
        gevent.joinall(asked)
        return seen.end(started)


def promises(host: str, light: str, heavy: str, folder: Path, seconds: float, requests: int) -> None:
    """Prints what was seen; ScenarioError if a model is not served."""
    images = [image.body for image in read_images(folder)]
    loads = {}
    for name in (light, heavy):
        probe(host, path_of(name), images[0])
        loads[name] = Load(host, path_of(name), images)
    together(loads[light], loads[heavy], light, heavy, seconds)
    overload(host, heavy, images, loads[heavy], seconds)
    if requests:
        endurance(host, light, images, loads[light], requests)


def tag_of(host: str, name: str, images: list[bytes]) -> str:
    """Which weights answer."""
    return str(probe(host, path_of(name), images[0])["model"])


def together(light: Load, heavy: Load, light_name: str, heavy_name: str, seconds: float) -> None:
    """A flood of one model, alone and with single requests for another beside it."""
    single_ms = percentile_ms(heavy.closed(1, seconds / 2).answered, 50)
    solo = heavy.closed(IN_FLIGHT, seconds)
    flood, beside = gevent.spawn(heavy.closed, IN_FLIGHT, seconds), gevent.spawn(light.poisson, LIGHT_RATE, seconds)
    mixed, few = flood.get(), beside.get()
    times = percentile_ms(few.answered, 99) / single_ms
    print(f"{heavy_name}, one connection: p50 {single_ms:.1f} ms")
    print(f"{heavy_name}, {IN_FLIGHT} in flight, alone: {solo}")
    print(f"{heavy_name} with {light_name} beside: {mixed}; {mixed.rate / solo.rate:.0%} of its rate alone")
    print(f"{light_name} at {LIGHT_RATE:g}/s: {few}; its p99 is {times:.2f} times {heavy_name}'s p50 of one connection")


def overload(host: str, name: str, images: list[bytes], load: Load, seconds: float) -> None:
    """Three times as much as it can answer."""
    capacity = load.closed(IN_FLIGHT, seconds / 2).rate
    tag = tag_of(host, name, images)
    before = usage(host, tag).resident_bytes
    deadline_ms = max(1000.0, 1000 * 2 * IN_FLIGHT / capacity)
    hurried = Load(host, f"{path_of(name)}&deadline_ms={deadline_ms:.0f}", images)
    seen = hurried.poisson(OVERLOAD * capacity, 2 * seconds)
    grown_mb = (usage(host, tag).resident_bytes - before) / 1e6
    in_time = [took for took in seen.answered if took <= deadline_ms / 1000]
    print(
        f"{name} at {OVERLOAD:g} times its {capacity:.1f}/s, {2 * seconds:g} s, deadline {deadline_ms:.0f} ms: {seen};"
        f" in time {len(in_time) / seen.seconds:.1f}/s, {len(in_time) / seen.seconds / capacity:.0%} of capacity;"
        f" memory {grown_mb:+.0f} MB"
    )


def endurance(host: str, name: str, images: list[bytes], load: Load, requests: int) -> None:
    """Very many requests: whether the server grows or slows down."""
    tag = tag_of(host, name, images)
    print(
        f"{name}, 16 in flight\n\n| requests | answers/s | p50 ms | p99 ms | other | resident MB |\n"
        + "| ---: " * 6
        + "|"
    )
    for first in range(0, requests, WINDOW):
        seen, started = Seen(), time.perf_counter()
        left = iter(range(min(WINDOW, requests - first)))

        def one(seen: Seen = seen, left: Iterator[int] = left) -> None:
            for _ in left:
                load.ask(seen)

        gevent.joinall([gevent.spawn(one) for _ in range(16)])
        seen.end(started)
        cells = (
            f"{min(first + WINDOW, requests):,}",
            f"{seen.rate:.0f}",
            *(f"{percentile_ms(seen.answered, percentile):.1f}" for percentile in (50, 99)),
            str(len(seen.refused) + seen.other.total()),
            f"{usage(host, tag).resident_bytes / 1e6:.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
