"""Two sweeps side by side: what changed, and whether more than between rounds of the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from scipy import stats

from loadtest.rows import Engine, Measured, by_engine, figure_of
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


def table(before: Sequence[Engine], after: Sequence[Engine]) -> str:
    """As Markdown: each figure of each architecture and precision that both have.

    ScenarioError if they were not measured alike.
    """
    if len(loads := {row.load for row in (*before, *after)}) > 1:
        raise ScenarioError(f"not measured alike: {' and '.join(map(repr, loads))}")
    lines = [
        f"| model | precision | figure | A | B | B over A | {CONFIDENCE:.0%} interval | changed |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for first, second in pairs(before, after):
        model, precision = first.engine.architecture, first.engine.precision
        for figure, name in FIGURES.items():
            values = [
                [value for row in measured.rounds if (value := figure_of(row, figure)) is not None]
                for measured in (first, second)
            ]
            if all(values):
                lines.append(f"| `{model}` | {precision} | {name} | {' | '.join(cells(*values))} |")
    return "\n".join(lines)


def pairs(before: Sequence[Engine], after: Sequence[Engine]) -> Iterator[tuple[Measured, Measured]]:
    """The same architecture, data set and precision in both, whatever its weights."""
    found = {
        (measured.engine.architecture, measured.engine.dataset, measured.engine.precision): measured
        for measured in by_engine(list(after))
    }
    for measured in by_engine(list(before)):
        engine = measured.engine
        if other := found.get((engine.architecture, engine.dataset, engine.precision)):
            yield measured, other


def cells(before: Sequence[float], after: Sequence[float]) -> list[str]:
    """Geometric means, their ratio, its interval, and whether that leaves out 1; where some are 0, medians."""
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
    """Of the ratio of geometric means, by Welch's t on logarithms of the rounds; None of fewer than two rounds."""
    if min(len(before), len(after)) < 2:
        return None
    logs = [[math.log(value) for value in values] for values in (after, before)]
    if all(len(set(values)) == 1 for values in logs):  # no spread, and so no doubt
        ratio = math.exp(logs[0][0] - logs[1][0])
        return ratio, ratio
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(CONFIDENCE)
    return math.exp(interval.low), math.exp(interval.high)
