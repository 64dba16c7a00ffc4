"""Who runs when: a queue per engine, batches of what waits when the device is free."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Overloaded(Exception):
    """The engine's queue is full."""


@dataclass(frozen=True)
class Answer:
    """Logits, (classes,), the size of the batch they came in, and how long the item waited and ran."""

    logits: Logits
    batch_size: int
    queue_ms: float
    inference_ms: float


@dataclass(eq=False)
class Item:
    """One image waiting."""

    pixels: Pixels
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=time.perf_counter)


class Scheduler:
    """Runs one batch at a time on one device, the engines that have work taking turns.

    An idle device never waits for a batch to fill, and nothing polls: the first item starts the loop, and
    what arrives while a batch runs makes up the next.
    """

    def __init__(self, max_batch: int, max_waiting: int) -> None:
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queues: dict[Engine, deque[Item]] = {}
        self._device = ThreadPoolExecutor(1, "device")
        self._loop: asyncio.Task[None] | None = None

    async def infer(self, engine: Engine, pixels: Pixels) -> Answer:
        """Logits of one image, (height, width, channels); Overloaded if too many wait for this engine."""
        queue = self._queues.setdefault(engine, deque())
        if len(queue) >= self._max_waiting:
            raise Overloaded(f"{len(queue)} images wait already")
        item = Item(pixels, asyncio.get_running_loop().create_future())
        queue.append(item)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        try:
            return await item.answer
        except asyncio.CancelledError:
            with suppress(ValueError):  # it may be running by now
                queue.remove(item)
            raise

    async def _run(self) -> None:
        while self._queues:
            engine = next(iter(self._queues))
            queue = self._queues[engine]
            batch = [queue.popleft() for _ in range(min(len(queue), self._max_batch))]
            if batch:  # those that waited may have gone
                await self._run_batch(engine, batch)
            del self._queues[engine]
            if queue:
                self._queues[engine] = queue  # behind those that came meanwhile

    async def _run_batch(self, engine: Engine, batch: list[Item]) -> None:
        loop = asyncio.get_running_loop()
        pixels = np.stack([item.pixels for item in batch])
        started = time.perf_counter()
        try:
            logits = await loop.run_in_executor(self._device, engine.infer, pixels)
        except Exception as error:
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        inference_ms = (time.perf_counter() - started) * 1000
        for item, row in zip(batch, logits, strict=True):
            if not item.answer.done():
                queue_ms = (started - item.since) * 1000
                item.answer.set_result(Answer(row, len(batch), queue_ms, inference_ms))
