"""Facts that a running server reports over HTTP: its models, its machine, and its use of time and memory."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.server import Server
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


def fetch(server: Server, path: str) -> requests.Response:
    """Return the answer of a route. Raises ScenarioError if the server does not answer, or with an error."""
    try:
        answer = requests.get(f"{server}{path}", headers=server.headers, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise ScenarioError(f"{server} does not answer {path}: {error}") from error
    if not answer.ok:
        raise ScenarioError(f"{path}: {server.problem(answer)}")
    return answer


def get(server: Server, path: str) -> Any:
    """Return the JSON of a route. Raises ScenarioError if there is none."""
    try:
        return fetch(server, path).json()
    except ValueError:
        raise ScenarioError(f"{server} is no convserve: its answer to {path} is not JSON") from None


def samples(server: Server) -> list[tuple[str, dict[str, str], float]]:
    """Return the samples of /metrics as (name, labels, value). Raises ScenarioError if there are none."""
    try:
        families = list(text_string_to_metric_families(fetch(server, "/metrics").text))
    except ValueError:
        raise ScenarioError(f"{server} is no convserve: its answer to /metrics is not Prometheus' text") from None
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def usage(server: Server, tag: str) -> Usage:
    """Return the use until now, with the stages of one model. Raises ScenarioError without process metrics."""
    process: dict[str, float] = {}
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for name, labels, value in samples(server):
        if not labels:
            process[name] = value
        elif labels.get("model") == tag and name == "convserve_stage_duration_seconds_sum":
            sums[labels["stage"]] = value
        elif labels.get("model") == tag and name == "convserve_stage_duration_seconds_count":
            counts[labels["stage"]] = value
    stages = {stage: (seconds, counts[stage]) for stage, seconds in sums.items()}
    try:
        return Usage(process["process_cpu_seconds_total"], process["process_resident_memory_bytes"], stages)
    except KeyError as error:
        raise ScenarioError(f"{server}/metrics does not report {error}") from error


def machine(server: Server) -> dict[str, str]:
    """Return the processor and the versions of the server."""
    return next((labels for name, labels, _ in samples(server) if name == "convserve_info"), {})


def client() -> dict[str, str]:
    """Return the versions and the number of cores of the load generator."""
    return {"locust": version("locust"), "python": platform.python_version(), "cores": str(os.cpu_count())}
