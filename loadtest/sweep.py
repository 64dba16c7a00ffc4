"""Sweep: measure each engine of a server by itself: one connection, offline, and the highest rate within the bound."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import rows, server_info
from loadtest.load_run import LoadRun
from loadtest.measure import measure
from loadtest.rounds import contradictions, due
from loadtest.rows import EngineRow, LoadPoint, ServedArchitecture, SweepLoad
from loadtest.scenarios import SCENARIOS
from loadtest.server import Server
from loadtest.store import write_rows
from loadtest.traffic import LOOKS_S, LabelledImage, ScenarioError, Traffic, path_of, probe, read_images

PUBLISHED = "published"
WARM_UP_S = 2
ENOUGH = 100  # requests: a run of an open loop is extended until it sends so many,
LONGEST = 3  # but at most to so many times the seconds of a run;
LEAST = 10  # requests: a shorter run of an open loop is left out
PERCENT = (10, 50, 80)  # of the highest rate


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Engines to measure at one server, under one load, in so many rounds.

    `models` are names, or PUBLISHED alone for all models. None as a precision is the server's choice.
    """

    server: Server
    models: Sequence[str]
    precisions: Sequence[str | None]
    images: Path
    load: SweepLoad
    rounds: int = 1


@dataclass(frozen=True)
class EngineUnderTest:
    """Engine to measure at one server, with the images to send."""

    server: Server
    row: EngineRow
    images: Sequence[LabelledImage]


@dataclass(frozen=True, kw_only=True)
class RunSetting:
    """Setting of one run. `rate`, in requests per second, belongs to an open loop; `seed` decides its arrivals."""

    scenario: str
    seconds: float
    users: int = 1
    rate: float | None = None
    seed: int = 0


def sweep(plan: SweepPlan, out: Path) -> None:
    """Measure what the file `out` lacks, the engines in turn in each round, and write the file after each engine.

    With two or more rounds, an engine whose rounds contradict each other is measured again.
    Raises ScenarioError before the first measurement if a model, a precision or the images do not exist, or if `out`
    holds results of another load or server; and at the end if an engine could not be measured.
    """
    server, images = plan.server, read_images(plan.images)
    known = rows.read(out)[1] if out.exists() else []
    if other := next((row.load for row in known if row.load != plan.load), None):
        before, now = (
            " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in load) for load in (other, plan.load)
        )
        raise ScenarioError(f"{out} was measured with {before}, not with {now}: choose another --out")
    if list(plan.models) == [PUBLISHED]:
        time.sleep(LOOKS_S)  # so that the server lists what was published a moment ago
    cards = server_info.get(server, "/models")
    architectures = [ServedArchitecture.model_validate(card | {"kind": "architecture"}) for card in cards]
    models = plan.models
    if list(models) == [PUBLISHED]:
        models = [published["tag"] for card in cards for published in card["models"]]
        if not models:
            raise ScenarioError(f"{server} serves no model: publish one, or see its log")
    engines = [
        describe(server, model, precision, images[0], plan.load)
        for model, precision in itertools.product(models, plan.precisions)
    ]
    if any(row.server != engines[0].server for row in known):
        raise ScenarioError(f"{out} was measured on another server, {known[0].server}: choose another --out")
    done = {row.key: row for row in known}
    for row in due(plan.rounds, engines, done):
        done[row.key] = measured = measure_engine(EngineUnderTest(server, row, images))
        write_rows(out, [*architectures, *done.values()])
        print(progress(measured), flush=True)
        if measured.problem:
            server_info.get(server, "/models")  # raises ScenarioError if the server is gone
    for line in contradictions(done.values()):
        print(line)
    if problems := [f"{row.tag} in {row.precision}: {row.problem}" for row in done.values() if row.problem]:
        raise ScenarioError("; ".join(problems))


