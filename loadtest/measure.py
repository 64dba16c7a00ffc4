"""Measurement of one load run in this process, without Locust's command."""

from __future__ import annotations

import time

import gevent
from locust.env import Environment

from loadtest.load_run import PATIENCE_S, ClassifyUser, LoadRun
from loadtest.tally import Tally
from loadtest.traffic import ScenarioError


def measure(host: str, run: LoadRun, users: int = 1) -> Tally:
    """Run a load of one model and return its tally.

    `users` is the number of requests in flight of a closed loop, or of streams of an open one. Raises ScenarioError,
    with the last failure, if no request was answered.
    """
    (model,) = run.traffic.weights
    ClassifyUser.load_run = run
    runner = Environment(user_classes=[ClassifyUser], host=host).create_local_runner()
    runner.start(users, spawn_rate=users)
    gevent.sleep(run.seconds)
    run.stop()
    deadline = time.perf_counter() + PATIENCE_S
    while run.scenario.in_flight and runner.user_count and time.perf_counter() < deadline:
        gevent.sleep(0.01)  # lets open requests end: cut off, they would load the server in the next run
    run.end()
    errors = [str(error.error) for error in runner.errors.values()]
    runner.quit()
    tally = run.tallies[model]
    if not tally.answers:
        raise ScenarioError(f"no answer from {model} in {run.seconds:g} s; {tally.failures} failed: {errors[-1:]}")
    return tally
