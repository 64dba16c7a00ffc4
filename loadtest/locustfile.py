"""Locust file: options and hooks of a load run; Locust lists each model as a row.

Usage: `locust -f loadtest/locustfile.py --host http://localhost:3000 --scenario server --rate 100`
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from loadtest.load_run import ClassifyUser, LoadRun
from loadtest.scenarios import SCENARIOS
from loadtest.server import API_KEY, API_KEY_HELP, server_of
from loadtest.tally import Tally
from loadtest.traffic import ScenarioError, make_traffic, path_of, read_weights

SILENCE_S = 5.0  # with failures only, after which the server counts as gone
GONE, FELL_BEHIND = 1, 3  # exit codes
FINISH, TALLIES = "finish", "tallies"  # messages: from the master to a worker, and the worker's answer
logger = logging.getLogger(__name__)


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Add the options of this file to Locust's command line and page."""
    parser.add_argument("--api-key", env_var=API_KEY, default="", help=API_KEY_HELP, include_in_web_ui=False)
    parser.add_argument("--models", default="lenet5", help="names, or names and weights: vgg19=1,lenet5=20")
    parser.add_argument("--precision", default="", help="precision of all models (default: the server's choice)")
    parser.add_argument("--images", default="images/mnist5k", help="folder of images, a sub-folder a label")
    parser.add_argument(
        "--scenario",
        choices=list(SCENARIOS),
        default="offline",
        help="; ".join(f"{name}: {scenario.description}" for name, scenario in SCENARIOS.items()),
    )
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second, of all users, in an open loop")


def set_users(environment: Environment, **_: Any) -> None:
    """Start as many users as the scenario has requests in flight, all at once, unless -u or -r say otherwise."""
    if options := environment.parsed_options:
        options.num_users = options.num_users or SCENARIOS[options.scenario].in_flight or 1
        options.spawn_rate = options.spawn_rate or options.num_users


def prepare(environment: Environment, **_: Any) -> None:
    """Prepare the run, or log the reason and end with exit code 2."""
    ClassifyUser.load_run = None
    runner, options = environment.runner, environment.parsed_options
    if runner is None or options is None:
        return
    try:
        ClassifyUser.load_run = make_run(environment)
        if not isinstance(runner, WorkerRunner):
            gevent.spawn(watch, environment, ClassifyUser.load_run)
    except ScenarioError as error:
        logger.error("%s", error)
        environment.process_exit_code = 2
        if isinstance(runner, WorkerRunner):
            return  # the master ends the run
        if environment.web_ui is None:
            sys.exit(2)
        runner.quit()


def make_run(environment: Environment) -> LoadRun:
    """Return the run of these options. Raises ScenarioError for a bad option or a model that is not served."""
    options, runner = environment.parsed_options, environment.runner
    assert options
    if not environment.host:
        raise ScenarioError("--host is missing")
    if not options.rate > 0:
        raise ScenarioError(f"--rate must be more than 0, not {options.rate:g}")
    server = server_of(environment.host, options.api_key)
    environment.host = server.url
    process = runner.worker_index if isinstance(runner, WorkerRunner) else 0
    weights, precision = read_weights(options.models), options.precision or None
    traffic = make_traffic(server, weights, Path(options.images), process, precision)
    path, rate = path_of("{model}", precision), options.rate / options.num_users
    run = LoadRun(SCENARIOS[options.scenario], traffic, path, server.headers, rate=rate, seed=process)
    run.seconds = options.run_time or run.seconds
    run.workers = runner.worker_count if isinstance(runner, MasterRunner) else 0
    return run


def watch(environment: Environment, run: LoadRun) -> None:
    """End the run once every request of the last SILENCE_S seconds has failed: the server is gone."""
    runner, answered, since = environment.runner, 0, time.perf_counter()
    while runner and ClassifyUser.load_run is run and not run.stopped:
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
    """Stop the run when Locust begins to stop its users."""
    if run := ClassifyUser.load_run:
        run.stop()


def finish(environment: Environment, **_: Any) -> None:
    """Wait for open requests, then log the tally of each model over all processes.

    Exit code 1 (GONE) if the server has gone or a process sent no tallies, else 3 (FELL_BEHIND) if the load generator
    did not keep up.
    """
    run, runner = ClassifyUser.load_run, environment.runner
    if run is None or isinstance(runner, WorkerRunner):
        return  # the master requests the tallies of a worker with FINISH
    if isinstance(runner, MasterRunner):
        runner.send_message(FINISH)
        run.gather(runner.worker_count)
        if run.added < run.workers:
            logger.error("%d of %d processes sent no tallies", run.workers - run.added, run.workers)
            environment.process_exit_code = GONE
    else:
        run.end()
    for model, tally in run.tallies.items():
        if tally.sent:
            logger.info("%s: %s", model, tally)
            if problem := tally.fell_behind:
                logger.error("%s: the generator fell behind: %s", model, problem)
                environment.process_exit_code = environment.process_exit_code or FELL_BEHIND


def send_tallies(environment: Environment, **_: Any) -> None:
    """Send the tallies of this worker to the master, once all requests are answered."""
    if (run := ClassifyUser.load_run) and environment.runner:
        run.end()
        environment.runner.send_message(TALLIES, {model: tally.dump() for model, tally in run.tallies.items()})


def receive_tallies(msg: Message, **_: Any) -> None:
    """Add the tallies of a worker to the tallies of this master."""
    if run := ClassifyUser.load_run:
        run.add({model: Tally.load(dumped) for model, dumped in msg.data.items()})


def register_messages(environment: Environment, **_: Any) -> None:
    """Register the messages between master and workers, if there are several processes."""
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(TALLIES, receive_tallies)
    elif isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message(FINISH, send_tallies, concurrent=True)


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(set_users)
events.init.add_listener(register_messages)
events.test_start.add_listener(prepare)
events.test_stopping.add_listener(stop)
events.test_stop.add_listener(finish)
