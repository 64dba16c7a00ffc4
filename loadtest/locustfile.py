"""Locust users that send real images and check the answers, when a scenario says; each model is a row.

Stands alone: `locust -f loadtest/locustfile.py --host http://localhost:3000 --scenario server --rate 100`
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from loadtest.scenarios import SCENARIOS, Scenario, arrivals
from loadtest.tally import Tally
from loadtest.traffic import ScenarioError, Traffic, make_traffic, path_of, read_label, read_weights

PATIENCE_S = 60.0  # for what is still asked at the end of an open loop
SILENCE_S = 5.0  # with failures alone: the server is gone
GONE, FELL_BEHIND = 1, 3  # exit codes
FINISH, TALLIES = "finish", "tallies"  # messages: a master's, and what a worker answers
logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What is sent, where and when, and what came of it, in this process.

    `path` is asked with the model's name in it. `rate`, requests a second, is that of each user of an open loop;
    `seconds` is how long the run is meant to be.
    """

    scenario: Scenario
    traffic: Traffic
    path: str = path_of("{model}")
    headers: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.0
    seconds: float = 60.0
    process: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)
    workers: int = 0
    added: int = 0
    asked: Group = field(default_factory=Group)
    started: float = field(default_factory=time.perf_counter)
    streams: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.tallies = {model: Tally() for model in self.traffic.weights}

    def stop(self) -> None:
        """Nothing more is asked."""
        for tally in self.tallies.values():
            tally.seconds = tally.seconds or time.perf_counter() - self.started

    @property
    def stopped(self) -> bool:
        """Whether it was."""
        return any(tally.seconds for tally in self.tallies.values())

    def end(self) -> None:
        """Stop, and wait until all that was asked is answered or given up."""
        self.stop()
        self.asked.join(timeout=PATIENCE_S)

    def add(self, tallies: dict[str, Tally]) -> None:
        """What another process has seen."""
        for model, tally in tallies.items():
            self.tallies[model].add(tally)
        self.added += 1

    def gather(self, processes: int) -> None:
        """Wait until so many have told what they have seen."""
        deadline = time.perf_counter() + 2 * PATIENCE_S
        while self.added < processes and time.perf_counter() < deadline:
            gevent.sleep(0.1)


class Classifier(FastHttpUser):
    """In a closed loop asks without a pause; in an open one is a stream of requests, each asked when it is due."""

    wait_time = constant(0)
    concurrency = 10_000  # connections; of an open loop none waits for another's
    run_: ClassVar[Run | None] = None

    @task
    def go(self) -> None:
        """One request of a closed loop, or all of an open one."""
        run = self.run_
        if run is None or run.stopped:
            raise StopUser
        if run.scenario.in_flight:
            self.ask(run, time.perf_counter())
            return
        random = Random(f"{run.process}/{next(run.streams)}")  # noqa: S311 (no secret)
        for seconds in arrivals(run.scenario, run.rate, run.seconds, random):
            due = run.started + seconds
            gevent.sleep(max(0.0, due - time.perf_counter()))
            if run.stopped:
                return
            run.asked.spawn(self.ask, run, due)

    def ask(self, run: Run, due: float) -> None:
        """One request; an answer that is not well formed is a failure, a wrong class is not."""
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
                label = read_label(response)
            except ValueError as error:
                tally.failures += 1
                response.failure(str(error))
                return
        tally.answer(since_due, label == image.label, time.perf_counter() - run.started)


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Our own options, on the command line and on Locust's page."""
    parser.add_argument("--models", default="lenet5", help="names, or names and weights: vgg19=1,lenet5=20")
    parser.add_argument("--precision", default="", help="of all models; without, the server chooses")
    parser.add_argument("--images", default="images/mnist5k", help="folder of images, a sub-folder a label")
    parser.add_argument(
        "--scenario",
        choices=list(SCENARIOS),
        default="offline",
        help="; ".join(f"{name}: {scenario.tells}" for name, scenario in SCENARIOS.items()),
    )
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second, of all users, in an open loop")


def users_of(environment: Environment, **_: Any) -> None:
    """As many as the scenario has in flight, unless told otherwise, and at once."""
    if options := environment.parsed_options:
        options.num_users = options.num_users or SCENARIOS[options.scenario].in_flight or 1
        options.spawn_rate = options.spawn_rate or options.num_users


