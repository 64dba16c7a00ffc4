"""Accuracy against compute: the models in turn under the same load."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import gevent
import requests
from locust.env import Environment

from loadtest.locustfile import Classifier, Run
from loadtest.scenarios import SCENARIOS
from loadtest.traffic import LabelledImage, ScenarioError, Traffic, make_traffic

WARM_UP_S = 2


@dataclass(frozen=True, kw_only=True)
class Load:
    """A closed loop of `users` requests in flight; each model `rounds` times for `seconds`, the models in turn."""

    users: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        """Everything that a reader of the figures must know, but the server's machine."""
        return (
            f"{self.users} requests in flight, medians of {self.rounds} rounds of {self.seconds:g} s after"
            f" {WARM_UP_S} s of warm-up, the models in turn; client: Locust {version('locust')}, Python"
            f" {platform.python_version()}, {os.cpu_count()} cores; {time.strftime('%Y-%m-%d')}"
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the server says of one model: top-1 (0 to 1) on all held-out images, MACs at the input of its weights."""

    name: str
    tag: str
    precision: str
    top1: float | None
    macs: int
    params: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one round saw, from the client's side and of well-formed answers only."""

    right: int
    answers: int
    failures: int
    p50_ms: float
    p99_ms: float
    answers_per_s: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model and its rounds."""

    model: Model
    rounds: tuple[Figures, ...]

    def median(self, figure: str) -> float:
        """Of the rounds."""
        return float(median(getattr(figures, figure) for figures in self.rounds))

    def total(self, figure: str) -> int:
        """Over the rounds."""
        return sum(getattr(figures, figure) for figures in self.rounds)


def compare(host: str, names: list[str], images: Path, load: Load) -> list[Row]:
    """Measure each model alone; ScenarioError if one is not served, or the server goes away."""
    traffic = make_traffic(host, dict.fromkeys(names, 1), images)
    models = [describe(host, name, next(traffic.images[name])) for name in names]
    rounds = [[measure(host, traffic, model.name, load) for model in models] for _ in range(load.rounds)]
    return [Row(model=model, rounds=figures) for model, figures in zip(models, zip(*rounds, strict=True), strict=True)]


def describe(host: str, name: str, image: LabelledImage) -> Model:
    """Ask the server which weights `name` means, and what they cost; ScenarioError if it does not say."""
    try:
        with requests.Session() as session:
            answer = session.post(f"{host}/classify", params={"model": name}, data=image.body, timeout=60).json()
            tag, precision = answer["model"], answer["precision"]
            architecture = tag.partition(":")[0]
            published = session.get(f"{host}/models/{architecture}", timeout=60).json()["models"]
            costs = session.get(f"{host}/models/{architecture}/complexity", timeout=60).json()
    except (requests.RequestException, KeyError) as error:
        raise ScenarioError(f"{host} does not describe {name}: {error!r}") from error
    (entry,) = [entry for entry in published if entry["tag"] == tag]
    cost = costs["models"].get(tag, costs["paper"])
    top1 = entry["accuracy"].get(precision, {}).get("top1")
    return Model(name=name, tag=tag, precision=precision, top1=top1, macs=cost["macs"], params=cost["params"])


def measure(host: str, traffic: Traffic, name: str, load: Load) -> Figures:
    """One round of one model; ScenarioError if it gave fewer than two answers."""
    Classifier.run_ = Run(SCENARIOS["offline"], traffic.only(name))
    runner = Environment(user_classes=[Classifier], host=host).create_local_runner()
    runner.start(load.users, spawn_rate=load.users)
    gevent.sleep(WARM_UP_S)
    Classifier.run_ = run = Run(SCENARIOS["offline"], traffic.only(name))  # what is in flight counts to the warm-up
    gevent.sleep(load.seconds)
    run.end()
    tally = run.tallies[name]
    answers, failures, rate = tally.answers, tally.failures, tally.achieved
    errors = ", ".join(str(error.error) for error in runner.errors.values())
    runner.quit()
    if answers < 2:
        raise ScenarioError(f"{name} gave {answers} answers in {tally.seconds:.0f} s; {failures} failures: {errors}")
    return Figures(
        right=tally.right,
        answers=answers,
        failures=failures,
        p50_ms=tally.latency_ms(50),
        p99_ms=tally.latency_ms(99),
        answers_per_s=rate,
    )


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| model | precision | top-1 | right under load | MACs | parameters | p50 ms | p99 ms | requests/s | failed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        model, answers = row.model, row.total("answers")
        top1 = "" if model.top1 is None else f"{model.top1:.2%}"
        lines.append(
            f"| `{model.tag}` | {model.precision} | {top1} | {row.total('right') / answers:.2%} of {answers} |"
            f" {model.macs:,} | {model.params:,} | {row.median('p50_ms'):.1f} | {row.median('p99_ms'):.1f} |"
            f" {row.median('answers_per_s'):.1f} | {row.total('failures')} |"
        )
    return "\n".join(lines)
