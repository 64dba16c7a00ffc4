"""Prometheus metrics of the GPUs that the server may use, by NVIDIA's management library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from engines.runtimes.machine import gpus


class GpuGauge(NamedTuple):
    """Gauge of each GPU: its name, its description, and how the library reads its value."""

    name: str
    description: str
    value: Callable[[Any, Any], float]  # of the library and a handle


GAUGES = (
    GpuGauge(
        "convserve_gpu_utilization_ratio",
        "Share of the last moments in which the GPU ran anything, 0 to 1",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    GpuGauge(
        "convserve_gpu_memory_used_bytes",
        "Memory of the GPU in use, by all processes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    GpuGauge(
        "convserve_gpu_memory_bytes", "Memory of the GPU", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total
    ),
    GpuGauge(
        "convserve_gpu_power_watts",
        "Power that the GPU draws",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    GpuGauge(
        "convserve_gpu_temperature_celsius",
        "Temperature of the GPU",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
)


@cache
def opened() -> tuple[Any, dict[str, Any]]:
    """Return the library and a handle of each GPU by name; no GPU where there is none or the library cannot be used."""
    if not gpus() or not find_spec("pynvml"):  # BentoML brings the package
        return None, {}
    import pynvml

    handles = {}
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for name in gpus():
            by_index = name.isdecimal()
            handles[name] = (
                pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
            )
    return pynvml, handles


def gpu_metrics() -> Iterator[Metric]:
    """Yield the gauges of all GPUs, by the names that CUDA_VISIBLE_DEVICES has for them; none without a GPU.

    A value that a GPU cannot tell, as parts of one cannot tell their power, is left out.
    """
    nvml, handles = opened()
    for gauge in GAUGES if handles else ():
        family = GaugeMetricFamily(gauge.name, gauge.description, None, ("gpu",))
        for name, handle in handles.items():
            with suppress(nvml.NVMLError):
                family.add_metric((name,), gauge.value(nvml, handle))
        yield family
