"""Replicas for a rate of photos, reckoned from what was measured: decoding and HTTP by core, engines by machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from loadtest.landscape.rows import LandscapeRow
from loadtest.scale.arrivals import Model

PRECISION = "bf16"
BUSY = 0.7  # of a replica, so that photos wait for little and one replica of four may be lost
REQUEST_MS = 2.49  # of a core, a photo of 427x640: HTTP, decoding, resizing (docs/benchmarks.md, Decoding)
GPU_MACS_S = 22e12  # of an H200: densenet121 in fp16 at batch 128, the least of three networks (docs/gpu.md)
GPU_JPEGS_S = 5500  # photos that a device process decoded and computed on an H200 (docs/gpu.md, a prototype)
RATES = {"a million an hour": 1e6 / 3600, "1,000 a second": 1000.0}
MACHINES = 16, 64  # cores


@dataclass(frozen=True)
class Need:
    """Milliseconds of a core that a photo takes, and photos a second of the machine measured, reckoned and measured.

    The measured rate is that through the whole server, whose client ran on the same cores.
    """

    network: str
    core_ms: float
    reckoned: float
    measured: float
    gpu_photos_s: float

    def cores(self, rate: float) -> int:
        """Return the cores for photos a second."""
        return ceil(rate * self.core_ms / 1000 / BUSY)

    def gpus(self, rate: float) -> int:
        """Return the H200s for photos a second."""
        return ceil(rate / self.gpu_photos_s / BUSY)


def cores_of(row: LandscapeRow) -> int:
    """Return the cores of the machine that a row was measured on."""
    found = re.search(r"(\d+) cores", row.machine["processor"])
    assert found
    return int(found[1])


def need(row: LandscapeRow) -> Need:
    """Return what a photo takes of a network."""
    assert row.images_s
    cores = cores_of(row)
    core_ms = REQUEST_MS + 1000 * cores / row.images_s
    measured = median(each.offline for each in row.rounds)
    return Need(row.name, core_ms, 1000 * cores / core_ms, measured, min(GPU_JPEGS_S, GPU_MACS_S / row.macs))


def needs(rows: Iterable[LandscapeRow]) -> list[Need]:
    """Return what a photo takes of each network, the least first."""
    return sorted((need(row) for row in rows if row.precision == PRECISION and row.images_s), key=lambda n: n.core_ms)


def headings() -> list[str]:
    """Return the headings of the table."""
    of_rates = [
        f"{rate}: {column}" if column == "cores" else column
        for rate in RATES
        for column in ("cores", *(f"of {cores}" for cores in MACHINES), "H200s")
    ]
    return ["network", "core ms", "photos/s of a core", "measured / reckoned", *of_rates]


def cells(each: Need) -> list[str]:
    """Return the cells of a network's line."""
    counts = []
    for rate in RATES.values():
        cores = each.cores(rate)
        counts += [cores, *(ceil(cores / of) for of in MACHINES), each.gpus(rate)]
    shown = (f"{each.core_ms:.1f}", f"{1000 / each.core_ms:.0f}", f"{each.measured / each.reckoned:.2f}")
    return [f"`{each.network}`", *shown, *(f"{count:,}" for count in counts)]


def models(rows: Iterable[LandscapeRow], times: float) -> Sequence[Model]:
    """Return the networks with their batches' seconds on a device that is `times` as fast as the machine measured."""
    return [
        Model(row.name, {1: row.batch1_ms / 1000 / times, 8: row.batch8_ms / 1000 / times})
        for row in rows
        if row.precision == PRECISION and row.batch1_ms and row.batch8_ms
    ]
