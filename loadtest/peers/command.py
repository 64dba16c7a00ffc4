"""`python -m loadtest peers`: convserve and what people would pick instead, side by side on one machine."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtest.load_run import LoadRun
from loadtest.measure import measure
from loadtest.peers.photos import FOLDER, HEADERS, find_photos, form
from loadtest.peers.results import Results, Row, table
from loadtest.peers.servers import FRAMES, PEERS, SERVERS, Peer, Server, environment, run_module, serving
from loadtest.scenarios import SCENARIOS
from loadtest.tally import Tally
from loadtest.traffic import LabelledImage, ScenarioError, Traffic

WARM_UP_S = 2.0
LIBRARIES = ("hdrh", "litserve", "locust", "skimage")
PACKAGES = (
    *("bentoml", "litserve", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic"),
    *("openvino", "numpy", "pillow", "locust"),
)
NOTE = (
    "One server at a time, started anew for each model and round; each photo is a form, the same bytes for all, encoded"
    " before. convserve / it: how many times the requests/s. CPU and memory (proportional set size, after the turn) are"
    " of all processes of the server, or of the one process without HTTP; the client shares the cores. wrong: another"
    " label than the engine's, asked alone. failed: BentoML answers 503 to what waits longer than max_latency_ms, 1,000"
    " in its documentation. LitServe brings uvloop and httptools,"
    " which uvicorn then uses for every server. The peers are in loadtest/peers/, their settings otherwise the"
    " libraries' own."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured."""

    names: list[str]
    connections: list[int]
    rounds: int
    seconds: float
    precision: str
    images: Path
    out: Path


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model, and the photos with the labels that its engine gives them alone."""

    tag: str
    processor: str
    photos: list[Path]
    images: list[LabelledImage]


def peers_command(arguments: list[str]) -> None:
    """Measure convserve and what people would pick instead, side by side on this machine."""
    parser = argparse.ArgumentParser("python -m loadtest peers", description=peers_command.__doc__)
    parser.add_argument("--models", default="lenet5,resnet50", help="by commas (default: %(default)s)")
    parser.add_argument("--connections", type=numbers, default="1,4,16,32", help="by commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all in turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="each turn (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="default: %(default)s")
    parser.add_argument("--images", type=Path, default=FOLDER, help="folder of JPEGs (default: scikit-image's photos)")
    parser.add_argument("--out", type=Path, default=Path("peers.jsonl"), help="what is there already is kept")
    options = parser.parse_args(arguments)
    plan = Plan(
        names=options.models.split(","),
        connections=options.connections,
        rounds=options.rounds,
        seconds=options.seconds,
        precision=options.precision,
        images=options.images,
        out=options.out,
    )
    print(compare(plan))


def numbers(text: str) -> list[int]:
    """`1,4,16`; ValueError, which the parser tells, if it is not."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def compare(plan: Plan) -> str:
    """The table of all rounds; ScenarioError if something is missing, or a server does not start."""
    if missing := [name for name in LIBRARIES if not find_spec(name)]:
        raise ScenarioError(f"{', '.join(missing)} is not installed here: pip install '.[loadtest,peers]'")
    results = Results(plan.out)
    photos = [path.resolve() for path in find_photos(plan.images)]
    models = [load(name, plan.precision, photos) for name in plan.names]
    setting = describe(plan, models[0])
    for turn, model in itertools.product(range(plan.rounds), models):
        first = turn % len(SERVERS)  # none always follows the same one
        for server in (*SERVERS[first:], *SERVERS[:first]):
            todo = [n for n in plan.connections if (setting, model.tag, n, server, turn) not in results.rows]
            if not todo:
                continue
            with opened(server, model, plan) as take:
                for connections in todo:
                    row = Row(
                        setting=setting,
                        model=model.tag,
                        connections=connections,
                        server=server,
                        round=turn,
                        date=time.strftime("%Y-%m-%d"),
                        **take(connections),
                    )
                    results.add(row)
                    print(f"round {turn + 1}: {row}", file=sys.stderr)
    keys = itertools.product([setting], [model.tag for model in models], plan.connections, SERVERS, range(plan.rounds))
    rows = [results.rows[key] for key in keys]
    dates = " to ".join(sorted({min(row.date for row in rows), max(row.date for row in rows)}))
    return f"{table(rows)}\n\n{dates}; medians, rounds: {plan.rounds}; {setting}. {NOTE}"


