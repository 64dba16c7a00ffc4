"""GPU of the comparison: one card for every server, and how busy the card is, by nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

EVERY_MS = 200
QUERY = "--query-gpu=utilization.gpu,memory.used"


def driver(gpu: str) -> str:
    """Return the version of NVIDIA's driver in words, or an empty text without nvidia-smi."""
    if not (command := shutil.which("nvidia-smi")):
        return ""
    asked = [command, "-i", gpu, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 (of the PATH)
    return f"driver {done.stdout.strip()}" if done.returncode == 0 else ""


@contextmanager
def watched(gpu: str | None) -> Iterator[dict[str, float]]:
    """Watch a GPU while the context is open; afterwards the dictionary has fields of PeerRow, without nvidia-smi none.

    `gpu_use` is the mean share of the time in which a kernel ran, `gpu_bytes` the most memory of all processes.
    """
    found: dict[str, float] = {}
    command = shutil.which("nvidia-smi")
    if not command or gpu is None:
        yield found
        return
    asked = [command, "-i", gpu, QUERY, "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as watcher:  # noqa: S603 (of the PATH)
        try:
            yield found
        finally:
            watcher.terminate()
            output, _ = watcher.communicate()
    found |= use(output)


def use(output: str) -> dict[str, float]:
    """Return the fields of PeerRow for the lines `percent, MiB` of nvidia-smi; lines without numbers are left out."""
    lines = [line.split(",") for line in output.splitlines()]
    rows = [(float(percent), float(mib)) for percent, mib in filter(numeric, lines)]
    if not rows:
        return {}
    return {"gpu_use": fmean(percent for percent, _ in rows) / 100, "gpu_bytes": max(mib for _, mib in rows) * 2**20}


def numeric(cells: list[str]) -> bool:
    """Return True for two numbers; nvidia-smi writes [N/A] for what a card does not know, or half a line at its end."""
    return len(cells) == 2 and all(cell.strip().isdigit() for cell in cells)
