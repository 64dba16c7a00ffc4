"""Scheduler of one device: a bounded queue per engine, batching, fair shares of device time, and deadlines."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Protocol, Self, cast

from engines.published.plain_jpeg import Sampling
from engines.runtimes.engine import Engine
from service.batches import Inputs, JpegDecoder, Logits, Outcome, Picture, RefusedJpeg, RunBatch, in_threads
from service.client_queue import ClientQueue
from service.clients import Client, current
from service.cost import BatchCost


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


LATE = "the image waited too long to be answered in time"


@dataclass(frozen=True)
class Answer:
    """Result of one image: logits (classes,), batch size, and milliseconds in queue and in inference."""

    logits: Logits
    batch_size: int
    queue_ms: float
    inference_ms: float


class Pending(Protocol):
    """Answer that somebody waits for, such as an asyncio.Future."""

    def done(self) -> bool:
        """Return True if the answer has been delivered, or if nobody waits any more."""

    def set_result(self, result: Answer, /) -> None:
        """Deliver the answer to whoever waits."""

    def set_exception(self, exception: Exception, /) -> None:
        """Deliver an error to whoever waits."""


@dataclass(eq=False)
class PendingImage:
    """Image in a queue, with its arrival time and deadline in seconds on the scheduler's clock.

    `decode_ms` is the time that decoding the image took, `start` its place in the shares of all clients.
    """

    picture: Picture
    since: float
    deadline: float
    answer: Pending
    decode_ms: float = 0.0
    client: Client = field(default_factory=current.get)
    start: float = 0.0


@dataclass(eq=False)
class EngineQueue:
    """Queue of one engine.

    `waiting` holds decoded images, and JPEGs for the device's `decoder`; `decoding` counts admitted images that are
    still being decoded. `users` counts the requests that hold the queue, from before their bodies are read until they
    are answered. `share` is the device time that the queue has used, in seconds over the weights of the clients; time
    that it left unused while nothing waited is not kept for it.
    """

    engine: Engine
    cost: BatchCost
    decoder: JpegDecoder | None = None
    waiting: ClientQueue[PendingImage] = field(default_factory=ClientQueue)
    decoding: int = 0
    users: int = 0
    share: float = 0.0

    @property
    def depth(self) -> int:
        """Number of admitted images that have not started to run."""
        return len(self.waiting) + self.decoding

    @property
    def reserved(self) -> int:
        """Number of images that wait for earlier images of their request."""
        return self.waiting.reserved

    def ahead(self, images: int, client: Client | None = None) -> int:
        """Return the number of images before those of a new request; a single image passes the reserved ones.

        Of a request of `client`, the images count that will run before; without a client all of them.
        """
        if client:
            return self.decoding + self.waiting.ahead(client, images)
        return self.depth if images == 1 else self.depth + self.reserved

    @property
    def samplings(self) -> frozenset[Sampling]:
        """Samplings of the plain JPEGs that the device decodes."""
        return self.decoder.samplings if self.decoder else frozenset()

    @contextmanager
    def in_use(self) -> Iterator[EngineQueue]:
        """Keep the engine loaded while the context is open."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1


