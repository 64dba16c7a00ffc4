"""Comparison of two sweeps: the ratio of each figure, with a confidence interval from the rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from scipy import stats

from loadtest import markdown
from loadtest.rows import EngineRow, Measured, by_engine, figure_of
from loadtest.traffic import ScenarioError

FIGURES = {
    "single.p50_ms": "one connection, p50 ms",
    "single.p99_ms": "one connection, p99 ms",
    "offline.achieved": "offline, images/s",
    "offline.cpu_ms": "offline, CPU ms an image",
    "max_rate": "highest rate, requests/s",
    "at_percent.80.p99_ms": "p99 ms at 80 % of it",
    "offline.memory_mb": "memory of the whole server, MB",
}
CONFIDENCE = 0.95
NUMBERS = ("A", "B", "B over A")
HEADINGS = ("model", "precision", "figure", *NUMBERS, f"{CONFIDENCE:.0%} interval", "changed")


def compare_sweeps(before: Sequence[EngineRow], after: Sequence[EngineRow]) -> str:
    """Return a Markdown table of the figures of every architecture and precision that both sweeps have.

    Raises ScenarioError if the sweeps were measured under different loads.
    """
    if len(loads := {row.load for row in (*before, *after)}) > 1:
        raise ScenarioError(f"measured under different loads: {' and '.join(map(repr, loads))}")
    lines: list[tuple[str, ...]] = []
    for first, second in pairs(before, after):
        model, precision = first.engine.architecture, first.engine.precision
        for figure, name in FIGURES.items():
            values = [
                [value for row in measured.rounds if (value := figure_of(row, figure)) is not None]
                for measured in (first, second)
            ]
            if all(values):
                lines.append((f"`{model}`", precision, name, *cells(*values)))
    return markdown.table(HEADINGS, lines, NUMBERS)


def pairs(before: Sequence[EngineRow], after: Sequence[EngineRow]) -> Iterator[tuple[Measured, Measured]]:
    """Pair the engines of the same architecture, data set and precision; their weights may differ."""
    others = {
        (measured.engine.architecture, measured.engine.dataset, measured.engine.precision): measured
        for measured in by_engine(list(after))
    }
    for measured in by_engine(list(before)):
        engine = measured.engine
        if other := others.get((engine.architecture, engine.dataset, engine.precision)):
            yield measured, other


def cells(before: Sequence[float], after: Sequence[float]) -> list[str]:
    """Return the cells of one figure: geometric means, their ratio, its interval, and `yes` if the interval excludes 1.

    Medians replace the geometric means if a round has the value 0.
    """
    if not all((*before, *after)):
        shown = [f"{median(values):.4g}" for values in (before, after)]
        return [*shown, "", "none: in some rounds it is 0", ""]
    means = [stats.gmean(values) for values in (before, after)]
    shown = [f"{means[0]:.4g}", f"{means[1]:.4g}", f"{means[1] / means[0]:.3f}"]
    interval = ratio_interval(before, after)
    if interval is None:
        return [*shown, "two rounds each are needed", ""]
    low, high = interval
    return [*shown, f"{low:.3f} to {high:.3f}", "" if low <= 1 <= high else "yes"]


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Return the confidence interval of the ratio of geometric means, after over before.

    Welch's t-test over the logarithms of the rounds; None with fewer than two rounds of either.
    """
    if min(len(before), len(after)) < 2:
        return None
    logs = [[math.log(value) for value in values] for values in (after, before)]
    if all(len(set(values)) == 1 for values in logs):  # without spread the interval is the ratio
        ratio = math.exp(logs[0][0] - logs[1][0])
        return ratio, ratio
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(CONFIDENCE)
    return math.exp(interval.low), math.exp(interval.high)
