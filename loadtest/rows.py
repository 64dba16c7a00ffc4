"""What a sweep finds, as JSON lines: one for each architecture that the server knows, one for each engine and round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from loadtest.traffic import ScenarioError


class Row(BaseModel):
    """Immutable; what a newer server tells besides is passed over."""

    model_config = ConfigDict(frozen=True)


class Load(Row):
    """How a sweep measures: seconds a run, requests in flight offline, the bound of the p99, steps of the search."""

    seconds: float
    in_flight: int
    p99_ms: float
    steps: int


class Point(Row):
    """One run of one scenario. Latencies are in ms since each request was due.

    `rate` is what an open loop was asked for. `stages_ms` are the server's own means, `cpu_ms` its processor time for
    an answer, `memory_mb` what it had resident at the end. `fell_behind` says why the generator, not the server, made
    these latencies.
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


class Result(Row):
    """A published accuracy, in percent."""

    data: str
    top1: float | None
    top5: float | None
    protocol: str
    source: str


class Cost(Row):
    """Of one image, at one input."""

    input_shape: tuple[int, int, int]
    params: int
    macs: int
    activations: int
    param_bytes: int


class Architecture(Cost):
    """A card, with the cost at the paper's input."""

    kind: Literal["architecture"] = "architecture"
    name: str
    family: str
    year: int
    published: list[Result]


class Speed(Row):
    """The engine without HTTP, as `python -m engines bench` found it."""

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


class Engine(Cost):
    """One model at one precision in one round; `top1`, 0 to 1, is of so many held-out `images` of `dataset`.

    `max_rate` is the highest, in requests a second, whose p99 stayed below the bound. `problem` says why something is
    missing.
    """

    kind: Literal["engine"] = "engine"
    tag: str
    architecture: str
    family: str
    runtime: str
    precision: str
    round: int
    load: Load
    dataset: str
    images: int | None
    top1: float | None
    benchmark: list[Speed]
    server: dict[str, str]
    client: dict[str, str]
    date: str
    single: Point | None = None
    offline: Point | None = None
    search: list[Point] = []
    max_rate: float | None = None
    at_percent: dict[str, Point] = {}
    problem: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What is measured once."""
        return self.tag, self.precision, self.round


LINE: TypeAdapter[Architecture | Engine] = TypeAdapter(Annotated[Architecture | Engine, Field(discriminator="kind")])


def read(path: Path) -> tuple[list[Architecture], list[Engine]]:
    """Both kinds of lines; ScenarioError if the file is not there, or one is not understood."""
    try:
        lines = [LINE.validate_json(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}; `python -m loadtest sweep` writes it") from error
    except ValidationError as error:
        raise ScenarioError(f"{path} is not what `python -m loadtest sweep` writes: {error}") from error
    architectures = [line for line in lines if isinstance(line, Architecture)]
    return architectures, [line for line in lines if isinstance(line, Engine)]


def write(path: Path, rows: list[Architecture | Engine]) -> None:
    """In place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, (row.model_dump_json() for row in rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(path)


class Measured:
    """The rounds of one engine, and their medians; `name` is short, and no other engine's."""

    def __init__(self, name: str, rounds: list[Engine]) -> None:
        self.name = name
        self.rounds = rounds
        self.engine = rounds[-1]

    def median(self, figure: str) -> float | None:
        """Such as `max_rate`, or `single.p99_ms`, of the rounds that have it; None if none has."""
        values = [value for row in self.rounds if (value := figure_of(row, figure)) is not None]
        return median(values) if values else None


def figure_of(row: Engine, figure: str) -> float | None:
    """`max_rate`, or such as `single.p99_ms` and `at_percent.80.p99_ms`; None where it was not measured."""
    value: object = row
    for name in figure.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value if isinstance(value, int | float) else None


def by_engine(engines: list[Engine]) -> list[Measured]:
    """In the order in which they were first measured."""
    rounds: dict[tuple[str, str], list[Engine]] = {}
    for row in engines:
        rounds.setdefault((row.tag, row.precision), []).append(row)
    tags = {(row.architecture, row.tag) for row in engines}
    weights = Counter(architecture for architecture, _ in tags)
    names = {tag: tag if weights[architecture] > 1 else architecture for architecture, tag in tags}
    return [Measured(f"{names[tag]} {precision}", rows) for (tag, precision), rows in rounds.items()]
