"""Measurement of the landscape: rounds over all networks, each by its engine alone and through a server of its own."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.landscape.energy import EnergyCounter, counters
from loadtest.landscape.networks import Network, command, environment, networks, stored
from loadtest.landscape.others import OtherWork
from loadtest.landscape.rows import (
    LandscapeRound,
    LandscapeRow,
    OtherMachineError,
    check_machine,
    check_settings,
    progress,
    read_landscape,
)
from loadtest.landscape.search import highest_rate
from loadtest.peers.launch import CONVSERVE, PeerServer, running
from loadtest.peers.photos import FOLDER, find_photos, form, tensor
from loadtest.rows import EngineRow, LoadPoint, SweepLoad
from loadtest.server import Server
from loadtest.store import write_rows
from loadtest.sweep import EngineUnderTest, RunSetting, describe, measure_point
from loadtest.traffic import ScenarioError

WARM_UP_S = 2
ENOUGH = 100  # requests: a run is extended until it has so many,
LONGEST = 3  # but at most to so many times the seconds of a run
BATCHES = 1, 8  # images, of the engine alone


@dataclass(frozen=True, kw_only=True)
class LandscapePlan:
    """Networks to time (none named: all of ImageNet's), at which precisions, under one load, in so many rounds.

    Model stores are made in `folder`, and kept there if `keep`.
    """

    models: Sequence[str]
    precisions: Sequence[str]
    load: SweepLoad
    rounds: int
    folder: Path
    keep: bool = False


def landscape(plan: LandscapePlan, out: Path) -> None:
    """Measure what the file `out` lacks, the networks in turn in each round, and write the file after each engine.

    Raises ScenarioError before the first measurement if a network is unknown, `out` was measured with other settings
    or by another runtime than CONVSERVE_RUNTIME, or another landscape is being measured here; at the first network if
    `out` was measured on another machine; and at the end for what could not be measured.
    """
    chosen, photos = networks(plan.models), find_photos(FOLDER)
    for network, precision in itertools.product(chosen, plan.precisions):
        if why := network.why_not(precision):
            print(f"{network.name} in {precision} is left out: {why}", flush=True)
    with alone_in(plan.folder):
        survey = LandscapeSurvey(plan, photos, out, known_rows(out, plan))
        for number, network in itertools.product(range(plan.rounds), chosen):
            survey.turn(network, number)
    if survey.problems:
        raise ScenarioError(f"not measured, for the reasons above: {', '.join(survey.problems)}")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other landscapes out of a folder. Raises ScenarioError if there is one: both would be slowed down."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScenarioError(f"{folder} is in use: another landscape is being measured") from None
        yield


def known_rows(out: Path, plan: LandscapePlan) -> list[LandscapeRow]:
    """Return the rows of `out`, to which rounds of the plan may be added. Raises ScenarioError if they may not."""
    known = read_landscape(out) if out.exists() else []
    check_settings(out, known, plan.load.model_dump())
    runtime = os.environ.get("CONVSERVE_RUNTIME", "auto")
    for row in known:
        check_machine(out, row, row.runtime if runtime == "auto" else runtime, row.machine)
    write_rows(out, known)  # a file that cannot be written ends the run now, and not after the first network
    return known


class LandscapeSurvey:
    """Survey in progress: the rows so far, and `problems`, the engines that could not be measured."""

    def __init__(self, plan: LandscapePlan, photos: Sequence[Path], out: Path, known: Sequence[LandscapeRow]) -> None:
        self.plan, self.out = plan, out
        self.rows = {row.key: row for row in known}
        self.problems: dict[str, None] = {}
        self._energy = counters()
        self._first = form(photos[0], "")
        self._images = [tensor(photo, "") for photo in photos]

    def turn(self, network: Network, number: int) -> None:
        """Measure one round of a network at each precision whose row has not got `number` + 1 rounds."""
        missing = [
            precision
            for precision in self.plan.precisions
            if not network.why_not(precision)
            and f"{network.name} in {precision}" not in self.problems
            and ((row := self.rows.get((network.name, precision))) is None or len(row.rounds) <= number)
        ]
        if not missing:
            return
        home = self.plan.folder / network.name
        try:
            with (
                stored(network, missing, home, self.plan.keep) as tag,
                running("convserve", CONVSERVE["convserve"], tag, self._first, environment(home)) as process,
            ):
                self.measure(network, process, tag, missing)
        except OtherMachineError:
            raise
        except ScenarioError as error:
            for precision in missing:
                self.report(network, precision, error)

    def measure(self, network: Network, process: PeerServer, tag: str, precisions: Sequence[str]) -> None:
        """Measure one round of a model at each precision, by a server that has no other model, and write the rows."""
        server = Server(process.host)
        engines: list[EngineRow] = []
        for precision in precisions:
            try:
                engines.append(describe(server, tag, precision, self._images[0], self.plan.load))
            except ScenarioError as error:
                self.report(network, precision, error)
        others = OtherWork(process)
        alone = bench(self.plan, network, engines) if engines else {}
        for engine in engines:
            row = row_of(network, engine, self._energy)
            if known := self.rows.get(row.key):
                check_machine(self.out, known, row.runtime, row.machine)
                row = known
            numbered = engine.model_copy(update={"round": len(row.rounds)})
            try:
                if engine.precision not in alone:
                    raise ScenarioError(f"`engines bench` cannot open {tag}")
                under_test = EngineUnderTest(server, numbered, self._images)
                measured = measure_round(under_test, alone[engine.precision], self._energy, others)
            except ScenarioError as error:
                self.report(network, engine.precision, error)
                continue
            self.rows[row.key] = row = row.with_round(measured)
            write_rows(self.out, self.rows.values())
            print(progress(row), flush=True)

    def report(self, network: Network, precision: str, error: ScenarioError) -> None:
        """Print what prevented a measurement, and keep the engine's name; pass over the engine's further problems."""
        name = f"{network.name} in {precision}"
        if name not in self.problems:
            self.problems[name] = None
            print(f"{name}: {error}", flush=True)


def row_of(network: Network, engine: EngineRow, energy: Sequence[EnergyCounter]) -> LandscapeRow:
    """Return the row of an engine, without a round yet."""
    top1, source = network.published_top1 or (None, None)
    return LandscapeRow(
        **{name: getattr(engine, name) for name in ("family", "runtime", "precision", "dataset")},
        **{name: getattr(engine, name) for name in ("macs", "params", "activations")},
        name=network.name,
        year=network.card["year"],
        weights=network.weights,
        input=engine.input_shape[1],
        published_top1=top1,
        published_source=source,
        machine=engine.server | {"energy": ", ".join(counter.name for counter in energy) or "no counter"},
        settings=engine.load.model_dump(),
    )


def bench(plan: LandscapePlan, network: Network, engines: Sequence[EngineRow]) -> dict[str, dict[str, Any]]:
    """Time engines alone by `python -m engines bench`; return batch1_ms, batch8_ms and memory_mb by precision."""
    output = command(
        *(plan.folder / network.name, "engines", "bench", engines[0].tag, "--json"),
        *("--runtimes", ",".join(dict.fromkeys(engine.runtime for engine in engines))),
        *("--precisions", ",".join(engine.precision for engine in engines)),
        *("--batches", ",".join(map(str, BATCHES)), "--seconds", str(plan.load.seconds)),
    )
    alone: dict[str, dict[str, Any]] = {}
    for speed in json.loads(output):
        figures = {f"batch{speed['batch']}_ms": speed["p50_ms"], "memory_mb": speed["memory_mb"]}
        alone.setdefault(speed["precision"], {}).update(figures)
    return alone


def measure_round(
    engine: EngineUnderTest, alone: dict[str, Any], energy: Sequence[EnergyCounter], others: OtherWork
) -> LandscapeRound:
    """Return a round of an engine whose figures without the server are `alone`."""
    load = engine.row.load
    seeds = itertools.count(1000 * engine.row.round)  # other arrivals in each run

    def run(scenario: str, expected: float, users: int = 1, rate: float | None = None) -> LoadPoint:
        seconds = min(max(load.seconds, ENOUGH / expected), LONGEST * load.seconds)
        return measure_point(
            engine, RunSetting(scenario=scenario, seconds=seconds, users=users, rate=rate, seed=next(seeds))
        )

    measure_point(engine, RunSetting(scenario="offline", seconds=WARM_UP_S, users=load.in_flight))
    single = run("single_stream", 1000 / alone["batch1_ms"])
    before = [counter.read() for counter in energy]
    offline = run("offline", 8000 / alone["batch8_ms"], users=load.in_flight)
    joules = sum(counter.since(start) for counter, start in zip(energy, before, strict=True))
    fits = single.p50_ms <= load.p99_ms
    return LandscapeRound(
        p50_ms=single.p50_ms,
        p99_ms=single.p99_ms,
        offline=offline.achieved,
        rate=highest_rate(lambda rate: run("server", rate, rate=rate), offline.achieved, load) if fits else 0.0,
        joules=joules / offline.answers if energy else None,
        **alone,
        others=others.cores(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
