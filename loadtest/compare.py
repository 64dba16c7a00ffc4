"""Accuracy against compute: the models one after another under the same load."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import requests
from locust import events
from locust.env import Environment

from loadtest.locustfile import Classifier, ScenarioError, make_scenario

WARM_UP_S = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: top-1 (0 to 1) on all held-out images as published, then what this run saw.

    MACs are at the input that these weights take; p50 and p99 are Locust's, in ms, from the client's side.
    """

    model: str
    precision: str
    top1: float | None
    right: float
    answers: int
    failures: int
    macs: int
    params: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float


def compare(host: str, models: list[str], images: Path, users: int, seconds: float) -> list[Row]:
    """Measure each model alone; ScenarioError if one is not served, or the server goes away."""
    make_scenario(host, models, images)
    return [measure(host, model, images, users, seconds) for model in models]


def measure(host: str, model: str, images: Path, users: int, seconds: float) -> Row:
    """One model for `seconds`, in a closed loop of `users`, after a warm-up."""
    environment = Environment(user_classes=[Classifier], events=events, host=host)
    environment.parsed_options = Namespace(models=model, images=str(images))
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    gevent.sleep(WARM_UP_S)
    runner.stats.clear_all()
    assert Classifier.scenario
    score = Classifier.scenario.scores[model]
    score.right = score.answers = 0
    gevent.sleep(seconds)
    total, right, answers = runner.stats.total, score.right, score.answers
    p50_ms, p99_ms = (float(total.get_response_time_percentile(share)) for share in (0.5, 0.99))
    requests_per_s, failures = total.num_requests / seconds, total.num_failures
    runner.quit()
    if answers == 0:
        raise ScenarioError(f"{model} gave no answer in {seconds:g} s: {', '.join(map(str, runner.stats.errors))}")
    return Row(
        **describe(host, model, images),
        right=right / answers,
        answers=answers,
        failures=failures,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        requests_per_s=requests_per_s,
    )


def describe(host: str, model: str, images: Path) -> dict[str, Any]:
    """What the server says of the model that `model` names."""
    body = next(images.glob("*/*")).read_bytes()
    answer = requests.post(f"{host}/classify", params={"model": model}, data=body, timeout=60).json()
    tag, precision = answer["model"], answer["precision"]
    name = tag.partition(":")[0]
    published = {entry["tag"]: entry for entry in requests.get(f"{host}/models/{name}", timeout=60).json()["models"]}
    costs = requests.get(f"{host}/models/{name}/complexity", timeout=60).json()
    cost = costs["models"].get(tag, costs["paper"])
    accuracy = published[tag]["accuracy"].get(precision)
    return {
        "model": tag,
        "precision": precision,
        "top1": accuracy and accuracy["top1"],
        "macs": cost["macs"],
        "params": cost["params"],
    }


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| model | precision | top-1 | right under load | MACs | parameters | p50 ms | p99 ms | requests/s | failed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        top1 = "" if row.top1 is None else f"{row.top1:.2%}"
        lines.append(
            f"| `{row.model}` | {row.precision} | {top1} | {row.right:.2%} of {row.answers} | {row.macs:,} |"
            f" {row.params:,} | {row.p50_ms:.0f} | {row.p99_ms:.0f} | {row.requests_per_s:.1f} | {row.failures} |"
        )
    return "\n".join(lines)
