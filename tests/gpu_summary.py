"""Summary of `pytest -m gpu`: what ran on this machine's GPU, what could not, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import pytest

from engines.runtimes.machine import accelerator

Report = pytest.TestReport | pytest.CollectReport


def lines(stats: Mapping[str, Sequence[Report]]) -> list[str]:
    """Return lines about the reports of a run by outcome: tests that ran by file, figures, skipped ones by reason."""
    ran = [report for outcome in ("passed", "failed", "error") for report in stats.get(outcome, ())]
    failed = [report for report in ran if report.failed]
    reasons: dict[str, list[Report]] = defaultdict(list)
    for report in stats.get("skipped", ()):
        if isinstance(report.longrepr, tuple):  # path, line, reason
            reasons[report.longrepr[2].removeprefix("Skipped: ")].append(report)
    skipped = sum(map(len, reasons.values()))
    if not ran and not accelerator():
        return [f"No test ran, and {skipped} could not: there is no NVIDIA GPU."]
    found = [f"{len(ran)} tests ran on {accelerator() or 'a GPU'}, {len(failed)} failed, {skipped} could not run."]
    found += [f"  ran: {by_file(ran)}"] if ran else []
    found += [f"  failed: {by_file(failed)}"] if failed else []
    for report in ran:
        properties = report.user_properties if isinstance(report, pytest.TestReport) else []
        found += [f"  measured: {value}" for name, value in properties if name == "measured"]
    return found + [f"  could not run: {by_file(reports)}: {reason}" for reason, reports in reasons.items()]


def by_file(reports: Iterable[Report]) -> str:
    """Return the number of reports of each file of tests."""
    counts = Counter(report.nodeid.partition("::")[0] for report in reports)
    return ", ".join(f"{count} of {file}" for file, count in counts.items())
