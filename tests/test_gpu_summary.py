"""Test of the summary of the tests on a GPU."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests import gpu_summary


def report(name: str, outcome: Literal["passed", "failed", "skipped"], longrepr: Any = None, *figures: str) -> Any:
    """Return pytest's report of a test."""
    properties = [("measured", figure) for figure in figures]
    return pytest.TestReport(
        name, (name, 1, name), {}, outcome, longrepr, when="call", user_properties=properties, duration=1
    )


def test_what_ran_and_what_could_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_summary, "accelerator", lambda: "NVIDIA Imaginary")
    passed = [report("tests/a.py::one", "passed", None, "2.0 ms"), report("tests/a.py::two[3]", "passed")]
    failed = [report("tests/b.py::three", "failed", "a traceback")]
    skipped = [report(f"tests/c.py::{name}", "skipped", ("c.py", 3, "Skipped: no library")) for name in "xy"]
    skipped.append(report("tests/d.py::z", "skipped", ("d.py", 3, "Skipped: no driver")))
    assert gpu_summary.lines({"passed": passed, "failed": failed, "skipped": skipped, "": passed}) == [
        "3 tests ran on NVIDIA Imaginary, 1 failed, 3 could not run.",
        "  ran: 2 of tests/a.py, 1 of tests/b.py",
        "  failed: 1 of tests/b.py",
        "  measured: 2.0 ms",
        "  could not run: 2 of tests/c.py: no library",
        "  could not run: 1 of tests/d.py: no driver",
    ]
    assert gpu_summary.lines({})[0].startswith("0 tests ran on NVIDIA Imaginary")
    monkeypatch.setattr(gpu_summary, "accelerator", lambda: None)
    assert gpu_summary.lines({"skipped": skipped}) == ["No test ran, and 3 could not: there is no NVIDIA GPU."]
