"""Prometheus metrics of the server's state, by which an operator is warned: readiness, failed loads, memory, GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from engines.published.maps import MAPS
from service.context import ServerContext
from service.gpu_metrics import gpu_metrics


class ServerState(Collector):
    """Collector of a server's state."""

    def __init__(self, server: ServerContext) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Yield readiness, models that cannot be loaded or served, the memory budget, and the state of the GPUs."""
        server = self._server
        ready = int(server.not_ready is None)
        yield GaugeMetricFamily("convserve_ready", "1 if requests may be sent here, as /readyz says", ready)
        failed = GaugeMetricFamily(
            "convserve_model_failed", "1 if an engine of the model could not be loaded", None, ("model",)
        )
        for tag, model in server.catalog.models.items():
            # Without an engine of maps the model answers all the same.
            slots = (slot for precision, slot in model.slots.items() if precision != MAPS)
            failed.add_metric((tag,), int(any(slot.status == "failed" for slot in slots)))
        yield failed
        unserved = len(server.catalog.unserved())
        yield GaugeMetricFamily("convserve_unserved_models", "Models in the store that cannot be served", unserved)
        if budget_mb := server.settings.memory_mb:
            yield GaugeMetricFamily("convserve_memory_budget_bytes", "CONVSERVE_MEMORY_MB", budget_mb * 1e6)
        yield from gpu_metrics()


def state_text(server: ServerContext) -> bytes:
    """Return the metrics of a server's state in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(ServerState(server))
    return generate_latest(registry)
