"""Each engine by itself under every load: alone, as fast as it goes, and at the highest rate that it bears."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest import rows, server
from loadtest.load_run import LoadRun
from loadtest.measure import measure
from loadtest.rows import Architecture, Engine, Load, Point
from loadtest.scenarios import SCENARIOS
from loadtest.traffic import LabelledImage, ScenarioError, Traffic, path_of, probe, read_images

PUBLISHED = "published"
WARM_UP_S = 2
ENOUGH, LONGEST, LEAST = 100, 3, 10  # requests that an open loop is drawn out for, at most so many times; or it is none
PERCENT = (10, 50, 80)  # of the highest rate


def sweep(
    host: str, models: Sequence[str], precisions: Sequence[str | None], images: Path, load: Load, rounds: int, out: Path
) -> None:
    """Measure what `out` lacks, and add each engine to it, the engines in turn in each round.

    PUBLISHED alone means all models; None as a precision is the server's choice. ScenarioError before anything is
    measured if a model, precision or image is not there, or `out` is of another load; afterwards if something could
    not be measured.
    """
    pictures = read_images(images)
    known = rows.read(out)[1] if out.exists() else []
    if other := next((row.load for row in known if row.load != load), None):
        raise ScenarioError(f"{out} was measured with {other!r}, not {load!r}: give another --out")
    cards = server.get(host, "/models")
    architectures = [Architecture.model_validate(card | {"kind": "architecture"}) for card in cards]
    if list(models) == [PUBLISHED]:
        models = [entry["tag"] for card in cards for entry in card["models"]]
    engines = [describe(host, *asked, pictures[0], load) for asked in itertools.product(models, precisions)]
    if any(row.server != engines[0].server for row in known):
        raise ScenarioError(f"{out} was measured on another server, {known[0].server}: give another --out")
    done = {row.key: row for row in known}
    for number, engine in itertools.product(range(rounds), engines):
        row = engine.model_copy(update={"round": number})
        if row.key in done and not done[row.key].problem:
            continue
        row = measure_engine(host, row, pictures)
        done[row.key] = row
        rows.write(out, [*architectures, *done.values()])
        print(line_of(row), flush=True)
        if row.problem:
            server.get(host, "/models")  # ScenarioError if it is gone
    if problems := [f"{row.tag} in {row.precision}: {row.problem}" for row in done.values() if row.problem]:
        raise ScenarioError("; ".join(problems))


def describe(host: str, model: str, precision: str | None, image: LabelledImage, load: Load) -> Engine:
    """Which weights and engine a name means, and what the server tells of them; nothing is measured yet."""
    answer = probe(host, path_of(model, precision), image.body)
    architecture = answer["model"].partition(":")[0]
    card = server.get(host, f"/models/{architecture}")
    (entry,) = [entry for entry in card["models"] if entry["tag"] == answer["model"]]
    costs = server.get(host, f"/models/{architecture}/complexity")
    cost = costs["models"].get(answer["model"], costs["paper"])
    accuracy = entry["accuracy"].get(answer["precision"]) or {}
    same = {"runtime": answer["runtime"], "precision": answer["precision"]}
    benchmark: list[Any] = [
        speed for engine in entry["engines"] if same.items() <= engine.items() for speed in engine["benchmark"]
    ]
    return Engine.model_validate(
        cost
        | same
        | {
            "kind": "engine",
            "tag": answer["model"],
            "architecture": architecture,
            "family": card["family"],
            "round": 0,
            "load": load,
            "dataset": entry["dataset"],
            "images": accuracy.get("images"),
            "top1": accuracy.get("top1"),
            "benchmark": benchmark,
            "server": server.machine(host),
            "client": server.client(),
            "date": time.strftime("%Y-%m-%d"),
        }
    )


def measure_engine(host: str, row: Engine, images: list[LabelledImage]) -> Engine:
    """The row with what was measured; with a problem, and what came before it, where the server gave no answers."""
    load = row.load
    seeds = itertools.count(1000 * row.round)  # other arrivals in each run, the same in each sweep

    def closed(scenario: str, users: int = 1, seconds: float = load.seconds) -> Point:
        return measure_point(host, row, images, scenario, None, users, seconds)

    def opened(rate: float) -> Point | None:
        seconds = min(max(load.seconds, ENOUGH / rate), LONGEST * load.seconds) if rate else 0
        if rate * seconds < LEAST:
            return None
        return measure_point(host, row, images, "server", rate, 1, seconds, next(seeds))

    found: dict[str, Any] = {"search": [], "at_percent": {}}
    try:
        closed("offline", load.in_flight, WARM_UP_S)
        found["single"] = single = closed("single_stream")
        found["offline"] = closed("offline", load.in_flight)
        low, high = 0.0, found["offline"].achieved
        for _ in range(load.steps if single.p50_ms <= load.p99_ms else 0):
            middle = (low + high) / 2
            if (point := opened(middle)) is None:
                break
            found["search"].append(point)
            low, high = (middle, high) if point.p99_ms <= load.p99_ms and not point.failures else (low, middle)
        found["max_rate"] = low
        for percent in PERCENT:
            if point := opened(low * percent / 100):
                found["at_percent"][str(percent)] = point
    except ScenarioError as error:
        found["problem"] = str(error)
    return row.model_copy(update=found)


def measure_point(
    host: str,
    row: Engine,
    images: list[LabelledImage],
    scenario: str,
    rate: float | None,
    users: int,
    seconds: float,
    seed: int = 0,
) -> Point:
    """One run; ScenarioError if the server gave no answer."""
    traffic = Traffic({row.tag: 1}, {row.tag: itertools.cycle(images)})
    path = path_of("{model}", row.precision)
    before = server.usage(host, row.tag)
    tally = measure(
        host, LoadRun(SCENARIOS[scenario], traffic, path, rate=rate or 0.0, seconds=seconds, process=seed), users
    )
    after = server.usage(host, row.tag)
    return Point(
        scenario=scenario,
        rate=rate,
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


def line_of(row: Engine) -> str:
    """For people who wait."""
    name = f"{row.tag} in {row.precision} by {row.runtime}, round {row.round + 1}"
    if row.problem or not (row.single and row.offline):
        return f"{name}: {row.problem}"
    return (
        f"{name}: one connection p50 {row.single.p50_ms:.1f} ms, p99 {row.single.p99_ms:.1f} ms; offline"
        f" {row.offline.achieved:.1f}/s; p99 within {row.load.p99_ms:g} ms up to {row.max_rate:.1f}/s"
    )
