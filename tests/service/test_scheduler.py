"""Batches of what waits, turns between engines, and nobody pays for another's fault."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from service.scheduler import Answer, Overloaded, Scheduler

pytestmark = pytest.mark.anyio


class Gated:
    """Answers the mean pixel, once the test opens the gate."""

    runtime = "gated"
    precision = "none"

    def __init__(self, ran: list[tuple[Gated, int]]) -> None:
        self.gate = threading.Event()
        self._ran = ran

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.gate.wait(10)
        self._ran.append((self, len(pixels)))
        if pixels.max() == 255:
            raise RuntimeError("a batch that fails")
        means: NDArray[np.float32] = pixels.reshape(len(pixels), -1).mean(1, keepdims=True, dtype=np.float32)
        return means


def image(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 1), value, np.uint8)


async def started(scheduler: Scheduler, engine: Gated, *values: int) -> list[asyncio.Task[Answer]]:
    tasks = [asyncio.create_task(scheduler.infer(engine, image(value))) for value in values]
    await asyncio.sleep(0.02)
    return tasks


async def test_what_waits_rides_together_and_each_gets_its_own() -> None:
    ran: list[tuple[Gated, int]] = []
    engine, scheduler = Gated(ran), Scheduler(max_batch=4, max_waiting=100)
    first = await started(scheduler, engine, 1)
    rest = await started(scheduler, engine, 2, 3, 4, 5, 6, 7)
    engine.gate.set()
    answers = await asyncio.gather(*first, *rest)
    assert [size for _, size in ran] == [1, 4, 2]
    assert [answer.logits.tolist() for answer in answers] == [[value] for value in range(1, 8)]
    assert [answer.batch_size for answer in answers] == [1, 4, 4, 4, 4, 2, 2]
    assert all(answer.queue_ms >= 0 and answer.inference_ms > 0 for answer in answers)


async def test_engines_take_turns() -> None:
    ran: list[tuple[Gated, int]] = []
    busy, other, scheduler = Gated(ran), Gated(ran), Scheduler(max_batch=2, max_waiting=100)
    tasks = await started(scheduler, busy, *range(1, 8))
    tasks += await started(scheduler, other, 1)
    other.gate.set()
    busy.gate.set()
    await asyncio.gather(*tasks)
    assert [engine is other for engine, _ in ran] == [False, True, False, False, False]


async def test_a_cancelled_request_leaves_the_queue() -> None:
    ran: list[tuple[Gated, int]] = []
    engine, scheduler = Gated(ran), Scheduler(max_batch=8, max_waiting=2)
    running = await started(scheduler, engine, 1)
    stays, goes = await started(scheduler, engine, 2, 3)
    with pytest.raises(Overloaded, match="2 images wait already"):
        await scheduler.infer(engine, image(4))
    goes.cancel()
    await asyncio.sleep(0.02)
    comes = await started(scheduler, engine, 4)  # into the place that came free
    engine.gate.set()
    answers = await asyncio.gather(*running, stays, *comes)
    assert [answer.logits.tolist() for answer in answers] == [[1], [2], [4]]
    assert [size for _, size in ran] == [1, 2]


async def test_a_request_cancelled_while_it_runs_harms_nobody() -> None:
    engine, scheduler = Gated([]), Scheduler(max_batch=8, max_waiting=100)
    goes, stays = await started(scheduler, engine, 1, 2)
    goes.cancel()
    engine.gate.set()
    assert (await stays).logits.tolist() == [2]
    assert (await scheduler.infer(engine, image(3))).logits.tolist() == [3]


async def test_when_all_who_wait_have_gone_the_next_is_served() -> None:
    engine, scheduler = Gated([]), Scheduler(max_batch=8, max_waiting=100)
    running = await started(scheduler, engine, 1)
    for waiting in await started(scheduler, engine, 2, 3):
        waiting.cancel()
    engine.gate.set()
    await asyncio.gather(*running)
    assert (await scheduler.infer(engine, image(4))).logits.tolist() == [4]


async def test_a_batch_that_fails_fails_its_own_and_the_next_runs() -> None:
    engine, scheduler = Gated([]), Scheduler(max_batch=1, max_waiting=100)
    bad, good = await started(scheduler, engine, 255, 3)
    engine.gate.set()
    with pytest.raises(RuntimeError, match="a batch that fails"):
        await bad
    assert (await good).logits.tolist() == [3]
