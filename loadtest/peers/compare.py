"""Comparison of convserve with its peers, one server at a time on one machine."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engines.runtimes.machine import cores, gpus
from loadtest.peers import AS_INSTALLED
from loadtest.peers.clients import Asked, ClientPlan, ask, ask_here, clients
from loadtest.peers.gpu import driver, watched
from loadtest.peers.launch import (
    INSTALLED,
    SERVERS,
    SERVERS_ON_GPU,
    SET_BY_USER,
    UPPER_BOUNDS,
    Peer,
    PeerServer,
    environment,
    installed,
    peers,
    run_module,
    serving,
    workers,
)
from loadtest.peers.photos import ENCODINGS, find_photos
from loadtest.peers.results import CONVSERVE, PeerRow, read_peers, summary
from loadtest.store import write_rows
from loadtest.tally import Tally
from loadtest.traffic import LabelledImage, ScenarioError

WARM_UP_S = 2.0
FIRST_WARM_UP_S = 10.0  # after a start on a GPU: all workers load, and libraries choose their kernels
LIBRARIES = ("hdrh", "litserve", "locust", "skimage")
PACKAGES = (
    *("bentoml", "litserve", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic"),
    *("openvino", "numpy", "pillow", "locust"),
)
HOW = (
    "One server at a time, restarted for each model and round; each photo was encoded before the run: the same form for"
    " all servers, but for Triton the file alone, and for MLServer base64 in JSON. convserve / server: ratio of the"
    " requests/s. CPU and memory (proportional set size, after the run) are those of all processes of the server, or of"
    " the one process without HTTP; the client shares the cores. wrong: another label than the engine's for the photo"
    " alone. LitServe installs uvloop and httptools, which uvicorn then uses for every server. The peers are in"
    " loadtest/peers/."
)
NOTE_GPU = (
    f"{HOW} The peers run torch eagerly in channels_last, convserve as its variables say, by default its torch engine."
    " LitServe: fast_queue, as many workers and API servers. BentoML: workers. FastAPI: uvicorn's workers. Triton: the"
    " server of nvidia-pytriton, as many instances of its Python backend, dynamic batching. GPU: share of the time in"
    " which a kernel ran, and memory of all processes, by nvidia-smi. Of classes that are nearly as probable as each"
    " other, fp16 may choose another one in another batch, which counts as wrong."
)
NOTE = (
    f"{HOW} failed: BentoML answers 503 to requests that wait longer than max_latency_ms, 1,000 in its documentation."
    " Other settings of the peers are the libraries' defaults."
)
NOTE_INSTALLED = (
    f"{HOW} The engine whose labels are right is convserve's in fp32. convserve is `bentoml serve`; the others run the"
    " fp32 file by OpenVINO without options: FastAPI in a `def` route with a lock, since OpenVINO refuses concurrent"
    " calls, LitServe with max_batch_size=1, BentoML with batchable=True, Ray Serve and MLServer one image at a time,"
    " Triton with dynamic batching."
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
    device: str | None = None  # of torch, `cuda` or `cpu`; None for OpenVINO

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the servers to compare, and of the upper bounds of servers in one precision."""
        if self.device:
            return SERVERS_ON_GPU
        return tuple(INSTALLED) if self.precision == AS_INSTALLED else SERVERS

    @property
    def gpu(self) -> str | None:
        """GPU that all servers use, by its name in CUDA_VISIBLE_DEVICES, or None."""
        return gpus()[0] if self.device == "cuda" else None

    @property
    def processes(self) -> int:
        """Number of processes of the load generator; 1 is this process."""
        return max(2, cores() // 4) if self.device else 1


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """Published model, and photos with the labels that its engine predicts for each photo alone."""

    tag: str
    processor: str
    photos: list[Path]
    labels: list[str]
    images: dict[str, list[LabelledImage]]  # photos by the name of their encoding


def compare(comparison: PeerComparison, out: Path) -> str:
    """Measure what the file `out` lacks, and return the Markdown table of all rounds.

    Raises ScenarioError if a library, a model or the photos are missing, or a server does not start.
    """
    if missing := [name for name in LIBRARIES if not find_spec(name)]:
        raise ScenarioError(f"{', '.join(missing)} is not installed here: pip install '.[loadtest,peers]'")
    if comparison.device and not find_spec("torch"):
        raise ScenarioError("torch is not installed here: pip install '.[training]'")
    done = {row.key: row for row in read_peers(out)} if out.exists() else {}
    photos = [path.resolve() for path in find_photos(comparison.images)]
    models = [load_model(name, comparison, photos) for name in comparison.models]
    compared = peers(comparison.precision, comparison.device)
    servers = installed(comparison.servers, compared)
    for server in sorted({*comparison.servers} - {*servers}):
        print(f"without {server}: make peers (Linux on x86-64)", file=sys.stderr)
    left_out: set[str] = set()
    setting = describe(comparison, models[0], servers)
    for turn, model in itertools.product(range(comparison.rounds), models):
        first = turn % len(servers)  # each round starts with another server, so that none always follows the same one
        for server in (*servers[first:], *servers[:first]):
            todo = [n for n in comparison.connections if (setting, model.tag, n, server, turn) not in done]
            if not todo or server in left_out:
                continue
            try:
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
            except ScenarioError as error:
                if server not in compared or not compared[server].package:
                    raise
                left_out.add(server)
                print(f"without {server}: {error}", file=sys.stderr)
    tags = [model.tag for model in models]
    keys = itertools.product([setting], tags, comparison.connections, servers, range(comparison.rounds))
    rows = [done[key] for key in keys if key in done]
    dates = " to ".join(sorted({min(row.date for row in rows), max(row.date for row in rows)}))
    note = NOTE_GPU if comparison.device else NOTE_INSTALLED if comparison.precision == AS_INSTALLED else NOTE
    return f"{summary(rows)}\n\n{dates}; medians, rounds: {comparison.rounds}; {setting}. {note}"


def load_model(name: str, comparison: PeerComparison, photos: list[Path]) -> ComparedModel:
    """Return the model of a name, with its engine's labels. Raises ScenarioError if the model is not published."""
    precision = "fp32" if comparison.precision == AS_INSTALLED else comparison.precision
    env = environment("", precision, comparison.device) if comparison.device else None
    answer = json.loads(run_module("labels", name, precision, *map(str, photos), env=env))
    pairs = list(zip(photos, answer["labels"], strict=True))
    images = {name: [encoding.encode(*pair) for pair in pairs] for name, encoding in ENCODINGS.items()}
    return ComparedModel(
        tag=answer["tag"], processor=answer["processor"], photos=photos, labels=answer["labels"], images=images
    )


def describe(comparison: PeerComparison, model: ComparedModel, servers: tuple[str, ...]) -> str:
    """Describe in words everything that must be the same for rows to be compared."""
    size = sum(len(image.body) for image in model.images["form"])
    compared = peers(comparison.precision, comparison.device)
    optional = [compared[name] for name in servers if name in compared and compared[name].package]
    packages = ", ".join(
        [*(f"{name} {version(name)}" for name in PACKAGES), *(f"{peer.package} {peer.version}" for peer in optional)]
    )
    precision = f"OpenVINO in {comparison.precision}"
    if comparison.device:
        settings = [f"{name}={os.environ[name]}" for name in SET_BY_USER if name in os.environ]
        precision = ", ".join(
            [
                f"torch in {comparison.precision} on {comparison.device}",
                *filter(None, [driver(comparison.gpu or "")]),
                f"workers of a peer: {workers()}",
                f"processes of the client: {comparison.processes}",
                *settings,
            ]
        )
    if comparison.precision == AS_INSTALLED:
        precision = f"each server as installed, convserve {comparison.rest_s:g} s after its first start"
    warm_up = f"{WARM_UP_S:g} s of warm-up" + (f", {FIRST_WARM_UP_S:g} s after a start" if comparison.gpu else "")
    return (
        f"{model.processor}, {platform.system()}, Python {platform.python_version()}, {packages};"
        f" {precision}; {len(model.photos)} JPEG photos, {size / len(model.photos) / 1000:.0f} kB each on"
        f" average; {comparison.seconds:g} s a turn after {warm_up}"
    )


@contextmanager
def opened(server: str, model: ComparedModel, comparison: PeerComparison) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Start a server, and yield the function that measures a run of so many connections as figures of a PeerRow."""
    if bound := UPPER_BOUNDS.get(server):
        yield lambda connections: without_http(bound, model, comparison, connections)
        return
    peer = peers(comparison.precision, comparison.device)[server]
    image = model.images[peer.encoding][0]
    with serving(server, model.tag, comparison.precision, image, comparison.device) as process:
        if comparison.device:
            with asking(make_plan(peer, process, model, max(comparison.connections)), model, comparison) as ask_for:
                ask_for(FIRST_WARM_UP_S if comparison.gpu else WARM_UP_S)
        yield lambda connections: over_http(peer, process, model, connections, comparison)


def without_http(bound: str, model: ComparedModel, comparison: PeerComparison, connections: int) -> dict[str, Any]:
    """Measure an upper bound in a process of its own."""
    arguments = [bound, str(connections), str(WARM_UP_S), str(comparison.seconds), *map(str, model.photos)]
    env = environment(model.tag, comparison.precision, comparison.device)
    output = run_module("upper_bound", *arguments, env=env)
    used: dict[str, Any] = json.loads(output)
    tally = Tally.load(used.pop("tally"))
    return figures(tally) | used


def over_http(
    peer: Peer, server: PeerServer, model: ComparedModel, connections: int, comparison: PeerComparison
) -> dict[str, Any]:
    """Measure a run over HTTP, after a run that only warms up."""
    with asking(make_plan(peer, server, model, connections), model, comparison) as ask_for:
        ask_for(WARM_UP_S)  # the run itself reports an error again
        server.settle()
        before_s = server.cpu_s()
        with watched(comparison.gpu) as gpu_used:
            asked = ask_for(comparison.seconds)
        used = {
            "cpu_s": server.cpu_s() - before_s,
            "client_cpu_s": asked["cpu_s"],
            "pss_bytes": server.pss_bytes(),
            "error": asked["error"],
        }
    return figures(asked["tally"]) | used | gpu_used | ({} if peer.checked else {"wrong": None})


def make_plan(peer: Peer, server: PeerServer, model: ComparedModel, connections: int) -> ClientPlan:
    """Return the plan of a closed loop over the photos."""
    return ClientPlan(
        host=server.host,
        path=peer.path,
        encoding=peer.encoding,
        tag=model.tag,
        photos=[str(photo) for photo in model.photos],
        labels=model.labels,
        connections=connections,
    )


@contextmanager
def asking(plan: ClientPlan, model: ComparedModel, comparison: PeerComparison) -> Iterator[Callable[[float], Asked]]:
    """Yield the function that runs a closed loop for so many seconds, in this process or in several others."""
    if comparison.processes == 1:
        yield lambda seconds: ask_here(plan, model.images[plan.encoding], seconds)
        return
    with clients(plan, comparison.processes) as started:
        yield lambda seconds: ask(started, seconds)


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
