"""Command line: `python -m loadtest protocols`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

from loadtest import markdown, server_info
from loadtest.options import add_models, numbers, server_parser, server_under_test
from loadtest.peers.photos import FOLDER, find_photos
from loadtest.protocols.client import Outcome, ask
from loadtest.protocols.ways import MANY, Way, ways
from loadtest.server import Server
from loadtest.traffic import ScenarioError

WARM_UP_S = 2.0
NUMBERS = ("images/s", "ratio", "p50 ms", "p99 ms", "server: CPU ms an image", "other labels")
HEADINGS = ("model", "connections", "request", *NUMBERS)
NOTE = (
    "Medians of {rounds} rounds, all requests in turn, {seconds:g} s each. The client is Python; beside the server it"
    " shares the server's cores. ratio: to the images/s of the first line with the same content and connections. other"
    " labels: of images, once before the rounds, than in that line."
)


@dataclass(frozen=True)
class WayFigures:
    """Figures of one run of a way."""

    rate: float  # images/s
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server, an image


def protocols_command(arguments: list[str]) -> None:
    """Measure the ways to ask a server for the same classes beside each other: /classify, /v2, gRPC, many images."""
    parser = server_parser("protocols", protocols_command.__doc__)
    parser.set_defaults(images=FOLDER)
    add_models(parser, default="resnet50,lenet5")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="of the same server (default: without gRPC)")
    parser.add_argument(
        "--connections",
        type=numbers,
        default="1,16,32",
        help=f"separated by commas; a request of {MANY} images has one (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="over all ways in turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="of each run (default: %(default)s)")
    options = parser.parse_args(arguments)
    server, files = server_under_test(options), [path.read_bytes() for path in find_photos(options.images)]
    lines = [line for model in options.models for line in measure_model(server, model, files, options)]
    print(markdown.table(HEADINGS, lines, NUMBERS))
    print(f"\n{NOTE.format(rounds=options.rounds, seconds=options.seconds)}")


def measure_model(
    server: Server, model: str, files: Sequence[bytes], options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """Measure all ways to ask a model, and return the table's lines."""
    found = ways(model, files, pixels_shape(server, model), bool(options.grpc))
    labels = {way.name: read_labels(way, ask(server, options.grpc, way, 1, WARM_UP_S)) for way in found}
    runs = [(count, way) for count in options.connections for way in found if way.images == 1 or count == 1]
    measured: list[list[WayFigures]] = [[] for _ in runs]
    for turn in range(options.rounds):
        first = turn % len(runs)  # each round starts with another run
        for place in (*range(first, len(runs)), *range(first)):
            count, way = runs[place]
            figures = measure_way(server, model, way, options.grpc, count, options.seconds)
            measured[place].append(figures)
            print(f"round {turn + 1}: {model}, {count} connections, {way.name}: {figures.rate:.1f}/s", file=sys.stderr)
    rates = {(count, way.name): middle(rows).rate for (count, way), rows in zip(runs, measured, strict=True)}
    lines: list[tuple[str, ...]] = []
    for (count, way), rows in zip(runs, measured, strict=True):
        row = middle(rows)
        numbers_of_row = (
            *(f"{row.rate:.1f}", f"{row.rate / rates[count, way.beside]:.2f}", f"{row.p50_ms:.1f}"),
            *(f"{row.p99_ms:.1f}", f"{row.cpu_ms:.2f}", str(others(labels[way.name], labels[way.beside]))),
        )
        lines.append((f"`{model}`", str(count), way.name, *numbers_of_row))
    return lines


def pixels_shape(server: Server, model: str) -> list[int]:
    """Return the shape of the pixels that a model's graph takes, without the batch."""
    inputs = server_info.get(server, f"/v2/models/{model}")["inputs"]
    return next(tensor["shape"][1:] for tensor in inputs if tensor["name"] == "pixels")


def measure_way(server: Server, model: str, way: Way, grpc: str | None, connections: int, seconds: float) -> WayFigures:
    """Measure a way to ask at so many connections, with the server's processor time."""
    before = server_info.usage(server, model)
    tally = ask(server, grpc, way, connections, seconds).tally
    images = tally.answers * way.images
    cpu_s = server_info.usage(server, model).cpu_s - before.cpu_s
    return WayFigures(images / tally.lasted, tally.latency_ms(50), tally.latency_ms(99), 1000 * cpu_s / images)


def middle(rows: Sequence[WayFigures]) -> WayFigures:
    """Return the median of each figure."""
    figures = [(row.rate, row.p50_ms, row.p99_ms, row.cpu_ms) for row in rows]
    return WayFigures(*map(median, zip(*figures, strict=True)))


def read_labels(way: Way, outcome: Outcome) -> list[str]:
    """Return the labels of the photos in order. Raises ScenarioError if a body was not sent."""
    if len(outcome.answers) < len(way.bodies):
        raise ScenarioError(f"{way.name}: {len(way.bodies)} requests take longer than {WARM_UP_S:g} s")
    return [label for place in sorted(outcome.answers) for label in way.read(outcome.answers[place])]


def others(labels: Sequence[str], expected: Sequence[str]) -> int:
    """Count the labels that are not those expected, which repeat."""
    return sum(label != other for label, other in zip(labels, islice(cycle(expected), len(labels)), strict=True))