def load(name: str, precision: str, photos: list[Path]) -> Model:
    """Which model that is, and its engine's labels; ScenarioError with the command that makes it if it is not there."""
    told = json.loads(run_module("labels", name, precision, *map(str, photos)))
    images = [form(path, label) for path, label in zip(photos, told["labels"], strict=True)]
    return Model(tag=told["tag"], processor=told["processor"], photos=photos, images=images)


def describe(plan: Plan, model: Model) -> str:
    """All that must be the same for figures to be compared, in words."""
    size = sum(len(image.body) for image in model.images)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{model.processor}, {platform.system()}, Python {platform.python_version()}, {packages}; OpenVINO in"
        f" {plan.precision}; {len(model.images)} JPEG photos, {size / len(model.images) / 1000:.0f} kB each on average;"
        f" {plan.seconds:g} s a turn after {WARM_UP_S:g} s of warm-up"
    )


@contextmanager
def opened(server: str, model: Model, plan: Plan) -> Iterator[Callable[[int], dict[str, Any]]]:
    """What takes a turn of so many connections, and gives the figures of a Row."""
    if frame := FRAMES.get(server):
        yield lambda connections: without_http(frame, model, plan, connections)
        return
    with serving(server, model.tag, plan.precision, model.images[0]) as process:
        yield lambda connections: over_http(PEERS[server], process, model, connections, plan.seconds)


def without_http(frame: str, model: Model, plan: Plan, connections: int) -> dict[str, Any]:
    """A turn in a process of its own."""
    arguments = [frame, str(connections), str(WARM_UP_S), str(plan.seconds), *map(str, model.photos)]
    told: dict[str, Any] = json.loads(run_module("frames", *arguments, env=environment(model.tag, plan.precision)))
    tally = Tally.load(told.pop("tally"))
    return figures(tally) | told


def over_http(peer: Peer, server: Server, model: Model, connections: int, seconds: float) -> dict[str, Any]:
    """A turn, after one that only warms up."""
    with suppress(ScenarioError):  # which comes again
        measure(server.host, make_run(peer, model, WARM_UP_S), connections)
    server.settle()
    run = make_run(peer, model, seconds)
    before_s, client_before_s = server.cpu_s(), client_cpu_s()
    error = None
    try:
        measure(server.host, run, connections)
    except ScenarioError as problem:
        error = str(problem)
    used = {
        "cpu_s": server.cpu_s() - before_s,
        "client_cpu_s": client_cpu_s() - client_before_s,
        "pss_bytes": server.pss_bytes(),
    }
    return figures(run.tallies[model.tag]) | used | {"error": error} | ({} if peer.checked else {"wrong": None})


def make_run(peer: Peer, model: Model, seconds: float) -> LoadRun:
    """A closed loop over the photos."""
    traffic = Traffic({model.tag: 1}, {model.tag: itertools.cycle(model.images)})
    return LoadRun(SCENARIOS["offline"], traffic, path=peer.path, headers=HEADERS, seconds=seconds)


def client_cpu_s() -> float:
    """Processor time that this process, which makes the load, has used, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def figures(tally: Tally) -> dict[str, Any]:
    """Of a Row."""
    return {
        "seconds": tally.lasted,
        "answers": tally.answers,
        "failed": tally.failures,
        "wrong": tally.answers - tally.right,
        "p50_ms": tally.latency_ms(50),
        "p99_ms": tally.latency_ms(99),
    }
