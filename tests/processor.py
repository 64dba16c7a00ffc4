"""Features of the processor that tests depend on."""

from __future__ import annotations

from pathlib import Path

from engines.runtimes.machine import field

FLAGS = {*(field(Path("/proc/cpuinfo"), "flags") or "").split()}
INT8_OVERFLOWS = not FLAGS & {"avx_vnni", "avx512_vnni"}  # runtimes add products of INT8 in 16 bits without
