"""Scheduler of one device: a bounded queue per engine, batching, fair shares of device time, and deadlines."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.runtimes.engine import Engine
from service.cost import BatchCost

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Device = Callable[[Engine, Pixels], Awaitable[Logits]]


class Overloaded(Exception):
    """Raised when a request cannot be answered before its deadline.

    Carries the queue depth and the seconds after which a retry can succeed.
    """

    def __init__(self, reason: str, depth: int, retry_after_s: float) -> None:
        super().__init__(reason)
        self.depth = depth
        self.retry_after_s = retry_after_s


class Late(Exception):
    """Raised for an image whose deadline passed while it waited in the queue."""


@dataclass(frozen=True)
class Answer:
    """Result of one image: logits (classes,), batch size, and milliseconds in queue and in inference."""

    logits: Logits
    batch_size: int
    queue_ms: float
    inference_ms: float


@dataclass(eq=False)
class PendingImage:
    """Image in a queue, with its arrival time and deadline in seconds on the scheduler's clock."""

    pixels: Pixels
    since: float
    deadline: float
    answer: asyncio.Future[Answer]


@dataclass(eq=False)
class EngineQueue:
    """Queue of one engine.

    `waiting` holds decoded images; `decoding` counts admitted images that are still being decoded. `users` counts the
    requests that hold the queue, from before their bodies are read until they are answered. `share` is the device time
    that the queue has used, in seconds; time that it left unused while nothing waited is not kept for it.
    """

    engine: Engine
    cost: BatchCost
    waiting: deque[PendingImage] = field(default_factory=deque)
    decoding: int = 0
    users: int = 0
    share: float = 0.0

    @property
    def depth(self) -> int:
        """Number of admitted images that have not started to run."""
        return len(self.waiting) + self.decoding

    @contextmanager
    def in_use(self) -> Iterator[EngineQueue]:
        """Keep the engine loaded while the context is open."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1


def single_thread_device() -> Device:
    """Return a device that runs one batch at a time in its own thread."""
    executor = ThreadPoolExecutor(1, "device")

    async def run(engine: Engine, pixels: Pixels) -> Logits:
        return await asyncio.get_running_loop().run_in_executor(executor, engine.infer, pixels)

    return run


class Scheduler:
    """Runs one batch at a time on one device.

    A device that is free takes at once what waits: it never waits for a batch to fill, and nothing polls. Of several
    queues the one that has had the least device time is next, so that a flood of one model costs another a batch of
    it, not its queue (start-time fair queueing, Goyal et al. 1996). A batch is no larger than gains, and than lets
    its first image be answered in time.
    """

    def __init__(
        self, max_waiting: int, device: Device | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock  # the event loop's as well; but uvloop's own tells whole milliseconds
        self._max_waiting = max_waiting
        self._device = device or single_thread_device()
        self._active: set[EngineQueue] = set()  # those of some depth
        self._loop: asyncio.Task[None] | None = None
        self._free_at = 0.0  # when what runs is predicted to end
        self._share = 0.0  # of the queue that ran last, when it began

    def expected_wait_s(self, queue: EngineQueue) -> float:
        """Return the seconds until one more image of this queue would be answered.

        The sum of the rest of the running batch, this queue's backlog, and the fair share of every other queue.
        """
        own = queue.cost.backlog_s(queue.depth + 1)
        others = sum(min(own, other.cost.backlog_s(other.depth)) for other in self._active if other is not queue)
        return max(0.0, self._free_at - self.clock()) + own + others

    def check(self, queue: EngineQueue, deadline: float, decode_s: float = 0.0) -> None:
        """Raise Overloaded if one more image would miss `deadline`, or if the queue is full.

        `decode_s` is the expected decoding time in seconds.
        """
        left = deadline - self.clock()
        expected = decode_s + self.expected_wait_s(queue)
        if expected > left:
            queue.cost.forget(self.clock())
            told = f"an answer would take {1000 * expected:.0f} ms, of which {1000 * left:.0f} ms are left"
            raise Overloaded(told, queue.depth, expected - left)
        if queue.depth >= self._max_waiting:
            raise Overloaded(
                f"{queue.depth} images wait already", queue.depth, queue.cost.backlog_s(queue.cost.best_batch)
            )

    def admit(self, queue: EngineQueue, deadline: float, decode_s: float = 0.0) -> QueuePlace:
        """Reserve a place for an image that is about to be decoded. Raises Overloaded as `check` does."""
        self.check(queue, deadline, decode_s)
        self._active.add(queue)
        return QueuePlace(self, queue, deadline)

    async def infer(self, queue: EngineQueue, item: PendingImage) -> Answer:
        """Enqueue a decoded image and return its answer. A cancelled caller leaves the queue."""
        if not queue.waiting:
            queue.share = max(queue.share, self._share)
        queue.waiting.append(item)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        try:
            return await item.answer
        except asyncio.CancelledError:
            with suppress(ValueError):  # it may be running by now
                queue.waiting.remove(item)
            raise

    def forget_if_empty(self, queue: EngineQueue) -> None:
        """Stop considering a queue that has become empty."""
        if not queue.depth:
            self._active.discard(queue)

    async def _run(self) -> None:
        while waiting := [queue for queue in self._active if queue.waiting]:
            queue = min(waiting, key=lambda queue: (queue.share, queue.waiting[0].since))
            if batch := self._next_batch(queue):
                await self._run_batch(queue, batch)

    def _next_batch(self, queue: EngineQueue) -> list[PendingImage]:
        """Take the oldest images that can still meet their deadlines; drop the rest before they cost device time."""
        now, until = self.clock(), inf
        batch: list[PendingImage] = []
        while queue.waiting and len(batch) < queue.cost.best_batch:
            item = queue.waiting[0]
            if item.deadline < now + queue.cost(1):
                settle(item, Late("it waited until it could not be answered in time"))
            elif batch and min(until, item.deadline) < now + queue.cost(len(batch) + 1):
                break
            else:
                until = min(until, item.deadline)
                batch.append(item)
            queue.waiting.popleft()
        return batch

    async def _run_batch(self, queue: EngineQueue, batch: list[PendingImage]) -> None:
        """Run a batch. If it raises, run its images one by one so that one bad image fails alone."""
        try:
            logits, started, took = await self._on_device(queue, batch)
        except Exception as error:
            if len(batch) == 1:
                settle(batch[0], error)
                return
            for item in batch:
                if not item.answer.done():
                    await self._run_batch(queue, [item])
            return
        queue.cost.observe(len(batch), took)
        for item, row in zip(batch, logits, strict=True):
            settle(item, Answer(row, len(batch), (started - item.since) * 1000, took * 1000))

    async def _on_device(self, queue: EngineQueue, batch: list[PendingImage]) -> tuple[Logits, float, float]:
        """Run a batch and charge its time to the queue, even if it fails; return logits, start and seconds."""
        started = self.clock()
        self._share, self._free_at = queue.share, started + queue.cost(len(batch))
        try:
            logits = await self._device(queue.engine, np.stack([item.pixels for item in batch]))
        finally:
            took = self.clock() - started
            queue.share += took
            self._free_at = 0.0
        return logits, started, took


class QueuePlace:
    """Place in a queue: `decoding` until there are pixels; a context that gives the place up at its end."""

    def __init__(self, scheduler: Scheduler, queue: EngineQueue, deadline: float) -> None:
        self.queue = queue
        self._scheduler, self._deadline, self._decoding = scheduler, deadline, False

    def __enter__(self) -> Self:
        self.queue.decoding += 1
        self._decoding = True
        return self

    def __exit__(self, *_: object) -> None:
        self._arrived()
        self._scheduler.forget_if_empty(self.queue)

    def _arrived(self) -> None:
        self.queue.decoding -= self._decoding
        self._decoding = False

    async def infer(self, pixels: Pixels) -> Answer:
        """Return the answer to one image, (height, width, channels). Raises Late if its deadline passes."""
        self._arrived()
        answer = asyncio.get_running_loop().create_future()
        item = PendingImage(pixels, self._scheduler.clock(), self._deadline, answer)
        return await self._scheduler.infer(self.queue, item)


def settle(item: PendingImage, outcome: Answer | Exception) -> None:
    """Deliver a result or an error to whoever waits for the image, if anyone still does."""
    if item.answer.done():
        return
    if isinstance(outcome, Exception):
        item.answer.set_exception(outcome)
    else:
        item.answer.set_result(outcome)
