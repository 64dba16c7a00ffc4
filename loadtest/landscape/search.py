"""Search for the highest rate within a bound of the p99."""

from __future__ import annotations

from collections.abc import Callable

from loadtest.rows import LoadPoint, SweepLoad


def highest_rate(run: Callable[[float], LoadPoint], high: float, load: SweepLoad) -> float:
    """Return the highest rate up to `high` whose p99 stays within the bound and where nothing fails, by bisection."""
    low = 0.0
    for _ in range(load.steps):
        middle = (low + high) / 2
        point = run(middle)
        low, high = (middle, high) if point.p99_ms <= load.p99_ms and not point.failures else (low, middle)
    return low
