"""Load generator in several processes, for servers on a GPU, which answer more than one process can ask.

`python -m loadtest.peers.clients PLAN` prints a line when it is ready; for each line with a number of seconds on its
standard input it runs a closed loop, and prints the tally, its processor time and the error, if any, as JSON.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import locust  # noqa: F401 (imported first, because locust patches sockets and ssl for gevent)

from loadtest.load_run import LoadRun
from loadtest.measure import measure
from loadtest.peers.photos import ENCODINGS
from loadtest.scenarios import SCENARIOS
from loadtest.tally import Tally
from loadtest.traffic import LabelledImage, ScenarioError, Traffic

ROOT = Path(__file__).parents[2]


class Asked(TypedDict):
    """Figures of a run: tally, processor time of the load generator in seconds, and the error, if any."""

    tally: Tally
    cpu_s: float
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """Server, photos and connections of one process."""

    host: str
    path: str
    encoding: str  # name in ENCODINGS
    tag: str
    photos: list[str]
    labels: list[str]
    connections: int


@contextmanager
def clients(plan: ClientPlan, processes: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that share the plan's connections, and yield them when all are ready."""
    shares = [len(range(first, plan.connections, processes)) for first in range(processes)]
    with ExitStack() as stack:
        started = []
        for share in filter(None, shares):
            text = json.dumps(asdict(plan) | {"connections": share})
            command = [sys.executable, "-m", "loadtest.peers.clients", text]
            client = subprocess.Popen(  # noqa: S603 (this module)
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(client)
            stack.callback(client.terminate)
            started.append(client)
        for client in started:
            read(client)
        yield started


def ask(started: list[subprocess.Popen[str]], seconds: float) -> Asked:
    """Let all processes run for so many seconds, and return their figures together."""
    for client in started:
        assert client.stdin
        client.stdin.write(f"{seconds}\n")
        client.stdin.flush()
    answers = [json.loads(read(client)) for client in started]
    tally = Tally()
    for answer in answers:
        tally.add(Tally.load(answer["tally"]))
    errors = [answer["error"] for answer in answers if answer["error"]]
    return Asked(tally=tally, cpu_s=sum(answer["cpu_s"] for answer in answers), error=next(iter(errors), None))


def read(client: subprocess.Popen[str]) -> str:
    """Return the next line of a process. Raises ScenarioError if the process has ended."""
    assert client.stdout
    if line := client.stdout.readline():
        return line
    raise ScenarioError("a process of the load generator ended, see its error above")


def ask_here(plan: ClientPlan, images: list[LabelledImage], seconds: float) -> Asked:
    """Run the plan in this process for so many seconds."""
    encoding = ENCODINGS[plan.encoding]
    traffic = Traffic({plan.tag: 1}, {plan.tag: itertools.cycle(images)})
    run = LoadRun(
        SCENARIOS["offline"], traffic, path=plan.path, headers=encoding.headers, read=encoding.read, seconds=seconds
    )
    before, error = cpu_s(), None
    try:
        measure(plan.host, run, plan.connections)
    except ScenarioError as problem:
        error = str(problem)
    return Asked(tally=run.tallies[plan.tag], cpu_s=cpu_s() - before, error=error)


def cpu_s() -> float:
    """Return the processor time of this process, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the plan of the first argument for each line of the standard input."""
    plan = ClientPlan(**json.loads(sys.argv[1]))
    pairs = zip(plan.photos, plan.labels, strict=True)
    images = [ENCODINGS[plan.encoding].encode(Path(photo), label) for photo, label in pairs]
    print("ready", flush=True)
    for line in sys.stdin:
        asked = ask_here(plan, images, float(line))
        print(json.dumps({**asked, "tally": asked["tally"].dump()}), flush=True)


if __name__ == "__main__":
    main()
