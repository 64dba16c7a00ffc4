"""Tests of the reckoned replicas, and of a small simulation of the scheduler on several devices."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from loadtest.landscape.rows import read_landscape
from loadtest.scale import replicas
from loadtest.scale.arrivals import arrive, lay_out
from loadtest.scale.command import LANDSCAPE, replicas_table
from loadtest.scale.outcomes import Figures, Scenario, play
from loadtest.scale.simulation import CHOICES, fair_shares
from loadtest.scale.virtual_time import now, simulated

LAYOUT = lay_out(replicas.models(read_landscape(LANDSCAPE), 1.0), models=30, devices=6)
SECONDS = 4


def outcome(load: float, bursts: bool = False, choice: str = "fewest requests") -> Figures:
    return play(LAYOUT, Scenario(choice, load, bursts), SECONDS)


def test_time_passes_only_where_something_waits() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return now()

    assert simulated(main()) == pytest.approx(3600)


def test_every_model_has_two_devices_and_devices_have_as_much_to_do() -> None:
    work = np.zeros(LAYOUT.devices)
    for model, popularity, places in zip(LAYOUT.models, LAYOUT.popularity, LAYOUT.places, strict=True):
        assert len(set(places)) >= 2
        work[places] += popularity * model.image_s / len(places)
    assert work.max() < 1.1 * work.mean()


def test_load_is_a_multiple_of_what_the_devices_compute() -> None:
    arrivals = arrive(LAYOUT, 0.7, 60, 2)
    work = sum(LAYOUT.models[model].image_s for model in arrivals.model[~arrivals.burst])
    assert work / 60 / LAYOUT.devices == pytest.approx(0.7, rel=0.05)


@pytest.mark.parametrize("choice", CHOICES)
def test_below_capacity_everybody_is_answered(choice: str) -> None:
    figures = outcome(0.7, choice=choice)
    assert figures.refused == figures.late == 0
    assert 0.7 < figures.busy < 0.9


def test_above_capacity_devices_are_busy_most_refusals_come_at_once_and_shares_are_fair() -> None:
    figures = outcome(2.0)
    assert str(figures) == str(outcome(2.0))  # every run is the same
    assert figures.busy > 0.95
    assert figures.refused > 4 * figures.late
    assert figures.fair > 0.7


def test_fair_shares_leave_nothing_unused() -> None:
    assert fair_shares(np.array([5.0, 1.0, 3.0]), 6.0).tolist() == [2.5, 1.0, 2.5]


def test_the_page_has_what_the_measured_costs_give() -> None:
    page = (LANDSCAPE.parent / "scale.md").read_text()
    assert replicas_table(LANDSCAPE) in page
