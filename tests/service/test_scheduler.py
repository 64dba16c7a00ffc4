"""Batches of what waits, turns between engines, and nobody pays for another's fault."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from service.scheduler import Answer, Overloaded, Scheduler


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


def test_what_waits_rides_together_and_each_gets_its_own() -> None:
    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_engines_take_turns() -> None:
    async def scenario() -> None:
        ran: list[tuple[Gated, int]] = []
        busy, other, scheduler = Gated(ran), Gated(ran), Scheduler(max_batch=2, max_waiting=100)
        tasks = await started(scheduler, busy, *range(1, 8))
        tasks += await started(scheduler, other, 1)
        other.gate.set()
        busy.gate.set()
        await asyncio.gather(*tasks)
        assert [engine is other for engine, _ in ran] == [False, True, False, False, False]

    asyncio.run(scenario())


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def scenario() -> None:
        ran: list[tuple[Gated, int]] = []
        engine, scheduler = Gated(ran), Scheduler(max_batch=8, max_waiting=100)
        tasks = await started(scheduler, engine, 1, 2, 3)
        extra = await started(scheduler, engine, 4, 5)
        extra[0].cancel()
        await asyncio.sleep(0.02)
        engine.gate.set()
        await asyncio.gather(*tasks, extra[1])
        assert sum(size for _, size in ran) == 4

    asyncio.run(scenario())


def test_a_batch_that_fails_fails_its_own_and_the_next_runs() -> None:
    async def scenario() -> None:
        ran: list[tuple[Gated, int]] = []
        engine, scheduler = Gated(ran), Scheduler(max_batch=1, max_waiting=100)
        bad, good = await started(scheduler, engine, 255, 3)
        engine.gate.set()
        with pytest.raises(RuntimeError, match="a batch that fails"):
            await bad
        assert (await good).logits.tolist() == [3]

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_an_empty_one_takes_again() -> None:
    async def scenario() -> None:
        engine, scheduler = Gated([]), Scheduler(max_batch=1, max_waiting=2)
        tasks = await started(scheduler, engine, 1)
        tasks += await started(scheduler, engine, 2, 3)
        with pytest.raises(Overloaded, match="2 images wait already"):
            await scheduler.infer(engine, image(4))
        engine.gate.set()
        await asyncio.gather(*tasks)
        assert (await scheduler.infer(engine, image(4))).logits.tolist() == [4]

    asyncio.run(scenario())