class Admission(ABC):
    """Admission of images to queues, which refuses an image that could not be answered by its deadline."""

    def __init__(self, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock  # the event loop's clock, but uvloop's own counts whole milliseconds
        self.max_waiting = max_waiting

    @abstractmethod
    def expected_answer_s(self, queue: EngineQueue, images: int = 1) -> float:
        """Return the seconds until a new request of `images` for this queue would be answered."""

    @abstractmethod
    async def infer(self, queue: EngineQueue, image: PendingImage) -> Answer:
        """Return the answer to a decoded image. A cancelled caller leaves the queue."""

    def check(self, queue: EngineQueue, deadline: float, decoder_wait_s: float = 0.0, images: int = 1) -> None:
        """Raise Overloaded if a new request of `images` would miss `deadline`, or if there is no room for them.

        Each client has a part of the queue's places; a client without any other image there has room for one request
        however small the part. `decoder_wait_s` is the expected wait for a free decoder thread, in seconds.
        """
        left = deadline - self.clock()
        expected = decoder_wait_s + self.expected_answer_s(queue, images)
        if expected > left:
            queue.cost.forget(self.clock())
            reason = f"an answer would take {1000 * expected:.0f} ms, of which {1000 * max(0.0, left):.0f} ms are left"
            raise Overloaded(reason, queue.depth, expected - left)
        client, ahead = current.get(), queue.ahead(images)
        own, reason = queue.waiting.of(client, images), ""
        if ahead + images > self.max_waiting:
            reason = f"{ahead} images wait already"
        elif own + images > max(images, client.part * self.max_waiting):
            reason = f"{own} images of this client wait already"
        if reason:
            raise Overloaded(reason, ahead, queue.cost.backlog_s(queue.cost.best_batch))

    def admit(self, queue: EngineQueue, deadline: float, decoder_wait_s: float = 0.0) -> QueuePlace:
        """Reserve a place for an image that is about to be decoded. Raises Overloaded as `check` does."""
        self.check(queue, deadline, decoder_wait_s)
        return QueuePlace(self, queue, deadline)

    def reserve(self, queue: EngineQueue, client: Client, images: int) -> None:
        """Note that `images` more, or fewer, of a client wait for earlier images of their request."""
        queue.waiting.reserve(client, images)

    def began(self, queue: EngineQueue) -> None:
        """Note that the decoding of an image for this queue has begun."""
        queue.decoding += 1

    def ended(self, queue: EngineQueue) -> None:
        """Note that the decoding of an image for this queue has ended."""
        queue.decoding -= 1


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
        own = queue.cost.backlog_s(queue.ahead(images, client) + images)
        backlogs = (other.cost.backlog_s(other.depth + other.reserved) for other in self._active if other is not queue)
        return own + sum(min(own, backlog) for backlog in backlogs)

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


class QueuePlace:
    """Reserved place of one image in a queue, and a context manager that releases the place at its end."""

    def __init__(self, admission: Admission, queue: EngineQueue, deadline: float) -> None:
        self.queue = queue
        self._admission, self._deadline, self._decoding = admission, deadline, False

    def __enter__(self) -> Self:
        if not self._decoding:
            self._decoding = True
            self._admission.began(self.queue)
        return self

    def __exit__(self, *_: object) -> None:
        if self._decoding:
            self._decoding = False
            self._admission.ended(self.queue)

    async def infer(self, picture: Picture, decode_ms: float = 0.0) -> Answer:
        """Return the answer to one image. Raises Late if its deadline passes, RefusedJpeg if no device decodes it."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        image = PendingImage(picture, self._admission.clock(), self._deadline, answer, decode_ms)
        cost = self.queue.cost
        image.client.charge(cost(cost.best_batch) / cost.best_batch, image.since)
        self.__exit__()
        return await self._admission.infer(self.queue, image)


class QueuePlaces:
    """Places of one request's images, reserved in a context manager, which releases those that no image has taken."""

    def __init__(self, admission: Admission, queue: EngineQueue, deadline: float, images: int) -> None:
        self._admission, self._queue, self._deadline, self._left = admission, queue, deadline, images
        self._client = current.get()

    def __enter__(self) -> Self:
        self._admission.reserve(self._queue, self._client, self._left)
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.reserve(self._queue, self._client, -self._left)
        self._left = 0

    def take(self) -> QueuePlace:
        """Return the place of the next image, which is about to be decoded."""
        self._left -= 1
        self._admission.reserve(self._queue, self._client, -1)
        return QueuePlace(self._admission, self._queue, self._deadline)


def settle(image: PendingImage, outcome: Answer | Exception) -> None:
    """Deliver a result or an error to whoever waits for the image, if anyone still does."""
    if image.answer.done():
        return
    if isinstance(outcome, Exception):
        image.answer.set_exception(outcome)
    else:
        image.answer.set_result(outcome)
