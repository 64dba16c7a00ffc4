"""Energy that this machine has used, by its own counters: RAPL of processors, NVML of NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from engines.runtimes.machine import gpus

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class EnergyCounter:
    """Counter of joules; `wraps` is the number of joules after which the counter starts again at 0."""

    name: str
    read: Callable[[], float]
    wraps: float = 0.0

    def since(self, before: float) -> float:
        """Return the joules since the counter stood at `before`."""
        used = self.read() - before
        return used if used >= 0 else used + self.wraps


def counters() -> list[EnergyCounter]:
    """Return the counters that this process may read: of processor packages and of GPUs; most VMs have none."""
    return [*of_processors(POWERCAP), *of_gpus(gpus())]


def of_processors(powercap: Path) -> Iterator[EnergyCounter]:
    """Yield the RAPL counters of whole processor packages that can be read; most kernels let only root read these."""
    for zone in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") == 1:  # others are parts of a package, which the package counts too
            with suppress(OSError, ValueError):
                read = partial(joules, zone / "energy_uj")
                read()
                yield EnergyCounter(zone.name, read, joules(zone / "max_energy_range_uj"))


def joules(file: Path) -> float:
    """Return the joules in a file of microjoules. Raises OSError if the file cannot be read."""
    return int(file.read_text()) / 1e6


def of_gpus(names: Iterable[str]) -> Iterator[EnergyCounter]:
    """Yield the counters of GPUs, named by number or UUID, that have one; none without nvidia-ml-py."""
    for name in names:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return
        with suppress(nvml.NVMLError):
            nvml.nvmlInit()
            gpu = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
            read = partial(millijoules, nvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
            read()
            yield EnergyCounter(f"GPU {name}", read)


def millijoules(read: Callable[[object], int], gpu: object) -> float:
    """Return the joules of a GPU's counter of millijoules."""
    return read(gpu) / 1e3
