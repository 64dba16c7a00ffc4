"""Scheduler of one device: batching, fair shares of device time, and deadlines."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import cast

from service.admission import LATE, Admission, Answer, EngineQueue, Late, PendingImage, settle
from service.batches import Inputs, Outcome, RefusedJpeg, RunBatch, in_threads
from service.clients import SHADOWS, Client, current


@dataclass(eq=False)
class RunningBatch:
    """Batch that runs, with its predicted seconds; `mixed` is True once a batch of another engine has run beside it."""

    queue: EngineQueue
    cost_s: float
    mixed: bool = False


class Scheduler(Admission):
    """Scheduler that runs batches on one device, as many at a time as an engine has lanes: one on a CPU.

    A free lane takes waiting images at once: it never waits for a batch to fill, and nothing polls. The queue with
    the least device time so far runs next, so that a flood of requests for one model delays another model by one batch,
    not by the whole flood (start-time fair queueing, Goyal et al. 1996). A batch is no larger than its
    queue's `best_batch`, and small enough that its images meet their deadlines.
    """

    def __init__(
        self, max_waiting: int, device: RunBatch | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(max_waiting, clock)
        self._run_on_device = device or in_threads()
        self._active: set[EngineQueue] = set()  # queues that are not empty
        self._loops: set[asyncio.Task[None]] = set()  # each runs one batch after another
        self._running: list[RunningBatch] = []
        self.free_at = 0.0  # predicted end of the running batches
        self._freed_at = 0.0  # end of the last batch
        self._share = 0.0  # share of the queue that ran last, at the start of its batch

    def expected_answer_s(self, queue: EngineQueue, images: int = 1) -> float:
        """Return the seconds until a new request of `images` for this queue would be answered.

        They are the rest of the running batches, this queue's backlog, and the fair share of every other queue.
        """
        return max(0.0, self.free_at - self.clock()) + self.backlog_s(queue, images, current.get())

    def backlog_s(self, queue: EngineQueue, images: int = 1, client: Client | None = None) -> float:
        """Return the seconds of this queue's images with `images` more, and of the other queues' shares meanwhile.

        Of this queue, the images count that will run before those of `client`; without a client all of them.
        """
        wait_s = self._wait_s(queue, images, client)
        return queue.cost.backlog_s(images) + queue.wait_factor() * wait_s

    def backlogs_s(self, queues: Sequence[EngineQueue]) -> list[float]:
        """Return what `backlog_s` returns for one image more in each of many queues, in one pass."""
        of_active = {other: other.cost.backlog_s(other.depth + other.reserved) for other in self._active}
        backlogs = sorted(of_active.values())
        sums = [0.0, *accumulate(backlogs)]
        expected = []
        for queue in queues:
            alone, own = queue.cost.backlog_s(1), queue.cost.backlog_s(queue.ahead(1) + 1)
            smaller = bisect_right(backlogs, own)
            shares = sums[smaller] + own * (len(backlogs) - smaller) - min(own, of_active.get(queue, 0.0))
            expected.append(alone + queue.wait_factor() * (own - alone + shares))
        return expected

    def _wait_s(self, queue: EngineQueue, images: int, client: Client | None) -> float:
        """Return the seconds of what waits now and will run before `images` more."""
        own = queue.cost.backlog_s(queue.ahead(images, client) + images)
        backlogs = (other.cost.backlog_s(other.depth + other.reserved) for other in self._active if other is not queue)
        return own - queue.cost.backlog_s(images) + sum(min(own, backlog) for backlog in backlogs)

    def began(self, queue: EngineQueue) -> None:
        """Count an image that is being decoded, and consider its queue."""
        super().began(queue)
        self._active.add(queue)

    def ended(self, queue: EngineQueue) -> None:
        """Count an image less that is being decoded, and stop considering its queue if the queue is empty."""
        super().ended(queue)
        self._forget_if_empty(queue)

    async def infer(self, queue: EngineQueue, image: PendingImage) -> Answer:
        """Enqueue a decoded image and return its answer. A cancelled caller leaves the queue."""
        assert isinstance(image.answer, asyncio.Future)
        self.enqueue(queue, image)
        try:
            answer: Answer = await image.answer
        except asyncio.CancelledError:
            self.withdraw(queue, image)
            raise
        return answer

    def enqueue(self, queue: EngineQueue, image: PendingImage) -> None:
        """Put an image into its queue, and start to run batches if a lane of the device is free."""
        if not queue.waiting:
            queue.share = max(queue.share, self._share)
        image.wait_s = max(0.0, self.free_at - self.clock()) + self._wait_s(queue, 1, image.client)
        queue.waiting.append(image)
        self._active.add(queue)
        if len(self._loops) < queue.engine.lanes:
            self._start()

    def withdraw(self, queue: EngineQueue, image: PendingImage) -> bool:
        """Remove an image from its queue; return False if the image was taken out already, to run or for its end."""
        try:
            queue.waiting.remove(image)
        except ValueError:
            return False
        self._forget_if_empty(queue)
        return True

    def _forget_if_empty(self, queue: EngineQueue) -> None:
        """Stop considering a queue that has become empty."""
        if not queue.depth:
            self._active.discard(queue)

    def _start(self) -> None:
        """Start a loop that runs batches."""
        self._loops.add(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        """Run batches until nothing waits, or until the next engine has no lane beside the batches that run."""
        try:
            while waiting := [queue for queue in self._active if queue.waiting]:
                queue = min(waiting, key=lambda queue: (queue.share, queue.waiting.first().since))
                if len(self._running) >= queue.engine.lanes:
                    break  # the loop of a running batch goes on
                if batch := self._next_batch(queue):
                    if len(self._loops) < queue.engine.lanes and any(other.waiting for other in waiting):
                        self._start()  # the engine before had fewer lanes
                    await self._run_batch(queue, batch)
                self._forget_if_empty(queue)
        finally:
            self._loops.discard(cast(asyncio.Task[None], asyncio.current_task()))

    def _next_batch(self, queue: EngineQueue) -> list[PendingImage]:
        """Take the next images that can still meet their deadlines; drop the rest before they cost device time."""
        now, until = max(self.clock(), self.free_at), inf  # a second lane computes when the first has done so
        batch: list[PendingImage] = []
        first = queue.waiting.first()
        if first.client is not SHADOWS:  # which let those pass who come after them
            queue.wait_factor.observe(first.wait_s, now - first.since)
        while queue.waiting and len(batch) < queue.cost.best_batch:
            image = queue.waiting.first()
            if image.deadline < now + queue.cost(1):
                settle(image, Late(LATE))
            elif batch and min(until, image.deadline) < now + queue.cost(len(batch) + 1):
                break
            else:
                until = min(until, image.deadline)
                batch.append(image)
            queue.waiting.popleft()
        return batch

    async def _run_batch(self, queue: EngineQueue, batch: list[PendingImage]) -> None:
        """Run a batch. If it raises, run its images one by one so that one bad image fails alone."""
        try:
            outcomes, started = await self._on_device(queue, batch)
        except Exception as error:
            if len(batch) == 1:
                settle(batch[0], error)
                return
            for image in batch:
                if image.deadline < self.clock() + queue.cost(1):
                    settle(image, Late(LATE))
                elif not image.answer.done():
                    await self._run_batch(queue, [image])
            return
        inference_ms = (self._freed_at - started) * 1000
        for image, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, RefusedJpeg):
                settle(image, outcome)
            else:
                settle(image, Answer(outcome, len(batch), (started - image.since) * 1000, inference_ms))

    async def _on_device(self, queue: EngineQueue, batch: list[PendingImage]) -> tuple[Iterable[Outcome], float]:
        """Run a batch and charge its time to the queue, even if it fails; return the outcomes and the start.

        Of two batches that overlap, the later one's time begins when the earlier one has ended. The times of different
        engines that overlap say little, so nothing is learned from them.
        """
        started, this = self.clock(), RunningBatch(queue, queue.cost(len(batch)))
        for other in self._running:
            if other.queue is not queue:
                other.mixed = this.mixed = True
        self._share = queue.share
        self.free_at = max(started, self.free_at) + this.cost_s
        self._running.append(this)
        try:
            outcomes = await self._run_on_device(
                Inputs(queue.engine, [image.picture for image in batch], queue.decoder)
            )
        finally:
            now = self.clock()
            took = now - max(started, self._freed_at)
            queue.share += took * (sum(1 / image.client.weight for image in batch) / len(batch))
            self._freed_at = now
            self._running.remove(this)
            self.free_at = now + sum(other.cost_s for other in self._running) if self._running else 0.0
        if not this.mixed:
            queue.cost.observe(len(batch), took)
        return outcomes, started
