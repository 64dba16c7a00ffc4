"""Closed loop of one way to ask, over HTTP or gRPC, by the same threads: `python -m loadtest.protocols.client`.

A process of its own, since Locust, which `python -m loadtest` imports, patches the threads that gRPC needs.
It reads a plan as JSON from its standard input, and prints its outcome as JSON.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadtest.protocols.ways import Way
from loadtest.server import Server
from loadtest.tally import Tally
from loadtest.traffic import ScenarioError

ROOT = Path(__file__).parents[2]
METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 60

Send = Callable[[bytes], bytes]  # raises RuntimeError for an answer that is an error


@dataclass(frozen=True)
class Outcome:
    """Figures of a run, and the first answer to each body that was sent."""

    tally: Tally
    answers: dict[int, bytes]


def ask(server: Server, grpc: str | None, way: Way, connections: int, seconds: float) -> Outcome:
    """Run a closed loop in a process of its own. Raises ScenarioError if a request fails."""
    plan = {
        "url": server.url + way.path if way.path else None,
        "grpc": grpc,
        "headers": {**server.headers, **way.headers},
        "bodies": [base64.b64encode(body).decode() for body in way.bodies],
        "connections": connections,
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "loadtest.protocols.client"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(plan), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ScenarioError(f"{way.name}: {done.stderr.strip().splitlines()[-1]}")
    outcome = json.loads(done.stdout)
    answers = {int(place): base64.b64decode(answer) for place, answer in outcome["answers"].items()}
    return Outcome(Tally.load(outcome["tally"]), answers)


def main() -> None:
    """Run the plan on the standard input."""
    plan: dict[str, Any] = json.load(sys.stdin)
    bodies = [base64.b64decode(body) for body in plan["bodies"]]
    seconds, started = plan["seconds"], time.perf_counter()
    opened = partial(ask_http, plan["url"]) if plan["url"] else partial(ask_grpc, plan["grpc"])

    def run(first: int) -> Outcome:
        return opened(plan["headers"], lambda send: loop(send, bodies, first, started, seconds))

    with ThreadPoolExecutor(plan["connections"]) as threads:
        outcomes = list(threads.map(run, range(plan["connections"])))
    whole = Outcome(Tally(), {})
    for outcome in outcomes:
        whole.tally.add(outcome.tally)
        whole.answers.update(outcome.answers)
    encoded = {place: base64.b64encode(answer).decode() for place, answer in whole.answers.items()}
    print(json.dumps({"tally": whole.tally.dump(), "answers": encoded}))


def loop(send: Send, bodies: Sequence[bytes], first: int, started: float, seconds: float) -> Outcome:
    """Send one body after another, from the place `first` on, until so many seconds after the start."""
    outcome, place = Outcome(Tally(seconds=seconds), {}), first % len(bodies)
    while (since := time.perf_counter()) < started + seconds:
        outcome.tally.send(0)
        answer = send(bodies[place])
        now = time.perf_counter()
        outcome.tally.answer(now - since, True, now - started)
        outcome.answers.setdefault(place, answer)
        place = (place + 1) % len(bodies)
    return outcome


def ask_http(url: str, headers: dict[str, str], run: Callable[[Send], Outcome]) -> Outcome:
    """Run with the requests of one connection over HTTP."""
    address = urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    with closing(kind(address.netloc, timeout=TIMEOUT_S)) as connection:

        def send(body: bytes) -> bytes:
            connection.request("POST", f"{address.path}?{address.query}", body, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                raise RuntimeError(f"{response.status}: {answer[:300]!r}")
            return answer

        return run(send)


def ask_grpc(address: str, headers: dict[str, str], run: Callable[[Send], Outcome]) -> Outcome:
    """Run with the calls of one connection over gRPC."""
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1)]  # else all threads have one connection
    metadata = [(name.lower(), value) for name, value in headers.items()]
    with grpc.insecure_channel(address, options) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

        def send(body: bytes) -> bytes:
            try:
                answer: bytes = call(body, timeout=TIMEOUT_S, metadata=metadata)
            except grpc.RpcError as error:
                raise RuntimeError(f"{error.code()}: {error.details()}") from error
            return answer

        return run(send)


if __name__ == "__main__":
    main()
