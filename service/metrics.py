"""Metrics of the serving process: Prometheus metrics, and recent latencies by stage."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from platform import python_version

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from engines.runtimes.machine import processor
from service.framework_patches import keep_metrics_in_memory
from service.loading import Slot

WINDOW = 1000  # recent requests kept per model
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LIBRARIES = ("bentoml", "openvino")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

keep_metrics_in_memory()


class Metrics:
    """Metrics of one process. The label `model` is a full tag, or "" if a request named no known model."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # CPU seconds, resident memory
        Info("convserve", "Processor, Python and library versions", registry=self._registry).info(
            {"processor": processor(), "python": python_version()} | {name: version(name) for name in LIBRARIES}
        )
        self._requests = Counter(
            "convserve_requests",
            "Images to classify, by model and outcome",
            ["model", "outcome"],
            registry=self._registry,
        )
        self._stages = Histogram(
            "convserve_stage_seconds", "Time by stage", ["model", "stage"], buckets=SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            "convserve_batch_size",
            "Size of the batch that a request was part of",
            ["model"],
            buckets=SIZES,
            registry=self._registry,
        )
        self._http = Histogram(
            "convserve_http_request_seconds",
            "Time of a request, from its headers to the end of the answer",
            ["route", "method", "status"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._depth = Gauge(
            "convserve_queue_depth",
            "Admitted images that have not started to run",
            ["model", "precision"],
            registry=self._registry,
        )
        self._memory = Gauge(
            "convserve_loaded_bytes",
            "Memory of a loaded engine",
            ["model", "precision"],
            registry=self._registry,
        )
        self._trials = Counter(
            "convserve_tuning_trials",
            "Engines that self-tuning has tried: faithful, unfaithful or failed",
            ["model", "result"],
            registry=self._registry,
        )
        self._tuning = Counter(
            "convserve_tuning_cpu_seconds", "Processor time of self-tuning", ["model"], registry=self._registry
        )
        self._left = Gauge(
            "convserve_tuning_left", "Engines that self-tuning will still try", ["model"], registry=self._registry
        )
        self._recent: dict[str, deque[dict[str, float]]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def failed(self, model: str, code: str) -> None:
        """Count a request that was answered with the problem `code`."""
        self._requests.labels(model, code).inc()

    def answered(self, model: str, batch_size: int, stages_ms: dict[str, float]) -> None:
        """Count an answer and its time by stage."""
        self._requests.labels(model, "ok").inc()
        self._batches.labels(model).observe(batch_size)
        for stage, milliseconds in stages_ms.items():
            self._stages.labels(model, stage).observe(milliseconds / 1000)
        self._recent[model].append(stages_ms)

    def tried(self, model: str, result: str, cpu_s: float) -> None:
        """Count an engine that self-tuning has tried, and the processor seconds of the trial."""
        self._trials.labels(model, result).inc()
        self._tuning.labels(model).inc(cpu_s)

    def served(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request to any route and its duration; `route` is the path template, such as /models/{name}."""
        self._http.labels(route, method, status).observe(seconds)

    def percentiles(self, model: str) -> tuple[int, dict[str, dict[str, float]]]:
        """Return the number of recent requests (at most 1,000), and p50, p90 and p99 in ms by stage."""
        recent = self._recent.get(model)
        if not recent:
            return 0, {}
        result = {}
        for stage in recent[0]:
            p50, p90, p99 = np.percentile([stages[stage] for stages in recent], (50, 90, 99))
            result[stage] = {"p50": float(p50), "p90": float(p90), "p99": float(p99)}
        return len(recent), result

    def text(self, slots: Iterable[tuple[str, Slot]], left: Mapping[str, int]) -> bytes:
        """Return all metrics in Prometheus' text format.

        `slots` are the current slots with their models' tags, `left` the numbers of engines left to try by tag.
        """
        for gauge in (self._depth, self._memory, self._left):
            gauge.clear()
        for tag, number in left.items():
            self._left.labels(tag).set(number)
        for tag, slot in slots:
            if slot.queue:
                labels = (tag, slot.queue.engine.precision)
                self._depth.labels(*labels).set(slot.queue.depth)
                self._memory.labels(*labels).set(slot.memory_mb * 1e6)
        return generate_latest(self._registry)
