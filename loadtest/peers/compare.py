"""Comparison of convserve with its peers, one server at a time on one machine."""

from __future__ import annotations

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
from loadtest.peers import AS_INSTALLED
from loadtest.peers.launch import (
    INSTALLED,
    PEERS,
    SERVERS,
    UPPER_BOUNDS,
    Peer,
    PeerServer,
    environment,
    run_module,
    serving,
)
from loadtest.peers.photos import HEADERS, find_photos, form
from loadtest.peers.results import CONVSERVE, PeerRow, read_peers, summary
from loadtest.scenarios import SCENARIOS
from loadtest.store import write_rows
from loadtest.tally import Tally
from loadtest.traffic import LabelledImage, ScenarioError, Traffic

WARM_UP_S = 2.0
LIBRARIES = ("hdrh", "litserve", "locust", "skimage")
PACKAGES = (
    *("bentoml", "litserve", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic"),
    *("openvino", "numpy", "pillow", "locust"),
)
HOW = (
    "One server at a time, restarted for each model and round; each photo is a form that was encoded before the run,"
    " the same bytes for all servers. convserve / server: ratio of the requests/s. CPU and memory (proportional set"
    " size, after the run) are those of all processes of the server, or of the one process without HTTP; the client"
    " shares the cores. wrong: another label than the engine's for the photo alone. LitServe installs uvloop and"
    " httptools, which uvicorn then uses for every server. The peers are in loadtest/peers/."
)
NOTE = (
    f"{HOW} failed: BentoML answers 503 to requests that wait longer than max_latency_ms, 1,000 in its documentation."
    " Other settings of the peers are the libraries' defaults."
)
NOTE_INSTALLED = (
    f"{HOW} The engine whose labels are right is convserve's in fp32. convserve is `bentoml serve`; the others run the"
    " fp32 file by OpenVINO without options: FastAPI in a `def` route with a lock, since OpenVINO refuses concurrent"
    " calls, LitServe with max_batch_size=1, BentoML with batchable=True."
)


@dataclass(frozen=True, kw_only=True)
class PeerComparison:
    """Models, loads and rounds to measure with every server."""

    models: list[str]
    connections: list[int]
    rounds: int
    seconds: float
    precision: str  # or AS_INSTALLED
    images: Path
    rest_s: float

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the servers to compare, and of the upper bounds of servers in one precision."""
        return tuple(INSTALLED) if self.precision == AS_INSTALLED else SERVERS


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """Published model, and photos with the labels that its engine predicts for each photo alone."""

    tag: str
    processor: str
    photos: list[Path]
    images: list[LabelledImage]


def compare(comparison: PeerComparison, out: Path) -> str:
    """Measure what the file `out` lacks, and return the Markdown table of all rounds.

    Raises ScenarioError if a library, a model or the photos are missing, or a server does not start.
    """
    if missing := [name for name in LIBRARIES if not find_spec(name)]:
        raise ScenarioError(f"{', '.join(missing)} is not installed here: pip install '.[loadtest,peers]'")
    done = {row.key: row for row in read_peers(out)} if out.exists() else {}
    photos = [path.resolve() for path in find_photos(comparison.images)]
    models = [load_model(name, comparison.precision, photos) for name in comparison.models]
    setting = describe(comparison, models[0])
    servers = comparison.servers
    for turn, model in itertools.product(range(comparison.rounds), models):
        first = turn % len(servers)  # each round starts with another server, so that none always follows the same one
        for server in (*servers[first:], *servers[:first]):
            todo = [n for n in comparison.connections if (setting, model.tag, n, server, turn) not in done]
            if not todo:
                continue
            with opened(server, model, comparison) as measure_run:
                if server == CONVSERVE and turn == 0 and comparison.precision == AS_INSTALLED:
                    time.sleep(comparison.rest_s)
                for connections in todo:
                    row = PeerRow(
                        setting=setting,
                        model=model.tag,
                        connections=connections,
                        server=server,
                        round=turn,
                        date=time.strftime("%Y-%m-%d"),
                        **measure_run(connections),
                    )
                    done[row.key] = row
                    write_rows(out, done.values())
                    print(f"round {turn + 1}: {row.progress}", file=sys.stderr)
    tags = [model.tag for model in models]
    keys = itertools.product([setting], tags, comparison.connections, servers, range(comparison.rounds))
    rows = [done[key] for key in keys]
    dates = " to ".join(sorted({min(row.date for row in rows), max(row.date for row in rows)}))
    note = NOTE_INSTALLED if comparison.precision == AS_INSTALLED else NOTE
    return f"{summary(rows)}\n\n{dates}; medians, rounds: {comparison.rounds}; {setting}. {note}"


def load_model(name: str, precision: str, photos: list[Path]) -> ComparedModel:
    """Return the model of a name, with its engine's labels. Raises ScenarioError if the model is not published."""
    precision = "fp32" if precision == AS_INSTALLED else precision
    answer = json.loads(run_module("labels", name, precision, *map(str, photos)))
    images = [form(path, label) for path, label in zip(photos, answer["labels"], strict=True)]
    return ComparedModel(tag=answer["tag"], processor=answer["processor"], photos=photos, images=images)


def describe(comparison: PeerComparison, model: ComparedModel) -> str:
    """Describe in words everything that must be the same for rows to be compared."""
    size = sum(len(image.body) for image in model.images)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    precision = f"OpenVINO in {comparison.precision}"
    if comparison.precision == AS_INSTALLED:
        precision = f"each server as installed, convserve {comparison.rest_s:g} s after its first start"
    return (
        f"{model.processor}, {platform.system()}, Python {platform.python_version()}, {packages};"
        f" {precision}; {len(model.images)} JPEG photos, {size / len(model.images) / 1000:.0f} kB each on"
        f" average; {comparison.seconds:g} s a turn after {WARM_UP_S:g} s of warm-up"
    )


@contextmanager
def opened(server: str, model: ComparedModel, comparison: PeerComparison) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Start a server, and yield the function that measures a run of so many connections as figures of a PeerRow."""
    if bound := UPPER_BOUNDS.get(server):
        yield lambda connections: without_http(bound, model, comparison, connections)
        return
    with serving(server, model.tag, comparison.precision, model.images[0]) as process:
        yield lambda connections: over_http(PEERS[server], process, model, connections, comparison.seconds)


def without_http(bound: str, model: ComparedModel, comparison: PeerComparison, connections: int) -> dict[str, Any]:
    """Measure an upper bound in a process of its own."""
    arguments = [bound, str(connections), str(WARM_UP_S), str(comparison.seconds), *map(str, model.photos)]
    output = run_module("upper_bound", *arguments, env=environment(model.tag, comparison.precision))
    used: dict[str, Any] = json.loads(output)
    tally = Tally.load(used.pop("tally"))
    return figures(tally) | used


def over_http(peer: Peer, server: PeerServer, model: ComparedModel, connections: int, seconds: float) -> dict[str, Any]:
    """Measure a run over HTTP, after a run that only warms up."""
    with suppress(ScenarioError):  # the run itself reports the error again
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


def make_run(peer: Peer, model: ComparedModel, seconds: float) -> LoadRun:
    """Return a closed loop over the photos."""
    traffic = Traffic({model.tag: 1}, {model.tag: itertools.cycle(model.images)})
    return LoadRun(SCENARIOS["offline"], traffic, path=peer.path, headers=HEADERS, seconds=seconds)


def client_cpu_s() -> float:
    """Return the processor time of this process, the load generator, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def figures(tally: Tally) -> dict[str, Any]:
    """Return the figures of a tally by the names of PeerRow's fields."""
    return {
        "seconds": tally.lasted,
        "answers": tally.answers,
        "failed": tally.failures,
        "wrong": tally.answers - tally.right,
        "p50_ms": tally.latency_ms(50),
        "p99_ms": tally.latency_ms(99),
    }
