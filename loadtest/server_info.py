"""Facts that a running server reports over HTTP: its models, its machine, and its use of time and memory."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.traffic import ScenarioError

TIMEOUT_S = 60


@dataclass(frozen=True)
class Usage:
    """Use since the server started: processor seconds, resident bytes, and for each stage (seconds, count)."""

    cpu_s: float
    resident_bytes: float
    stages: dict[str, tuple[float, float]]

    def stages_ms(self, before: Usage) -> dict[str, float]:
        """Return the mean milliseconds of each stage since `before`."""
        means = {}
        for stage, (seconds, count) in self.stages.items():
            seconds_before, count_before = before.stages.get(stage, (0.0, 0.0))
            if count > count_before:
                means[stage] = (seconds - seconds_before) / (count - count_before) * 1000
        return means


def get(host: str, path: str) -> Any:
    """Return the JSON of a route. Raises ScenarioError if the server does not answer."""
    try:
        answer = requests.get(f"{host}{path}", timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()
    except requests.RequestException as error:
        raise ScenarioError(f"{host} does not answer {path}: {error}") from error


def samples(host: str) -> list[tuple[str, dict[str, str], float]]:
    """Return the samples of /metrics as (name, labels, value)."""
    try:
        text = requests.get(f"{host}/metrics", timeout=TIMEOUT_S).text
    except requests.RequestException as error:
        raise ScenarioError(f"{host} does not answer /metrics: {error}") from error
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def usage(host: str, tag: str) -> Usage:
    """Return the use until now, with the stages of one model. Raises ScenarioError without process metrics."""
    process: dict[str, float] = {}
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for name, labels, value in samples(host):
        if not labels:
            process[name] = value
        elif labels.get("model") == tag and name == "convserve_stage_seconds_sum":
            sums[labels["stage"]] = value
        elif labels.get("model") == tag and name == "convserve_stage_seconds_count":
            counts[labels["stage"]] = value
    stages = {stage: (seconds, counts[stage]) for stage, seconds in sums.items()}
    try:
        return Usage(process["process_cpu_seconds_total"], process["process_resident_memory_bytes"], stages)
    except KeyError as error:
        raise ScenarioError(f"{host}/metrics does not report {error}") from error


def machine(host: str) -> dict[str, str]:
    """Return the processor and the versions of the server."""
    return next((labels for name, labels, _ in samples(host) if name == "convserve_info"), {})


def client() -> dict[str, str]:
    """Return the versions and the number of cores of the load generator."""
    return {"locust": version("locust"), "python": platform.python_version(), "cores": str(os.cpu_count())}
