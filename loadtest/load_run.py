"""Load run in one process: the requests to send, the Locust user that sends them, and the counts so far."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, ClassVar

import gevent
from gevent.pool import Group
from locust import FastHttpUser, constant, task
from locust.exception import StopUser

from loadtest.scenarios import Scenario, arrivals
from loadtest.tally import Tally
from loadtest.traffic import Traffic, path_of, read_label

if TYPE_CHECKING:
    from locust.contrib.fasthttp import FastResponse

PATIENCE_S = 60.0  # wait for requests that are still open at the end of an open loop


@dataclass
class LoadRun:
    """Load of one scenario, and one tally per model of the answers that this process has received.

    `path` contains `{model}`, the place of the model's name. `read` returns the label of an answer. `rate`, in requests
    per second, is the rate of each user of an open loop. `seconds` is the planned duration. `seed` decides the
    arrivals of an open loop; processes of one run have different ones.
    """

    scenario: Scenario
    traffic: Traffic
    path: str = path_of("{model}")
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[FastResponse], str] = read_label
    rate: float = 0.0
    seconds: float = 60.0
    seed: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)
    workers: int = 0
    added: int = 0
    open_requests: Group = field(default_factory=Group)
    started: float = field(default_factory=time.perf_counter)
    streams: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.tallies = {model: Tally() for model in self.traffic.weights}

    def stop(self) -> None:
        """Send no further requests, and record the duration."""
        for tally in self.tallies.values():
            tally.seconds = tally.seconds or time.perf_counter() - self.started

    @property
    def stopped(self) -> bool:
        """True once stop() was called."""
        return any(tally.seconds for tally in self.tallies.values())

    def end(self) -> None:
        """Stop, and wait until every request is answered, PATIENCE_S at most."""
        self.stop()
        self.open_requests.join(timeout=PATIENCE_S)

    def add(self, tallies: dict[str, Tally]) -> None:
        """Add the tallies of another process to the tallies of this one."""
        for model, tally in tallies.items():
            self.tallies[model].add(tally)
        self.added += 1

    def gather(self, processes: int) -> None:
        """Wait until the tallies of `processes` other processes were added, twice PATIENCE_S at most."""
        deadline = time.perf_counter() + 2 * PATIENCE_S
        while self.added < processes and time.perf_counter() < deadline:
            gevent.sleep(0.1)


class ClassifyUser(FastHttpUser):
    """Locust user: one request after another in a closed loop, a stream of requests at their due times in an open one.

    `load_run` is the current run of this process. Locust creates the users, so the run is set on the class.
    """

    wait_time = constant(0)
    concurrency = 10_000  # connections, so that no request of an open loop waits for another one's connection
    load_run: ClassVar[LoadRun | None] = None

    @task
    def go(self) -> None:
        """Send one request of a closed loop, or all requests of an open loop."""
        run = self.load_run
        if run is None or run.stopped:
            raise StopUser
        if run.scenario.in_flight:
            self.send(run, time.perf_counter())
            return
        random = Random(f"{run.seed}/{next(run.streams)}")  # noqa: S311 (no secret)
        for seconds in arrivals(run.scenario, run.rate, run.seconds, random):
            due = run.started + seconds
            gevent.sleep(max(0.0, due - time.perf_counter()))
            if run.stopped:
                return
            run.open_requests.spawn(self.send, run, due)

    def send(self, run: LoadRun, due: float) -> None:
        """Send one request. A malformed answer counts as a failure; a wrong class does not.

        `due` is the time by time.perf_counter() at which the request should have been sent.
        """
        model, image = next(run.traffic)
        tally = run.tallies[model]
        tally.send(time.perf_counter() - due)
        path = run.path.format(model=model)
        with self.client.post(
            path,
            data=image.body,  # type: ignore[arg-type]
            headers=dict(run.headers),
            name=model,
            catch_response=True,
        ) as response:
            since_due = time.perf_counter() - due
            response.request_meta["response_time"] = since_due * 1000
            try:
                label = run.read(response)
            except ValueError as error:
                tally.failures += 1
                response.failure(str(error))
                return
        tally.answer(since_due, label == image.label, time.perf_counter() - run.started)
