"""Prometheus metrics of the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from engines.runtimes.machine import processor
from service.clients import current
from service.loading import Slot

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LIBRARIES = ("bentoml", "openvino")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one process. The label `model` is a full tag, or "" if a request named no known model."""

    def __init__(self, shared: Path | None = None) -> None:
        """Count in this process, or with `shared` in files of that folder, whose sums any process can tell."""
        self._shared = shared
        self._registry = CollectorRegistry()
        images = Counter(
            "convserve_images",
            "Images to classify, by model and outcome; a request that is refused as a whole counts once",
            ["model", "outcome"],
            registry=self._registry,
        )
        stages = Histogram(
            "convserve_stage_duration_seconds",
            "Time by stage",
            ["model", "stage"],
            buckets=SECONDS,
            registry=self._registry,
        )
        batches = Histogram(
            "convserve_batch_size",
            "Size of the batch that a request was part of",
            ["model"],
            buckets=SIZES,
            registry=self._registry,
        )
        ran = Counter(
            "convserve_batches",
            "Batches that ran, the sum of each answered image's share of its batch",
            ["model"],
            registry=self._registry,
        )
        last = Gauge(
            "convserve_last_answer_timestamp_seconds",
            "Time of the last answer, since 1970",
            ["model"],
            registry=self._registry,
            multiprocess_mode="max",
        )
        http = Histogram(
            "convserve_request_duration_seconds",
            "Time of a request, from its headers to the end of the answer",
            ["route", "method", "status"],
            buckets=SECONDS,
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
        clients = Counter(
            "convserve_client_requests", "Requests of named clients", ["client", "status"], registry=self._registry
        )
        device = Counter(
            "convserve_client_device_seconds",
            "Device time of named clients' images, each its share of its batch",
            ["client"],
            registry=self._registry,
        )
        self._shadows = Counter(
            "convserve_shadow_images",
            "Images that a shadow got too: it agrees, differs, was refused or failed",
            ["model", "shadow", "outcome"],
            registry=self._registry,
        )
        self._bucket = Gauge(
            "convserve_bucket_failed",
            "1 if CONVSERVE_MODELS, or a model there, could not be read",
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        # A request looks up up to ten children, each of which would take a lock and make texts of the labels.
        self._images, self._ran, self._last = cache(images.labels), cache(ran.labels), cache(last.labels)
        self._stages, self._batches, self._http = cache(stages.labels), cache(batches.labels), cache(http.labels)
        self._clients, self._client_device = cache(clients.labels), cache(device.labels)

    def failed(self, model: str, code: str) -> None:
        """Count an image, or a request that was refused as a whole, that was answered with the problem `code`."""
        self._images(model, code).inc()

    def answered(self, model: str, batch_size: int, stages_ms: dict[str, float]) -> None:
        """Count an answer and its time by stage."""
        self._images(model, "ok").inc()
        self._batches(model).observe(batch_size)
        self._ran(model).inc(1 / batch_size)
        self._last(model).set(time.time())
        if client := current.get().name:
            self._client_device(client).inc(stages_ms["inference"] / 1000 / batch_size)
        for stage, milliseconds in stages_ms.items():
            self._stages(model, stage).observe(milliseconds / 1000)

    def asked(self, client: str, status: int) -> None:
        """Count a request of a named client."""
        self._clients(client, status).inc()

    def compared(self, model: str, shadow: str, outcome: str) -> None:
        """Count an image of a model that its shadow got too."""
        self._shadows.labels(model, shadow, outcome).inc()

    def looked_into_bucket(self, failed: bool) -> None:
        """Note whether the bucket of models could be read."""
        self._bucket.set(failed)

    def tried(self, model: str, result: str, cpu_s: float) -> None:
        """Count an engine that self-tuning has tried, and the processor seconds of the trial."""
        self._trials.labels(model, result).inc()
        self._tuning.labels(model).inc(cpu_s)

    def served(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request to any route and its duration; `route` is the path template, such as /models/{name}."""
        self._http(route, method, status).observe(seconds)

    def samples(self) -> Iterator[Sample]:
        """Yield the values of all metrics of the server's requests, summed over its processes."""
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._shared))  # type: ignore[no-untyped-call]
        for metric in registry.collect():
            yield from metric.samples

    def text(self, slots: Iterable[tuple[str, Slot]], left: Mapping[str, int]) -> bytes:
        """Return all metrics of the server in Prometheus' text format.

        `slots` are the current slots with their models' tags, `left` the numbers of engines left to try by tag.
        """
        registry = CollectorRegistry()
        registry.register(Current(slots, left))
        if not self._shared:
            ProcessCollector(registry=registry)  # CPU seconds, resident memory
            return generate_latest(registry) + generate_latest(self._registry)
        registry.register(AllProcesses())
        MultiProcessCollector(registry, path=str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Current(Collector):
    """Collector of what is true now: versions, and the state of the engines."""

    def __init__(self, slots: Iterable[tuple[str, Slot]], left: Mapping[str, int]) -> None:
        self._slots, self._left = slots, left

    def collect(self) -> Iterator[Metric]:
        """Yield the versions, queue depths, memory, and engines that are left to try."""
        versions = {"processor": processor(), "python": python_version()} | {name: version(name) for name in LIBRARIES}
        yield InfoMetricFamily("convserve", "Processor, Python and library versions", versions)
        labels = ("model", "precision")
        depth = GaugeMetricFamily("convserve_queue_depth", "Admitted images that have not started to run", None, labels)
        memory = GaugeMetricFamily("convserve_loaded_bytes", "Memory of a loaded engine", None, labels)
        for tag, slot in self._slots:
            if slot.queue:
                precision = slot.queue.engine.precision
                depth.add_metric((tag, precision), slot.queue.depth)
                memory.add_metric((tag, precision), slot.memory_mb * 1e6)
        left = GaugeMetricFamily("convserve_tuning_left", "Engines that self-tuning will still try", None, ("model",))
        for tag, number in self._left.items():
            left.add_metric((tag,), number)
        yield from (depth, memory, left)


class AllProcesses(Collector):
    """Collector of the processor time and memory of all processes of the server."""

    def collect(self) -> Iterator[Metric]:
        """Yield the sums over this process and the others that the same parent has started."""
        cpu_s, resident = 0.0, 0
        for process in psutil.Process(os.getppid()).children():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                resident += process.memory_info().rss
        yield CounterMetricFamily("process_cpu_seconds", "Processor time of all processes", cpu_s)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of all processes", resident)
