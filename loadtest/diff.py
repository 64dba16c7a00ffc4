"""Comparison of two sweeps: the ratio of each figure, with a confidence interval from the rounds, and bounds on it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from scipy import stats

from loadtest import markdown
from loadtest.rows import EngineRow, Measured, by_engine
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
SHORT = dict(zip(("p50", "p99", "images", "cpu", "rate", "p99_at_80", "memory"), FIGURES, strict=True))
RULE = re.compile(rf"\s*({'|'.join(SHORT)})\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")
CONFIDENCE = 0.95
NUMBERS = ("A", "B", "B over A")
HEADINGS = ("model", "precision", "figure", *NUMBERS, f"{CONFIDENCE:.0%} interval", "changed")


@dataclass(frozen=True)
class FailureRule:
    """Largest change of one figure that passes, B over A: `text` as given, such as `p99 > 10 %` or `rate < -5 %`."""

    text: str
    figure: str
    rises: bool
    percent: float

    def broken_by(self, change: float) -> bool:
        """Return True if a change in percent lies beyond the rule's."""
        return change > self.percent if self.rises else change < self.percent


def parse_rule(text: str) -> FailureRule:
    """Return the rule that an expression states. Raises ScenarioError with the remedy if the expression is wrong."""
    if not (match := RULE.fullmatch(text)):
        raise ScenarioError(
            f"--fail-if {text!r}: write FIGURE > N % for a rise or FIGURE < -N % for a fall, with FIGURE one of"
            f" {', '.join(SHORT)}, such as 'p99 > 10 %' or 'rate < -10 %'"
        )
    name, sign, percent = match.groups()
    rises = sign == ">"
    if float(percent) < 0 if rises else float(percent) > 0:
        raise ScenarioError(
            f"--fail-if {text!r}: even an unchanged figure would fail; write FIGURE > N % or FIGURE < -N %"
        )
    return FailureRule(" ".join(text.split()), SHORT[name], rises, float(percent))


def compare_sweeps(before: Sequence[EngineRow], after: Sequence[EngineRow]) -> str:
    """Return a Markdown table of the figures of every architecture and precision that both sweeps have.

    Raises ScenarioError if the sweeps were measured under different loads.
    """
    require_one_load(before, after)
    lines: list[tuple[str, ...]] = []
    for first, second in pairs(before, after):
        model, precision = first.engine.architecture, first.engine.precision
        for figure, name in FIGURES.items():
            values = first.values(figure), second.values(figure)
            if all(values):
                lines.append((f"`{model}`", precision, name, *cells(*values)))
    return markdown.table(HEADINGS, lines, NUMBERS)


def broken_rules(before: Sequence[EngineRow], after: Sequence[EngineRow], rules: Sequence[FailureRule]) -> list[str]:
    """Return a line for each engine of A and rule that B breaks.

    Raises ScenarioError if the loads differ, or if an engine of A, or a figure of a rule, was not measured in both
    sweeps: what was not measured must not pass.
    """
    require_one_load(before, after)
    found = list(pairs(before, after))
    compared = {first.name for first, _ in found}
    if lost := [measured.name for measured in by_engine(list(before)) if measured.name not in compared]:
        raise ScenarioError(f"--fail-if: B lacks {', '.join(lost)}; sweep the models and precisions of A")
    if not found:
        raise ScenarioError("--fail-if: A holds no measured engine")
    lines = []
    for (first, second), rule in itertools.product(found, rules):
        values = first.values(rule.figure), second.values(rule.figure)
        if not all(values):
            raise ScenarioError(
                f"--fail-if {rule.text!r}: {'B' if values[0] else 'A'} lacks this figure of {first.name}"
            )
        if rule.broken_by(change := change_percent(*values)):
            means, interval = map(typical, values), ratio_interval(*values)
            doubt = " (rounds too few or too different to exclude chance)" if not excludes_1(interval) else ""
            shown = " to ".join(f"{mean:.4g}" for mean in means)
            lines.append(f"{first.name}: {FIGURES[rule.figure]} {change:+.1f} %, from {shown}: {rule.text}{doubt}")
    return lines


def require_one_load(*sweeps: Sequence[EngineRow]) -> None:
    """Raise ScenarioError if the rows of the sweeps were measured under different loads."""
    if len(loads := {row.load for sweep in sweeps for row in sweep}) > 1:
        raise ScenarioError(f"measured under different loads: {' and '.join(map(repr, loads))}")


def change_percent(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the change of the typical value in percent; infinite if the value was 0 and is no longer."""
    first, second = typical(before), typical(after)
    if not first:
        return math.inf if second else 0.0
    return (second / first - 1) * 100


def typical(values: Sequence[float]) -> float:
    """Return the geometric mean, or the median if a value is 0."""
    return float(stats.gmean(values) if all(values) else median(values))


def excludes_1(interval: tuple[float, float] | None) -> bool:
    """Return True if there is an interval of a ratio, and 1 lies outside."""
    return interval is not None and not interval[0] <= 1 <= interval[1]


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
    means = [typical(values) for values in (before, after)]
    shown = [f"{mean:.4g}" for mean in means]
    if not all((*before, *after)):
        return [*shown, "", "none: in some rounds it is 0", ""]
    shown.append(f"{means[1] / means[0]:.3f}")
    interval = ratio_interval(before, after)
    if interval is None:
        return [*shown, "two rounds each are needed", ""]
    return [*shown, "{:.3f} to {:.3f}".format(*interval), "yes" if excludes_1(interval) else ""]


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Return the confidence interval of the ratio of geometric means, after over before.

    Welch's t-test over the logarithms of the rounds; None with fewer than two rounds of either, or with a value of 0.
    """
    if min(len(before), len(after)) < 2 or not all((*before, *after)):
        return None
    logs = [[math.log(value) for value in values] for values in (after, before)]
    if all(len(set(values)) == 1 for values in logs):  # without spread the interval is the ratio
        ratio = math.exp(logs[0][0] - logs[1][0])
        return ratio, ratio
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(CONFIDENCE)
    return math.exp(interval.low), math.exp(interval.high)
