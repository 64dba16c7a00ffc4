"""Admission of images to the queues of engines, and the places that admitted images hold."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from typing import Protocol, Self

from engines.published.plain_jpeg import Sampling
from engines.runtimes.engine import Engine
from service.batches import JpegDecoder, Logits, Picture
from service.client_queue import ClientQueue
from service.clients import Client, current
from service.cost import BatchCost, WaitFactor


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

    `decode_ms` is the time that decoding the image took, NaN if the image is none of a request's own and counts in no
    latencies; `start` its place in the shares of all clients, `wait_s` the seconds that it was predicted to wait.
    """

    picture: Picture
    since: float
    deadline: float
    answer: Pending
    decode_ms: float = nan
    client: Client = field(default_factory=current.get)
    start: float = 0.0
    wait_s: float = 0.0


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
    wait_factor: WaitFactor = field(default_factory=WaitFactor)

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

    async def infer(self, picture: Picture, decode_ms: float = nan) -> Answer:
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
