"""Launcher of the servers to compare: their arguments, their start and stop, their processor time and memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import psutil
import requests

from engines.runtimes.machine import cores, gpus
from loadtest.peers import AS_INSTALLED
from loadtest.peers.photos import ENCODINGS
from loadtest.traffic import LabelledImage, ScenarioError, path_of

ROOT = Path(__file__).parents[2]
READY_S, STOP_S = 180, 10
WATCHED_S = 0.5  # time over which the load of an idle server is measured
RESTING = 0.3  # of a core, below which a server counts as idle: LitServe polls its queues also without requests
TAIL = 20  # lines of a log that an error message shows


@dataclass(frozen=True)
class Peer:
    """Server to compare: Python's arguments that start it at a port, and the path that classifies an image.

    `checked` is False for a server without a model, whose labels mean nothing. `package` is that of an optional server,
    which is compared where it is installed and starts: in the environment `own`, or in this one.
    """

    arguments: tuple[str, ...]
    path: str = "/classify"
    checked: bool = True
    encoding: str = "form"  # of an image, by its name in ENCODINGS
    package: str | None = None
    own: Path | None = None

    @property
    def python(self) -> Path:
        """Return the Python that runs the server."""
        return self.own / "bin" / "python" if self.own else Path(sys.executable)

    @property
    def version(self) -> str | None:
        """Return the version of an optional server, or None if it is not installed."""
        paths = [str(path) for path in self.own.glob("lib/python*/site-packages")] if self.own else sys.path
        found = distributions(name=self.package, path=paths) if self.package else ()
        return next((distribution.version for distribution in found), None)


BENTOML = ("-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", "{port}")
CONVSERVE = {"convserve": Peer(BENTOML, path=path_of("{model}"))}
FASTAPI = Peer(("-m", "uvicorn", "loadtest.peers.fastapi_lock:app", "--port", "{port}"))
BATCHABLE = Peer((*BENTOML, "loadtest.peers.bentoml_batchable:Batchable"))
RAY_SERVE = Peer(
    ("-m", "loadtest.peers.ray_serve", "{port}"), package="ray", own=Path(sys.prefix, "peers", "ray_serve")
)
MLSERVER = Peer(
    ("-m", "loadtest.peers.mlserver_photos", "{port}"),
    path="/v2/models/photos/infer",
    encoding="base64",
    package="mlserver",
    own=Path(sys.prefix, "peers", "mlserver"),
)
TRITON = Peer(
    ("-m", "loadtest.peers.triton_server", "{port}"),
    path="/v2/models/photos/infer",
    encoding="triton",
    package="nvidia-pytriton",
)
TUNED = CONVSERVE | {
    "FastAPI with a lock": FASTAPI,
    "LitServe with batching": Peer(("-m", "loadtest.peers.litserve_batching", "{port}")),
    "BentoML, batchable": BATCHABLE,
    "Ray Serve with batching": RAY_SERVE,
    "MLServer with batching": MLSERVER,
    "Triton, Python backend": TRITON,
    "empty mounted route": Peer((*BENTOML, "loadtest.peers.empty_route:Empty"), checked=False),
}
INSTALLED = CONVSERVE | {
    "FastAPI": FASTAPI,
    "LitServe": Peer(("-m", "loadtest.peers.litserve_readme", "{port}"), path="/predict"),
    "BentoML": BATCHABLE,
    "Ray Serve": RAY_SERVE,
    "MLServer": MLSERVER,
    "Triton, Python backend": TRITON,
}
ON_GPU = CONVSERVE | {
    "FastAPI with a lock": Peer((*FASTAPI.arguments, "--workers", "{workers}")),
    "LitServe with batching": Peer(("-m", "loadtest.peers.litserve_gpu", "{port}")),
    "BentoML, batchable": BATCHABLE,
    "Triton, Python backend": TRITON,
}
UPPER_BOUNDS = {"decoding + engine, no HTTP": "decode_engine", "engine alone, no HTTP": "engine"}  # in upper_bound.py
SERVERS = (*TUNED, *UPPER_BOUNDS)
SERVERS_ON_GPU = (*ON_GPU, "engine alone, no HTTP")
SET_BY_USER = (  # settings of convserve that a comparison on a GPU keeps, and names
    *("CONVSERVE_RUNTIME", "CONVSERVE_GPU_JPEG", "CONVSERVE_FRONTS", "CONVSERVE_DECODERS"),
    *("CONVSERVE_MAX_BATCH", "CONVSERVE_MAX_WAITING", "CONVSERVE_SCALED_JPEG"),
)


def peers(precision: str, device: str | None) -> dict[str, Peer]:
    """Return the servers of a comparison by their names: in one precision, as installed, or by torch on a device."""
    if device:
        return ON_GPU
    return INSTALLED if precision == AS_INSTALLED else TUNED


def installed(names: Iterable[str], compared: Mapping[str, Peer]) -> tuple[str, ...]:
    """Return the names without those of optional servers that are not installed here."""
    return tuple(name for name in names if name not in compared or not compared[name].package or compared[name].version)


def workers() -> int:
    """Return the number of processes of a peer on a GPU, each with its network: two cores each, at most 8."""
    return min(max(cores() // 2, 1), 8)


def environment(tag: str, precision: str, device: str | None = None) -> dict[str, str]:
    """Return the environment of a process that runs one model in one precision, or as installed, without settings.

    `device` is that of torch, `cuda` or `cpu`, or None for OpenVINO.
    """
    convserve = {"CONVSERVE_RUNTIME": "openvino", "CONVSERVE_PRECISION": precision, "CONVSERVE_LOAD": "first_use"}
    keys = ("CONVSERVE_API_KEY", "CONVSERVE_API_KEYS")  # of another server
    inherited = {name: value for name, value in os.environ.items() if name not in keys}
    peer = {"PEER_MODEL": tag, "PEER_PRECISION": precision}
    if device:
        convserve |= {"CONVSERVE_RUNTIME": os.environ.get("CONVSERVE_RUNTIME", "torch"), "CONVSERVE_TUNE": "off"}
        peer |= {"PEER_DEVICE": device, "PEER_WORKERS": str(workers())}
    if visible := gpus() if device else []:  # every server has the same card
        peer |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible[0]}
    if precision == AS_INSTALLED:
        convserve = {}
        inherited = {name: value for name, value in inherited.items() if not name.startswith("CONVSERVE_")}
    return inherited | convserve | peer


@dataclass(frozen=True)
class PeerServer:
    """Running server of the comparison, with all its processes."""

    host: str
    process: psutil.Process
    workers: int = 1

    def tree(self) -> list[psutil.Process]:
        """Return the server's process and all its descendants."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the processor time of all processes since their start, in seconds, also of those that have ended."""
        seconds = 0.0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):  # convserve tries each engine in a process that ends
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    def settle(self) -> None:
        """Wait until the server is idle: most servers still work on requests whose clients are gone."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            before = self.cpu_s()
            time.sleep(WATCHED_S)
            if self.cpu_s() - before < RESTING * WATCHED_S * self.workers:
                return

    def pss_bytes(self) -> int:
        """Return the memory of all processes in bytes; shared memory is counted once."""
        used = 0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                used += process.memory_full_info().pss
        return used


@contextmanager
def serving(
    name: str, tag: str, precision: str, image: LabelledImage, device: str | None = None
) -> Iterator[PeerServer]:
    """Run a server of the comparison while the context is open: see `running`."""
    with running(
        name,
        peers(precision, device)[name],
        tag,
        image,
        environment(tag, precision, device),
        workers() if device else 1,
    ) as server:
        yield server


@contextmanager
def running(
    name: str, peer: Peer, tag: str, image: LabelledImage, env: Mapping[str, str], processes: int = 1
) -> Iterator[PeerServer]:
    """Run a server while the context is open, which begins once the server has classified `image` by the model `tag`.

    Raises ScenarioError, with the end of the server's log, if the server does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [argument.format(port=port, workers=workers()) for argument in peer.arguments]
    with tempfile.TemporaryFile("w+") as log:
        started = subprocess.Popen(  # noqa: S603 (arguments of a Peer)
            [peer.python, *arguments], cwd=ROOT, env=env, stdout=log, stderr=log
        )
        server = PeerServer(f"http://127.0.0.1:{port}", psutil.Process(started.pid), processes)
        try:
            if problem := why_not_ready(started, server.host + peer.path.format(model=tag), peer, image):
                log.seek(0)
                tail = "\n".join(log.read().splitlines()[-TAIL:])
                raise ScenarioError(f"{name} does not serve {tag}: {problem}; the end of its log:\n{tail}")
            yield server
        finally:
            stop(server)
            started.wait()


