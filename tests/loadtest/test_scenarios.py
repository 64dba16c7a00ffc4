"""Tests of the times at which requests are sent, and of latencies that count from these times."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from random import Random

import pytest

from loadtest.scenarios import SCENARIOS, arrivals
from loadtest.tally import Tally
from loadtest.traffic import LabelledImage, ScenarioError, Traffic, read_weights
from tests.loadtest.conftest import Locust
from tests.loadtest.stub import StubHandler, prediction, stub_server

STALL_S, EVERY_S = 0.5, 5.0


def due(scenario: str, rate: float, seconds: float, seed: int = 0) -> list[float]:
    times = arrivals(SCENARIOS[scenario], rate, seconds, Random(seed))
    return list(itertools.takewhile(lambda due: due < seconds, times))


def test_requests_come_at_the_rate_by_a_poisson_process() -> None:
    times = due("server", 100, 100)
    assert len(times) == pytest.approx(10_000, rel=0.04)  # four standard deviations
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= 0 for gap in gaps)
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.1)  # as of an exponential distribution
    assert due("server", 100, 100) == times
    assert due("server", 100, 100, seed=1) != times


def test_a_ramp_rises_and_a_spike_is_in_the_middle() -> None:
    ramp, spike = (due(scenario, 100, 100) for scenario in ("ramp", "spike"))
    by_fifth = [[sum(20 * k <= time < 20 * (k + 1) for time in times) for k in range(5)] for times in (ramp, spike)]
    assert by_fifth[0] == pytest.approx([200, 600, 1000, 1400, 1800], rel=0.2)
    assert by_fifth[1] == pytest.approx([400, 400, 2000, 400, 400], rel=0.2)


def test_models_are_drawn_by_their_weight() -> None:
    weights = read_weights("vgg19=1,lenet5=20,resnet50@cifar10=0.5")
    assert weights == {"vgg19": 1, "lenet5": 20, "resnet50@cifar10": 0.5}
    assert read_weights("lenet5:mnist5k-5c93254d,alexnet") == {"lenet5:mnist5k-5c93254d": 1, "alexnet": 1}
    image = itertools.repeat(LabelledImage(b"", "7"))
    traffic = Traffic(weights, dict.fromkeys(weights, image))
    drawn = [next(traffic)[0] for _ in range(4300)]
    assert [drawn.count(name) for name in weights] == pytest.approx([200, 4000, 100], rel=0.3)


@pytest.mark.parametrize("text", ["lenet5=", "lenet5=many", "lenet5=0", "lenet5=-1", "lenet5=inf", "", "=3", "a,,b"])
def test_an_invalid_weight_is_reported(text: str) -> None:
    with pytest.raises(ScenarioError, match="--models: "):
        read_weights(text)


def test_tallies_of_several_processes_add_up() -> None:
    tallies = [Tally(seconds=10), Tally(seconds=8)]
    for tally, times in zip(tallies, ((0.010, 0.020), (0.030, 4.0)), strict=True):
        for seconds in times:
            tally.send(0.001)
            tally.answer(seconds, right=seconds < 1)
    tallies[1].failures = 3
    whole = Tally()
    for tally in tallies:
        whole.add(Tally.load(json.loads(json.dumps(tally.dump()))))
    assert (whole.sent, whole.answers, whole.right, whole.failures, whole.seconds) == (4, 4, 3, 3, 10)
    assert whole.latency_ms(50) == pytest.approx(20, rel=2e-3)
    assert whole.latency_ms(100) == pytest.approx(4000, rel=2e-3)
    assert whole.achieved == 0.4
    assert whole.late_ms(99) == pytest.approx(1, rel=2e-3)


def test_a_generator_that_did_not_keep_up_is_reported() -> None:
    tally = Tally(seconds=1)
    for late in (0.0, 0.0, 0.5):
        tally.send(late)
        tally.answer(late + 0.001, right=True)
    assert tally.fell_behind == "1 % of requests were sent 500 ms late or more"
    slow = Tally(seconds=1)
    slow.send(0.5)
    slow.answer(6.0, right=True)  # late, but slow for another reason
    assert slow.fell_behind is None


class Stalls(StubHandler):
    """Handler that answers at once, except in the last half second of every five."""

    def answer(self) -> bytes:
        """Wait for the end of a stall, then answer."""
        if (left := EVERY_S - time.monotonic() % EVERY_S) < STALL_S:
            time.sleep(left)
        return prediction("7")


@pytest.fixture
def stalls() -> Iterator[str]:
    with stub_server(Stalls) as host:
        yield host


def line_of(stderr: str) -> dict[str, float]:
    """Return the figures of lenet5 in the log, by name."""
    (line,) = [line for line in stderr.splitlines() if "lenet5: offered" in line]
    figures = re.findall(r"(offered|achieved|p50|p90|p99|max) ([\d.]+)", line)
    return {name: float(value) for name, value in figures}


def test_a_server_that_stalls_cannot_hide_from_an_open_loop(locust: Locust, stalls: str) -> None:
    lines = {}
    for scenario, seconds in (("single_stream", "10s"), ("server", "10s")):
        done = locust(stalls, "--scenario", scenario, "--rate", "50", "-t", seconds)
        lines[scenario] = line_of(done.stderr)
    closed, opened = lines["single_stream"], lines["server"]
    assert closed["max"] >= 400  # a stall delayed one of thousands of requests
    assert closed["p99"] < 100
    assert opened["p99"] >= 300  # a tenth of the requests was due during a stall
    assert opened["p50"] < 100
    assert opened["offered"] == pytest.approx(50, rel=0.25)
    assert opened["achieved"] == pytest.approx(opened["offered"], rel=0.05)
