"""Tests of the predicted duration of a batch."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.scale.virtual_time import now, simulated
from service.admission import Overloaded
from service.cost import BatchCost, WaitFactor
from service.scheduler import Scheduler
from tests.service.test_scheduler import ExactDevice


def test_a_batch_is_no_larger_than_gains() -> None:
    assert BatchCost({1: 1.0, 8: 8.0, 32: 32.0}, 32).best_batch == 1
    assert BatchCost({1: 1.0, 8: 2.0, 32: 7.8}, 32).best_batch == 8
    assert BatchCost({1: 1.0, 32: 2.0}, 24).best_batch == 24


def test_a_batch_on_cores_that_decode_is_long_enough_to_be_worth_the_rest() -> None:
    assert BatchCost({1: 0.019, 8: 0.147, 32: 0.6}, 32, shortest_s=0.04).best_batch == 4
    assert BatchCost({1: 0.105, 8: 0.84}, 32, shortest_s=0.04).best_batch == 1
    assert BatchCost({1: 0.0001, 8: 0.0003, 16: 0.0006, 32: 0.0024}, 32, shortest_s=0.04).best_batch == 16


def test_a_cost_is_interpolated_and_learns() -> None:
    cost = BatchCost({2: 2.0, 4: 3.0}, 8)
    assert [cost(batch) for batch in (1, 2, 3, 4, 8)] == [1, 2, 2.5, 3, 6]
    for _ in range(100):
        cost.observe(2, 4.0)
    assert [cost(2), cost(4)] == pytest.approx([4.0, 6.0], rel=1e-3)
    cost.observe(2, 4000.0)  # a pause of the machine
    assert cost(2) < 6.0


def test_waits_of_an_idle_device_do_not_outweigh_predictions() -> None:
    factor = WaitFactor()
    assert factor() == 1
    factor.observe(0.05, 0.06)
    for _ in range(100):
        factor.observe(0.0, 0.0002)  # the event loop's
    assert factor() == pytest.approx(1.2)
    factor.observe(0.05, 1.0)
    assert factor() == 4


def test_what_was_slow_once_is_not_refused_for_ever() -> None:
    async def main() -> None:
        device = ExactDevice()
        queue, scheduler = device.queue(1.0), Scheduler(100, device, now)
        for _ in range(10):
            queue.cost.observe(1, 4.0)
        refused = 0
        while True:
            try:
                scheduler.check(queue, now() + 1.2)
                break
            except Overloaded:
                refused += 1
                await asyncio.sleep(1.1)
        assert 5 < refused < 50

    simulated(main())
