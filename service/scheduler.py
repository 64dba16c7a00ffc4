"""What runs next on the device: a bounded queue for each engine, fair shares of device time, deadlines."""

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
from service.cost import Cost

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Device = Callable[[Engine, Pixels], Awaitable[Logits]]


class Overloaded(Exception):
    """A request that would be answered too late: how many are before it, and in how many seconds to ask again."""

    def __init__(self, reason: str, depth: int, retry_after_s: float) -> None:
        super().__init__(reason)
        self.depth = depth
        self.retry_after_s = retry_after_s


class Late(Exception):
    """An image that waited until it could no longer be answered in time."""


@dataclass(frozen=True)
class Answer:
    """Logits, (classes,), the size of the batch they came in, and how long the image waited and ran."""

    logits: Logits
    batch_size: int
    queue_ms: float
    inference_ms: float


@dataclass(eq=False)
class Item:
    """One image waiting, since when and until when, on the scheduler's clock."""

    pixels: Pixels
    since: float
    deadline: float
    answer: asyncio.Future[Answer]


@dataclass(eq=False)
class Lane:
    """One engine's queue: what waits, and how many are `coming`, admitted and still being decoded.

    `users` are the requests that hold it, from before their bodies are read until they are answered. `share` is the
    device time that it has had, in seconds; what it left unused while nothing waited is not kept for it.
    """

    engine: Engine
    cost: Cost
    waiting: deque[Item] = field(default_factory=deque)
    coming: int = 0
    users: int = 0
    share: float = 0.0

    @property
    def depth(self) -> int:
        """How many images are admitted and do not run yet."""
        return len(self.waiting) + self.coming

    @contextmanager
    def in_use(self) -> Iterator[Lane]:
        """It may not be unloaded to make room."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1


def one_thread() -> Device:
    """A device that runs one batch at a time, off the event loop."""
    executor = ThreadPoolExecutor(1, "device")

    async def run(engine: Engine, pixels: Pixels) -> Logits:
        return await asyncio.get_running_loop().run_in_executor(executor, engine.infer, pixels)

    return run


class Scheduler:
    """Runs one batch at a time on one device.

    A device that is free takes at once what waits: it never waits for a batch to fill, and nothing polls. Of several
    lanes the one that has had the least device time is next, so that a flood of one model costs another a batch of
    it, not its queue (start-time fair queueing, Goyal et al. 1996). A batch is no larger than gains, and than lets
    its first image be answered in time.
    """

    def __init__(
        self, max_waiting: int, device: Device | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock  # the event loop's as well; but uvloop's own tells whole milliseconds
        self._max_waiting = max_waiting
        self._device = device or one_thread()
        self._active: set[Lane] = set()  # those of some depth
        self._loop: asyncio.Task[None] | None = None
        self._free_at = 0.0  # when what runs is predicted to end
        self._share = 0.0  # of the lane that ran last, when it began

    def expected_s(self, lane: Lane) -> float:
        """In how many seconds one more image would be answered, at this moment's load.

        What runs ends; before ours are those of its own lane, and of each other lane as much as is fair.
        """
        own = lane.cost.backlog_s(lane.depth + 1)
        others = sum(min(own, other.cost.backlog_s(other.depth)) for other in self._active if other is not lane)
        return max(0.0, self._free_at - self.clock()) + own + others

    def check(self, lane: Lane, deadline: float, before_s: float = 0.0) -> None:
        """Overloaded if one more image could not be answered by `deadline`, or too many wait.

        `before_s` is what it takes, in seconds, until there are pixels.
        """
        left = deadline - self.clock()
        expected = before_s + self.expected_s(lane)
        if expected > left:
            lane.cost.forget(self.clock())
            told = f"an answer would take {1000 * expected:.0f} ms, of which {1000 * left:.0f} ms are left"
            raise Overloaded(told, lane.depth, expected - left)
        if lane.depth >= self._max_waiting:
            raise Overloaded(f"{lane.depth} images wait already", lane.depth, lane.cost.backlog_s(lane.cost.best_batch))

    def admit(self, lane: Lane, deadline: float, before_s: float = 0.0) -> Place:
        """A place in the queue, to be held while the image is decoded and answered; Overloaded as `check` says."""
        self.check(lane, deadline, before_s)
        self._active.add(lane)
        return Place(self, lane, deadline)

    async def infer(self, lane: Lane, item: Item) -> Answer:
        """What becomes of an image that waits from now on."""
        if not lane.waiting:
            lane.share = max(lane.share, self._share)
        lane.waiting.append(item)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        try:
            return await item.answer
        except asyncio.CancelledError:
            with suppress(ValueError):  # it may be running by now
                lane.waiting.remove(item)
            raise

    def left(self, lane: Lane) -> None:
        """Somebody left it."""
        if not lane.depth:
            self._active.discard(lane)

    async def _run(self) -> None:
        while waiting := [lane for lane in self._active if lane.waiting]:
            lane = min(waiting, key=lambda lane: (lane.share, lane.waiting[0].since))
            if batch := self._next_batch(lane):
                await self._run_batch(lane, batch)

    def _next_batch(self, lane: Lane) -> list[Item]:
        """The first that wait and can be in time; those that cannot are dropped before they cost device time."""
        now, until = self.clock(), inf
        batch: list[Item] = []
        while lane.waiting and len(batch) < lane.cost.best_batch:
            item = lane.waiting[0]
            if item.deadline < now + lane.cost(1):
                settle(item, Late("it waited until it could not be answered in time"))
            elif batch and min(until, item.deadline) < now + lane.cost(len(batch) + 1):
                break
            else:
                until = min(until, item.deadline)
                batch.append(item)
            lane.waiting.popleft()
        return batch

    async def _run_batch(self, lane: Lane, batch: list[Item]) -> None:
        """Of a batch that fails each image runs by itself, so that only those fail that must."""
        try:
            logits, started, took = await self._on_device(lane, batch)
        except Exception as error:
            if len(batch) == 1:
                settle(batch[0], error)
                return
            for item in batch:
                if not item.answer.done():
                    await self._run_batch(lane, [item])
            return
        lane.cost.observe(len(batch), took)
        for item, row in zip(batch, logits, strict=True):
            settle(item, Answer(row, len(batch), (started - item.since) * 1000, took * 1000))

    async def _on_device(self, lane: Lane, batch: list[Item]) -> tuple[Logits, float, float]:
        """Logits, when it began, and how long it took; its lane pays for it, whatever becomes of it."""
        started = self.clock()
        self._share, self._free_at = lane.share, started + lane.cost(len(batch))
        try:
            logits = await self._device(lane.engine, np.stack([item.pixels for item in batch]))
        finally:
            took = self.clock() - started
            lane.share += took
            self._free_at = 0.0
        return logits, started, took


class Place:
    """A place in a lane: `coming` until there are pixels; a context that gives the place up at its end."""

    def __init__(self, scheduler: Scheduler, lane: Lane, deadline: float) -> None:
        self.lane = lane
        self._scheduler, self._deadline, self._coming = scheduler, deadline, False

    def __enter__(self) -> Self:
        self.lane.coming += 1
        self._coming = True
        return self

    def __exit__(self, *_: object) -> None:
        self._arrived()
        self._scheduler.left(self.lane)

    def _arrived(self) -> None:
        self.lane.coming -= self._coming
        self._coming = False

    async def infer(self, pixels: Pixels) -> Answer:
        """Of one image, (height, width, channels); Late if its turn came too late. One cancelled leaves the queue."""
        self._arrived()
        answer = asyncio.get_running_loop().create_future()
        item = Item(pixels, self._scheduler.clock(), self._deadline, answer)
        return await self._scheduler.infer(self.lane, item)


def settle(item: Item, outcome: Answer | Exception) -> None:
    """Tell its outcome, unless nobody waits for it any more."""
    if item.answer.done():
        return
    if isinstance(outcome, Exception):
        item.answer.set_exception(outcome)
    else:
        item.answer.set_result(outcome)
