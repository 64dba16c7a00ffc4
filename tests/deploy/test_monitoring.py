"""Tests of the dashboard and the alerts: every metric in them exists, and Prometheus' own tests of the rules pass."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from engines.published.store import PublishedModel
from service import gpu_metrics
from service.context import ServerContext, make_context
from service.settings import Settings
from service.state_metrics import state_text
from tests.deploy.proxies import listens, program
from tests.serving import ROOT, free_port

MONITORING = ROOT / "deploy" / "monitoring"
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())
DASHBOARD = json.loads((MONITORING / "grafana_dashboard.json").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
METRIC = re.compile(r"\b(?:convserve|process)_[a-z0-9_]+")


def expressions() -> Iterator[str]:
    """Yield every expression of the rules and the dashboard."""
    yield from (rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))
    yield from (variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable)


def names_in(text: str) -> set[str]:
    """Return the names of the samples in Prometheus' text format, also of metrics that have no sample yet."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    families = text_string_to_metric_families(text)
    return {family.name + ending for family in families for ending in endings.get(family.type, ("",))}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Let the management library report one GPU, whose power it cannot tell."""
    nvml = ModuleType("pynvml")
    attributes: dict[str, Any] = {
        "NVMLError": type("NVMLError", (Exception,), {}),
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda name: name,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": lambda _: type("Rates", (), {"gpu": 50}),
        "nvmlDeviceGetMemoryInfo": lambda _: type("Memory", (), {"used": 1, "total": 2}),
        "nvmlDeviceGetTemperature": lambda _, __: 40,
    }

    def power(_: object) -> int:
        raise attributes["NVMLError"]

    for name, value in (attributes | {"nvmlDeviceGetPowerUsage": power}).items():
        setattr(nvml, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu_metrics, "find_spec", lambda _: True)
    monkeypatch.setattr(gpu_metrics, "gpus", lambda: ["GPU-1"])
    gpu_metrics.opened.cache_clear()
    yield nvml
    gpu_metrics.opened.cache_clear()


@pytest.fixture
def context(lenet5: PublishedModel) -> ServerContext:
    """Return the state of a server in this process with a memory budget, which has loaded nothing yet."""
    return make_context(Settings(memory_mb=100))


def test_the_state_of_a_server_is_told(context: ServerContext, gpu: ModuleType, lenet5: PublishedModel) -> None:
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(state_text(context).decode())
        for sample in family.samples
    }
    tag = lenet5.manifest.tag
    assert samples["convserve_ready", ()] == 0  # it loads models
    assert samples["convserve_model_failed", (tag,)] == 0
    assert samples["convserve_unserved_models", ()] == 0
    assert samples["convserve_memory_budget_bytes", ()] == 100e6
    assert samples["convserve_gpu_utilization_ratio", ("GPU-1",)] == 0.5
    assert samples["convserve_gpu_memory_bytes", ("GPU-1",)] == 2
    assert ("convserve_gpu_power_watts", ("GPU-1",)) not in samples
    context.catalog.models[tag].chosen.failed(RuntimeError("no memory"))
    assert f'convserve_model_failed{{model="{tag}"}} 1.0' in state_text(context).decode()


def test_without_a_gpu_there_are_no_gauges_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_metrics, "gpus", list)
    gpu_metrics.opened.cache_clear()
    assert list(gpu_metrics.gpu_metrics()) == []
    gpu_metrics.opened.cache_clear()


def test_every_metric_of_the_dashboard_and_the_alerts_exists(
    server: httpx.Client, context: ServerContext, gpu: ModuleType
) -> None:
    server.post("/classify", params={"model": "lenet5"}, content=DIGIT)
    there = names_in(server.get("/metrics").text) | names_in(state_text(context).decode())
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    recorded = {rule["record"].split(":")[1] for rule in rules if "record" in rule}
    used = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert len(used) > 15
    assert used - recorded <= there


def test_every_alert_has_a_section_in_the_runbook() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    for alert in ALERTS:
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (page, anchor in anchors) == ("docs/runbook.md", True), alert["alert"]
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["alert"] in text


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(product(columns, rows))
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("arguments", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_prometheus_accepts_the_rules_and_their_tests_pass(arguments: tuple[str, ...]) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed: apt install prometheus")
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    fired = {test["alertname"] for group in tests for test in group["alert_rule_test"] if test["exp_alerts"]}
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.slow
def test_prometheus_scrapes_a_server_and_evaluates_the_rules(server: httpx.Client, tmp_path: Path) -> None:
    executable, port = program("prometheus"), free_port()
    server.post("/classify", params={"model": "lenet5"}, content=DIGIT)
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(MONITORING / "rules.yml")]
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.base_url.port}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [executable, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(command, env=os.environ) as process:
        try:
            deadline = time.monotonic() + 30
            while not listens(port):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                found: list[Any] = []
                while not found:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
                    answer = client.get("/api/v1/query", params={"query": "convserve_ready"})
                    found = answer.json()["data"]["result"]
                assert found[0]["value"][1] == "1"
                groups = client.get("/api/v1/rules").json()["data"]["groups"]
                health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
                assert set(health.values()) <= {"ok", "unknown"}, health
        finally:
            process.terminate()