def prepare(environment: Environment, **_: Any) -> None:
    """Make the run, or say why there is none and end."""
    Classifier.run_ = None
    runner, options = environment.runner, environment.parsed_options
    if runner is None or options is None:
        return
    try:
        Classifier.run_ = make_run(environment)
        if not isinstance(runner, WorkerRunner):
            gevent.spawn(watch, environment, Classifier.run_)
    except ScenarioError as error:
        logger.error("%s", error)
        environment.process_exit_code = 2
        if isinstance(runner, WorkerRunner):
            return  # its master ends the run
        if environment.web_ui is None:
            sys.exit(2)
        runner.quit()


def make_run(environment: Environment) -> Run:
    """What the options ask for; ScenarioError if it cannot be had."""
    options, runner = environment.parsed_options, environment.runner
    assert options
    if not environment.host:
        raise ScenarioError("--host is missing")
    if not options.rate > 0:
        raise ScenarioError(f"--rate must be more than 0, not {options.rate:g}")
    process = runner.worker_index if isinstance(runner, WorkerRunner) else 0
    weights, precision = read_weights(options.models), options.precision or None
    traffic = make_traffic(environment.host, weights, Path(options.images), process, precision)
    path, rate = path_of("{model}", precision), options.rate / options.num_users
    run = Run(SCENARIOS[options.scenario], traffic, path, rate=rate, process=process)
    run.seconds = options.run_time or run.seconds
    run.workers = runner.worker_count if isinstance(runner, MasterRunner) else 0
    return run


def watch(environment: Environment, run: Run) -> None:
    """End a run whose server is gone: for a while now every request has failed."""
    runner, answered, since = environment.runner, 0, time.perf_counter()
    while runner and Classifier.run_ is run and not run.stopped:
        gevent.sleep(0.5)
        total = runner.stats.total
        if total.num_requests - total.num_failures > answered or not total.num_failures:
            answered, since = total.num_requests - total.num_failures, time.perf_counter()
        elif time.perf_counter() - since > SILENCE_S:
            last = [error.error for error in runner.errors.values()][-1:]
            logger.error("no answer for %g s, and failures: %s; the run ends", SILENCE_S, *last)
            environment.process_exit_code = GONE
            runner.quit()
            return


def stop(**_: Any) -> None:
    """Nothing more is asked."""
    if run := Classifier.run_:
        run.stop()


def finish(environment: Environment, **_: Any) -> None:
    """Wait for what is still asked; log a line a model, of all processes, and whether the generator kept up."""
    run, runner = Classifier.run_, environment.runner
    if run is None or isinstance(runner, WorkerRunner):
        return  # whose master asks for what it has seen
    if isinstance(runner, MasterRunner):
        runner.send_message(FINISH)
        run.gather(runner.worker_count)
        if run.added < run.workers:
            logger.error("%d of %d processes did not tell what they had seen", run.workers - run.added, run.workers)
            environment.process_exit_code = GONE
    else:
        run.end()
    for model, tally in run.tallies.items():
        if tally.sent:
            logger.info("%s: %s", model, tally)
            if problem := tally.fell_behind:
                logger.error("%s: the generator fell behind: %s", model, problem)
                environment.process_exit_code = FELL_BEHIND


def tell(environment: Environment, **_: Any) -> None:
    """Of a worker: what it has seen, once all that it asked is answered."""
    if (run := Classifier.run_) and environment.runner:
        run.end()
        environment.runner.send_message(TALLIES, {model: tally.dump() for model, tally in run.tallies.items()})


def hear(msg: Message, **_: Any) -> None:
    """Of a master: what a worker has seen."""
    if run := Classifier.run_:
        run.add({model: Tally.load(dumped) for model, dumped in msg.data.items()})


def listen(environment: Environment, **_: Any) -> None:
    """To each other, where there are several processes."""
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(TALLIES, hear)
    elif isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message(FINISH, tell, concurrent=True)


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(users_of)
events.init.add_listener(listen)
events.test_start.add_listener(prepare)
events.test_stopping.add_listener(stop)
events.test_stop.add_listener(finish)
