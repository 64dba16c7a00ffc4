"""Rows of a sweep: one for each architecture that the server knows, one for each engine and round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from loadtest.store import Row, read_rows

SETTLED = ("single.p50_ms", "offline.achieved", "max_rate")  # figures of an engine on which its rounds have to agree
NEAR = 0.1  # of the median


class SweepLoad(Row):
    """Load of a sweep: seconds per run, requests in flight offline, bound of the p99, steps of the rate search."""

    seconds: float
    in_flight: int
    p99_ms: float
    steps: int


class LoadPoint(Row):
    """Figures of one run of one scenario. Latencies are in ms since each request was due.

    `rate` is the planned rate of an open loop in requests per second. `stages_ms` are the means that the server
    reports, `cpu_ms` is its processor time per answer, `memory_mb` its resident memory at the end. `fell_behind` says
    why these latencies are those of the load generator and not of the server.
    """

    scenario: str
    rate: float | None
    offered: float
    achieved: float
    answers: int
    right: int
    failures: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    stages_ms: dict[str, float]
    cpu_ms: float
    memory_mb: float
    fell_behind: str | None


class PublishedAccuracy(Row):
    """Accuracy that a paper or library published, in percent."""

    data: str
    top1: float | None
    top5: float | None
    protocol: str
    source: str


class ModelCost(Row):
    """Cost of one image at one input shape."""

    input_shape: tuple[int, int, int]
    params: int
    macs: int
    activations: int
    param_bytes: int


class ServedArchitecture(ModelCost):
    """Card of an architecture, with the cost at the paper's input."""

    kind: Literal["architecture"] = "architecture"
    name: str
    family: str
    year: int
    published: list[PublishedAccuracy]


class EngineTiming(Row):
    """Benchmark of an engine without HTTP, by `python -m engines bench`."""

    streams: int
    threads: int | None
    batch: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    gmacs_per_s: float
    of_compute: float | None
    of_bandwidth: float | None
    memory_mb: float | None


class EngineRow(ModelCost):
    """Measurements of one model at one precision in one round.

    `top1`, 0 to 1, was measured on `images` held-out images of `dataset`. `max_rate` is the highest rate, in requests
    per second, whose p99 stayed below the bound. `problem` says why something is missing.
    """

    kind: Literal["engine"] = "engine"
    tag: str
    architecture: str
    family: str
    runtime: str
    precision: str
    round: int
    load: SweepLoad
    dataset: str
    images: int | None
    top1: float | None
    benchmark: list[EngineTiming]
    server: dict[str, str]
    client: dict[str, str]
    date: str
    single: LoadPoint | None = None
    offline: LoadPoint | None = None
    search: list[LoadPoint] = Field(default_factory=list)
    max_rate: float | None = None
    at_percent: dict[str, LoadPoint] = Field(default_factory=dict)
    problem: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Identity of the row: a sweep measures each tag, precision and round once."""
        return self.tag, self.precision, self.round


KINDS: TypeAdapter[ServedArchitecture | EngineRow] = TypeAdapter(
    Annotated[ServedArchitecture | EngineRow, Field(discriminator="kind")]
)


def read(path: Path) -> tuple[list[ServedArchitecture], list[EngineRow]]:
    """Return the rows of both kinds. Raises ScenarioError if the file does not exist or is not a sweep's."""
    rows = read_rows(path, KINDS, "sweep")
    architectures = [row for row in rows if isinstance(row, ServedArchitecture)]
    return architectures, [row for row in rows if isinstance(row, EngineRow)]


class Measured:
    """Rounds of one engine, and medians over the rounds. `name` is the shortest name that no other engine has."""

    def __init__(self, name: str, rounds: list[EngineRow]) -> None:
        self.name = name
        self.rounds = rounds
        self.engine = rounds[-1]

    def values(self, figure: str) -> list[float]:
        """Return a figure such as `max_rate` or `single.p99_ms` of each round that has the figure."""
        return [value for row in self.rounds if (value := figure_of(row, figure)) is not None]

    def median(self, figure: str) -> float | None:
        """Return the median of a figure over the rounds that have the figure, or None."""
        values = self.values(figure)
        return median(values) if values else None

    def spread(self, figure: str) -> tuple[float, float] | None:
        """Return the least and the largest value of a figure over the rounds, or None with fewer than two."""
        values = self.values(figure)
        return (min(values), max(values)) if len(values) > 1 else None

    def contradicted(self) -> list[str]:
        """Return the figures of SETTLED for which no majority of the rounds is near the median."""
        return [figure for figure in SETTLED if not agree(self.values(figure))]


def agree(values: Sequence[float]) -> bool:
    """Return True if more than half of the values lie within NEAR of their median, or if there are fewer than two."""
    if len(values) < 2:
        return True
    middle = median(values)
    return sum(abs(value - middle) <= NEAR * middle for value in values) > len(values) / 2


def figure_of(row: EngineRow, figure: str) -> float | None:
    """Return a figure by its path, such as `max_rate` or `at_percent.80.p99_ms`; None if it was not measured."""
    value: object = row
    for name in figure.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value if isinstance(value, int | float) else None


def by_engine(engines: list[EngineRow]) -> list[Measured]:
    """Group rows by engine, in the order in which the engines were first measured."""
    rounds: dict[tuple[str, str], list[EngineRow]] = {}
    for row in engines:
        rounds.setdefault((row.tag, row.precision), []).append(row)
    tags = {(row.architecture, row.tag) for row in engines}
    weights = Counter(architecture for architecture, _ in tags)
    names = {tag: tag if weights[architecture] > 1 else architecture for architecture, tag in tags}
    return [Measured(f"{names[tag]} {precision}", rows) for (tag, precision), rows in rounds.items()]
