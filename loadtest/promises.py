"""Tests of a server's promises under load: fairness beside a flood, overload, and endurance."""

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

from loadtest import markdown
from loadtest.scenarios import SCENARIOS, arrivals
from loadtest.server import Server
from loadtest.server_info import usage
from loadtest.tally import histogram, micro
from loadtest.traffic import ScenarioError, path_of, probe, read_images

IN_FLIGHT = 32
ENDURANCE_IN_FLIGHT = 16
LIGHT_RATE = 20.0  # requests per second beside the flood
OVERLOAD = 3.0  # times the capacity of the model
WINDOW = 10_000  # requests per line of the endurance run
CONNECTIONS = 4096
TIMEOUT_S = 60.0
ENDURANCE_HEADINGS = ("requests", "answers/s", "p50 ms", "p99 ms", "other", "resident MB")


@dataclass
class Outcome:
    """Outcome of a load: seconds of each answer and each refusal (503), and counts of all other results."""

    seconds: float = 0.0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers per second until the last answer."""
        return len(self.answered) / self.seconds

    def end(self, started: float) -> Outcome:
        """Record the duration and return the outcome. Raises ScenarioError if no request was answered."""
        self.seconds = time.perf_counter() - started
        if not self.answered:
            raise ScenarioError(f"no answer in {self.seconds:.0f} s: {self}")
        return self

    def __str__(self) -> str:
        """Return rates, percentiles and counts as one line."""
        others = ", ".join(f"{count} {status}" for status, count in self.other.items()) or "nothing else"
        return (
            f"{self.rate:.1f} answers/s, p50 {percentile_ms(self.answered, 50):.1f}, p99"
            f" {percentile_ms(self.answered, 99):.1f} ms; {len(self.refused)} refused, p99"
            f" {percentile_ms(self.refused, 99):.1f} ms; {others}"
        )


def percentile_ms(durations: list[float], percentile: float) -> float:
    """Return a percentile, in ms, of durations in seconds; 0 without any."""
    recorded = histogram()
    for seconds in durations:
        recorded.record_value(micro(seconds))
    return float(recorded.get_value_at_percentile(percentile)) / 1000


class ModelClient:
    """Client that sends requests for one model over connections that stay open."""

    def __init__(self, server: Server, name: str, images: list[bytes], query: str = "") -> None:
        """Prepare a client; `query`, such as `&deadline_ms=100`, is appended to each request."""
        self.server, self.name, self.images = server, name, images
        self._client = HTTPClient.from_url(
            server.url,
            headers=dict(server.headers),
            concurrency=CONNECTIONS,
            connection_timeout=TIMEOUT_S,
            network_timeout=TIMEOUT_S,
        )
        self._path = urlsplit(server.url).path + path_of(name) + query
        self._next_images: Iterator[bytes] = itertools.cycle(images)

    def check(self) -> None:
        """Raise ScenarioError if the model is not served."""
        probe(self.server, path_of(self.name), self.images[0])

    def resident_mb(self) -> float:
        """Return the resident memory of the server in MB."""
        return usage(self.server, self.name).resident_bytes / 1e6

    def send(self, outcome: Outcome) -> None:
        """Send one request and add its result to `outcome`."""
        started = time.perf_counter()
        try:
            response = self._client.request("POST", self._path, next(self._next_images))
            response.read()
        except Exception as error:  # errors of sockets and of HTTP are counted with the other results
            outcome.other[type(error).__name__] += 1
            return
        took = time.perf_counter() - started
        if response.status_code == 200:
            outcome.answered.append(took)
        elif response.status_code == 503:
            outcome.refused.append(took)
        else:
            outcome.other[str(response.status_code)] += 1

    def closed(self, in_flight: int, seconds: float) -> Outcome:
        """Keep `in_flight` requests open for `seconds` seconds."""
        outcome, started = Outcome(), time.perf_counter()

        def one() -> None:
            while time.perf_counter() < started + seconds:
                self.send(outcome)

        gevent.joinall([gevent.spawn(one) for _ in range(in_flight)])
        return outcome.end(started)

    def poisson(self, rate: float, seconds: float) -> Outcome:
        """Send `rate` requests per second by a Poisson process, without waiting for answers."""
        outcome, started, sending = Outcome(), time.perf_counter(), []
        for due in arrivals(SCENARIOS["server"], rate, seconds, Random(0)):  # noqa: S311 (no secret)
            if due > seconds:
                break
            gevent.sleep(max(0.0, started + due - time.perf_counter()))
            sending.append(gevent.spawn(self.send, outcome))
        gevent.joinall(sending)
        return outcome.end(started)

    def count(self, in_flight: int, requests: int) -> Outcome:
        """Send a number of requests, `in_flight` at a time."""
        outcome, started = Outcome(), time.perf_counter()
        left = iter(range(requests))

        def one() -> None:
            for _ in left:
                self.send(outcome)

        gevent.joinall([gevent.spawn(one) for _ in range(in_flight)])
        return outcome.end(started)


def promises(server: Server, light: str, heavy: str, folder: Path, seconds: float, requests: int) -> None:
    """Run all three tests and print their outcomes. Raises ScenarioError if a model is not served."""
    images = [image.body for image in read_images(folder)]
    light_client, heavy_client = (ModelClient(server, name, images) for name in (light, heavy))
    for client in (light_client, heavy_client):
        client.check()
    fairness(light_client, heavy_client, seconds)
    overload(heavy_client, seconds)
    if requests:
        endurance(light_client, requests)


def fairness(light: ModelClient, heavy: ModelClient, seconds: float) -> None:
    """Print the outcome of a flood for one model, alone and beside single requests for another model."""
    single_ms = percentile_ms(heavy.closed(1, seconds / 2).answered, 50)
    solo = heavy.closed(IN_FLIGHT, seconds)
    flood, beside = gevent.spawn(heavy.closed, IN_FLIGHT, seconds), gevent.spawn(light.poisson, LIGHT_RATE, seconds)
    mixed, few = flood.get(), beside.get()
    times = percentile_ms(few.answered, 99) / single_ms
    print(f"{heavy.name}, one connection: p50 {single_ms:.1f} ms")
    print(f"{heavy.name}, {IN_FLIGHT} in flight, alone: {solo}")
    print(f"{heavy.name} with {light.name} beside: {mixed}; {mixed.rate / solo.rate:.0%} of its rate alone")
    print(f"{light.name} at {LIGHT_RATE:g}/s: {few}; its p99 is {times:.2f} times {heavy.name}'s p50 of one connection")


def overload(client: ModelClient, seconds: float) -> None:
    """Print the outcome of OVERLOAD times as many requests as the model can answer."""
    capacity = client.closed(IN_FLIGHT, seconds / 2).rate
    before_mb = client.resident_mb()
    deadline_ms = max(1000.0, 1000 * 2 * IN_FLIGHT / capacity)
    hurried = ModelClient(client.server, client.name, client.images, f"&deadline_ms={deadline_ms:.0f}")
    outcome = hurried.poisson(OVERLOAD * capacity, 2 * seconds)
    grown_mb = client.resident_mb() - before_mb
    in_time = [took for took in outcome.answered if took <= deadline_ms / 1000]
    print(
        f"{client.name} at {OVERLOAD:g} times its {capacity:.1f}/s, {2 * seconds:g} s, deadline {deadline_ms:.0f} ms:"
        f" {outcome}; in time {len(in_time) / outcome.seconds:.1f}/s,"
        f" {len(in_time) / outcome.seconds / capacity:.0%} of capacity; memory {grown_mb:+.0f} MB"
    )


def endurance(client: ModelClient, requests: int) -> None:
    """Print a table, one line per WINDOW requests, that shows if the server grows or slows down."""
    print(f"{client.name}, {ENDURANCE_IN_FLIGHT} in flight\n")
    print(markdown.head(ENDURANCE_HEADINGS, numbers=ENDURANCE_HEADINGS))
    for first in range(0, requests, WINDOW):
        last = min(first + WINDOW, requests)
        outcome = client.count(ENDURANCE_IN_FLIGHT, last - first)
        cells = (
            f"{last:,}",
            f"{outcome.rate:.0f}",
            *(f"{percentile_ms(outcome.answered, percentile):.1f}" for percentile in (50, 99)),
            str(len(outcome.refused) + outcome.other.total()),
            f"{client.resident_mb():.0f}",
        )
        print(markdown.line(cells), flush=True)