def why_not_ready(process: subprocess.Popen[bytes], url: str, peer: Peer, image: LabelledImage) -> str | None:
    """Wait for a good answer and return None, or return the problem that remains after READY_S seconds."""
    deadline, problem = time.monotonic() + READY_S, "no answer"
    headers = dict(ENCODINGS[peer.encoding].headers)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"it ended with {process.returncode}"
        try:
            answer = requests.post(url, data=image.body, headers=headers, timeout=READY_S)
            if answer.ok:
                return None
            problem = f"{answer.status_code}: {answer.text[:200]}"
            if (
                answer.status_code < 500 and not peer.package
            ):  # those answer 400 or 404 until they have loaded the model
                return problem
        except requests.RequestException as error:
            problem = str(error)
        time.sleep(0.1)
    return problem


def stop(server: PeerServer) -> None:
    """Terminate all processes of a server, also those that outlive their parent; kill them after STOP_S seconds."""
    with suppress(psutil.NoSuchProcess):
        tree = server.tree()
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(tree, timeout=STOP_S)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def run_module(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run `python -m loadtest.peers.NAME` and return its output. Raises ScenarioError with its errors if it fails."""
    command = [sys.executable, "-m", f"loadtest.peers.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        message = "\n".join(done.stderr.splitlines()[-TAIL:])
        raise ScenarioError(message.removeprefix("error: "))
    return done.stdout