def describe(server: Server, model: str, precision: str | None, image: LabelledImage, load: SweepLoad) -> EngineRow:
    """Return the row of the engine that answers for a name, with all that the server reports, before measuring."""
    answer = probe(server, path_of(model, precision), image.body)
    architecture = answer["model"].partition(":")[0]
    card = server_info.get(server, f"/models/{architecture}")
    (published,) = [published for published in card["models"] if published["tag"] == answer["model"]]
    costs = server_info.get(server, f"/models/{architecture}/complexity")
    cost = costs["models"].get(answer["model"], costs["paper"])
    accuracy = published["accuracy"].get(answer["precision"]) or {}
    identity = {"runtime": answer["runtime"], "precision": answer["precision"]}
    benchmark: list[Any] = [
        timing
        for engine in published["engines"]
        if identity.items() <= engine.items()
        for timing in engine["benchmark"]
    ]
    return EngineRow.model_validate(
        cost
        | identity
        | {
            "kind": "engine",
            "tag": answer["model"],
            "architecture": architecture,
            "family": card["family"],
            "round": 0,
            "load": load,
            "dataset": published["dataset"],
            "images": accuracy.get("images"),
            "top1": accuracy.get("top1"),
            "benchmark": benchmark,
            "server": server_info.machine(server),
            "client": server_info.client(),
            "date": time.strftime("%Y-%m-%d"),
        }
    )


def measure_engine(engine: EngineUnderTest) -> EngineRow:
    """Return the engine's row with its measurements; if the server stops answering, with those so far and `problem`."""
    load = engine.row.load
    seeds = itertools.count(1000 * engine.row.round)  # other arrivals in each run, the same in each sweep

    def closed(scenario: str, users: int = 1, seconds: float = load.seconds) -> LoadPoint:
        return measure_point(engine, RunSetting(scenario=scenario, users=users, seconds=seconds))

    def opened(rate: float) -> LoadPoint | None:
        seconds = min(max(load.seconds, ENOUGH / rate), LONGEST * load.seconds) if rate else 0
        if rate * seconds < LEAST:
            return None
        return measure_point(engine, RunSetting(scenario="server", seconds=seconds, rate=rate, seed=next(seeds)))

    results: dict[str, Any] = {"search": [], "at_percent": {}}
    try:
        closed("offline", load.in_flight, WARM_UP_S)
        results["single"] = single = closed("single_stream")
        results["offline"] = closed("offline", load.in_flight)
        low, high = 0.0, results["offline"].achieved
        for _ in range(load.steps if single.p50_ms <= load.p99_ms else 0):
            middle = (low + high) / 2
            if (point := opened(middle)) is None:
                break
            results["search"].append(point)
            low, high = (middle, high) if point.p99_ms <= load.p99_ms and not point.failures else (low, middle)
        results["max_rate"] = low
        for percent in PERCENT:
            if point := opened(low * percent / 100):
                results["at_percent"][str(percent)] = point
    except ScenarioError as error:
        results["problem"] = str(error)
    return engine.row.model_copy(update=results)


def measure_point(engine: EngineUnderTest, setting: RunSetting) -> LoadPoint:
    """Measure one run of one scenario. Raises ScenarioError if the server does not answer."""
    server, tag = engine.server, engine.row.tag
    run = LoadRun(
        SCENARIOS[setting.scenario],
        Traffic({tag: 1}, {tag: itertools.cycle(engine.images)}),
        path_of("{model}", engine.row.precision),
        server.headers,
        rate=setting.rate or 0.0,
        seconds=setting.seconds,
        seed=setting.seed,
    )
    before = server_info.usage(server, tag)
    tally = measure(server.url, run, setting.users)
    after = server_info.usage(server, tag)
    return LoadPoint(
        scenario=setting.scenario,
        rate=setting.rate,
        offered=tally.offered,
        achieved=tally.achieved,
        answers=tally.answers,
        right=tally.right,
        failures=tally.failures,
        p50_ms=tally.latency_ms(50),
        p90_ms=tally.latency_ms(90),
        p99_ms=tally.latency_ms(99),
        max_ms=tally.latency_ms(100),
        stages_ms=after.stages_ms(before),
        cpu_ms=(after.cpu_s - before.cpu_s) / tally.answers * 1000,
        memory_mb=after.resident_bytes / 1e6,
        fell_behind=tally.fell_behind,
    )


def progress(row: EngineRow) -> str:
    """Return one line of progress: the engine's main figures, or its problem."""
    name = f"{row.tag} in {row.precision} by {row.runtime}, round {row.round + 1}"
    if row.problem or not (row.single and row.offline):
        return f"{name}: {row.problem}"
    return (
        f"{name}: one connection p50 {row.single.p50_ms:.1f} ms, p99 {row.single.p99_ms:.1f} ms; offline"
        f" {row.offline.achieved:.1f}/s; p99 within {row.load.p99_ms:g} ms up to {row.max_rate:.1f}/s"
    )
