"""Rows of the landscape: one for each network and precision, with its rounds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import TypeAdapter

from loadtest.store import Row, read_rows
from loadtest.traffic import ScenarioError

Key = tuple[str, str]
BUSY = 0.1  # cores of other processes, from which on a line says so


class OtherMachineError(ScenarioError):
    """Raised when a file was measured on another machine, with other versions, or by another runtime."""


class LandscapeRound(Row):
    """Figures of one round.

    Through the server: `p50_ms` and `p99_ms` of one connection, `offline` images per second with many requests in
    flight, `joules` for each of these images or None, and `rate`, the highest requests per second whose p99 stays
    within the bound (0 if a single request takes longer). Of the engine alone: the median time of a batch of 1 and
    of 8 images, and the memory that the engine adds to a process. `others` is the mean number of cores that other
    processes kept busy meanwhile; `at` is the time in ISO 8601.
    """

    p50_ms: float
    p99_ms: float
    offline: float
    rate: float
    joules: float | None
    batch1_ms: float
    batch8_ms: float
    memory_mb: float | None
    others: float
    at: str


class LandscapeRow(Row):
    """Network at one precision: costs, published accuracy, rounds, and medians over the rounds.

    `published_top1` is a fraction, or None if nobody published one for ImageNet. `images_s` is the throughput of the
    engine alone, at the better of the two batch sizes.
    """

    name: str
    family: str
    year: int
    runtime: str
    precision: str
    weights: Literal["random", "imported"]
    dataset: str
    input: int
    macs: int
    params: int
    activations: int
    published_top1: float | None
    published_source: str | None
    rounds: tuple[LandscapeRound, ...] = ()
    batch1_ms: float | None = None
    batch8_ms: float | None = None
    images_s: float | None = None
    memory_mb: float | None = None
    machine: dict[str, str]
    settings: dict[str, float]

    @property
    def key(self) -> Key:
        """Identity of the row: a file has each network and precision once."""
        return self.name, self.precision

    def with_round(self, measured: LandscapeRound) -> LandscapeRow:
        """Return the row with one round more, and the medians over all rounds."""
        rounds = (*self.rounds, measured)
        batch1_ms, batch8_ms = (median(getattr(each, name) for each in rounds) for name in ("batch1_ms", "batch8_ms"))
        memory = [each.memory_mb for each in rounds if each.memory_mb is not None]
        return self.model_copy(
            update={
                "rounds": rounds,
                "batch1_ms": batch1_ms,
                "batch8_ms": batch8_ms,
                "images_s": max(1000 / batch1_ms, 8000 / batch8_ms),
                "memory_mb": median(memory) if memory else None,
            }
        )


ROW = TypeAdapter(LandscapeRow)


def read_landscape(path: Path) -> list[LandscapeRow]:
    """Return the rows of a file. Raises ScenarioError if the file does not exist or is not a landscape."""
    return read_rows(path, ROW, "landscape")


def check_settings(path: Path, rows: Iterable[LandscapeRow], settings: dict[str, float]) -> None:
    """Raise ScenarioError if a row of the file was measured with other settings."""
    for row in rows:
        if row.settings != settings:
            before, now = (
                " ".join(f"{name} {value:g}" for name, value in each.items()) for each in (row.settings, settings)
            )
            raise ScenarioError(f"{path} was measured with {before}, not with {now}: choose another --out")


def check_machine(path: Path, row: LandscapeRow, runtime: str, machine: dict[str, str]) -> None:
    """Raise OtherMachineError, which names a difference, if a row was measured by another runtime or machine."""
    before, now = {"runtime": row.runtime} | row.machine, {"runtime": runtime} | machine
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            difference = f"{name} {before.get(name)}, not {now.get(name)}"
            raise OtherMachineError(f"{path} was measured with {difference}: choose another --out")


def progress(row: LandscapeRow) -> str:
    """Return a line on the last round of a row."""
    last = row.rounds[-1]
    busy = f"; other processes kept {last.others:.1f} cores busy" if last.others > BUSY else ""
    joules = "" if last.joules is None else f", {last.joules:.2f} J an image"
    return (
        f"{row.name} in {row.precision} by {row.runtime}, {row.weights} weights, round {len(row.rounds)}: engine alone"
        f" {last.batch1_ms:.1f} ms, {last.batch8_ms:.1f} ms for 8; one connection p50 {last.p50_ms:.1f} ms,"
        f" p99 {last.p99_ms:.1f} ms; offline {last.offline:.1f}/s{joules}; p99 within {row.settings['p99_ms']:g} ms"
        f" up to {last.rate:.1f}/s{busy}"
    )
