"""Tests of what several rounds say: rules of `diff --fail-if`, spreads, and engines that are measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import rows
from loadtest.diff import broken_rules, parse_rule
from loadtest.rounds import AGAIN, contradictions, due
from loadtest.rows import EngineRow, Measured
from loadtest.store import write_rows
from loadtest.traffic import ScenarioError
from tests.conftest import Run

SWEEP = Path("docs/sweep.jsonl")


@pytest.fixture(scope="module")
def engines() -> list[EngineRow]:
    """Return two rows of a real sweep: two engines in one round."""
    return rows.read(SWEEP)[1][:2]


def broken(before: list[EngineRow], after: list[EngineRow], *rules: str) -> list[str]:
    """Return a line for each rule that the change from one list of rows to the other breaks."""
    return broken_rules(before, after, [parse_rule(rule) for rule in rules])


def with_rate(row: EngineRow, rate: float | None, number: int = 0) -> EngineRow:
    """Return the row of another round, with another highest rate."""
    return row.model_copy(update={"max_rate": rate, "round": number})


def test_a_change_beyond_a_rule_is_a_line_for_each_engine(engines: list[EngineRow]) -> None:
    slower = [with_rate(row, 0.8 * (row.max_rate or 0)) for row in engines]
    assert not broken(engines, slower, "rate < -30 %", "p99 > 0%")
    lines = broken(engines, slower, "p99 > 10 %", "rate < -10 %")
    assert len(lines) == len(engines)
    assert lines[0].startswith("lenet5 fp32: highest rate, requests/s -20.0 %, from 776.8 to 621.4: rate < -10 %")
    assert "exclude chance" in lines[0]
    many = [with_rate(engines[0], rate, number) for number, rate in enumerate((800, 801, 802))]
    (line,) = broken(many, [with_rate(row, (row.max_rate or 0) / 2, row.round) for row in many], "rate < -10 %")
    assert "exclude chance" not in line


def test_a_rate_of_zero_is_compared_too(engines: list[EngineRow]) -> None:
    none = [with_rate(row, 0) for row in engines]
    assert len(broken(engines, none, "rate < -99 %")) == len(engines)
    assert len(broken(none, engines, "rate > 1000 %")) == len(engines)
    assert not broken(none, none, "rate < 0 %", "rate > 0 %")


def test_what_was_not_measured_does_not_pass(engines: list[EngineRow]) -> None:
    with pytest.raises(ScenarioError, match="--fail-if: B lacks "):
        broken(engines, engines[:1], "p99 > 10 %")
    with pytest.raises(ScenarioError, match="B lacks this figure of lenet5 fp32"):
        broken(engines, [with_rate(row, None) for row in engines], "rate < -10 %")
    with pytest.raises(ScenarioError, match="A holds no measured engine"):
        broken([], engines, "p99 > 10 %")


def test_the_command_ends_with_3_if_a_rule_is_broken(run: Run, engines: list[EngineRow], tmp_path: Path) -> None:
    slower = tmp_path / "slower.jsonl"
    write_rows(slower, [with_rate(row, 0.8 * (row.max_rate or 0)) for row in rows.read(SWEEP)[1]])
    done = run("loadtest", "diff", SWEEP, slower, "--fail-if", "p99 > 10 %", "--fail-if", "rate < -10 %", check=False)
    assert done.returncode == 3
    assert done.stdout.startswith("| model |")
    assert all(line.startswith("failed: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("text", ["p99 > 10", "p99 >= 10 %", "p98 > 10 %", "10 %", "p99 > 10 % or", "p99 > ten %", ""])
def test_a_wrong_rule_is_one_line_with_an_example(text: str) -> None:
    with pytest.raises(ScenarioError) as found:
        parse_rule(text)
    assert str(found.value).startswith(f"--fail-if {text!r}: write FIGURE > N %")
    assert "such as 'p99 > 10 %'" in str(found.value)


@pytest.mark.parametrize("text", ["p99 > -10 %", "rate < 10 %"])
def test_a_rule_that_nothing_could_pass_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match="even an unchanged figure would fail"):
        parse_rule(text)


def test_engines_whose_rounds_contradict_each_other_are_measured_again(engines: list[EngineRow]) -> None:
    first, second = engines
    done = {row.key: row for row in (first, second, with_rate(second, second.max_rate, 1))}
    measured = []
    for row, rate in zip(due(2, engines, done), (1, 300, 5), strict=False):
        done[row.key] = with_rate(row, rate, row.round).model_copy(
            update={"single": first.single, "offline": first.offline}
        )
        measured.append(row.key)
    assert measured == [(first.tag, first.precision, number) for number in range(1, 2 + AGAIN)]
    (line,) = contradictions(done.values())
    assert line.startswith("lenet5 fp32: rounds contradict each other in max_rate: 776.8, 1, 300, 5;")
    assert not list(due(2, engines, done))
    assert not list(due(1, engines, done))


def test_an_engine_carries_the_spread_of_its_rounds(engines: list[EngineRow]) -> None:
    rounds = [with_rate(engines[0], rate, number) for number, rate in enumerate((100, 104, None, 60))]
    measured = Measured("lenet5", rounds)
    assert (measured.median("max_rate"), measured.spread("max_rate")) == (100, (60, 104))
    assert not measured.contradicted()  # two of three agree
    assert Measured("lenet5", rounds[:1]).spread("max_rate") is None
    assert Measured("lenet5", [rounds[0], rounds[3]]).contradicted() == ["max_rate"]
