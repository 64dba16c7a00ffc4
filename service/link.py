"""Connection of a front to one device process: images to their slots, answers back, and calls."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from service.admission import LATE, Answer, Late, Overloaded, PendingImage
from service.batches import Jpeg, RefusedJpeg
from service.errors import Problem
from service.frames import ANSWER, CANCEL, HELLO, HELLO_S, IMAGE, JPEG, AnswerStatus, FramedProtocol, Kind, unpacked
from service.slots import Expectations, Slots, anonymous

logger = logging.getLogger("bentoml.convserve")


class NoEngine(Exception):
    """Raised for an image whose engine the device process has unloaded."""


def gone() -> Problem:
    """Return problem 503 `device_gone`, of a request whose device process has ended or has not begun yet."""
    detail = "the device process is being started"
    return Problem(503, "device_gone", detail, headers={"Retry-After": "1"})


class DeviceLink(FramedProtocol):
    """Connection to one device process, with the slots of this front. A new connection has new slots."""

    def __init__(self, slots: Slots, table: Expectations, column: int, changed: Callable[[], None]) -> None:
        """Use the slots and a column of the device's table; `changed` is called when the device's state changes."""
        super().__init__()
        self._slots, self.table, self.column, self._changed = slots, table, column, changed
        self._free = list(range(slots.count))  # the last freed first: a slot keeps the memory that it once needed
        self._generations = [0] * slots.count
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count(1)
        self.state: dict[str, Any] | None = None
        self.lost = asyncio.Event()

    @property
    def free(self) -> int:
        """Number of slots that no image occupies."""
        return len(self._free)

    async def infer(self, number: int, image: PendingImage) -> Answer:
        """Return the answer to an image by the engine of a number.

        Raises Overloaded if no slot is free, Late if the deadline passes, RefusedJpeg if Pillow must decode the image,
        NoEngine if the engine has been unloaded, and Problem 503 if the device process ends.
        """
        if self.lost.is_set():
            raise gone()
        picture = image.picture
        size = len(picture.body) if isinstance(picture, Jpeg) else picture.nbytes
        if size > self._slots.size:
            if isinstance(picture, Jpeg):
                raise RefusedJpeg
            raise Problem(503, "not_loadable", f"an image of {size:,} bytes is larger than a slot: restart the server")
        if not self._free:
            raise Overloaded(f"{self._slots.count} images wait already", self._slots.count, 1.0)
        slot = self._free.pop()
        self._slots.put(slot, picture)
        generation = self._generations[slot] = self._generations[slot] + 1 & 0xFFFFFFFF
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[slot] = answer
        place = slot, generation, number, image.client.number
        if isinstance(picture, Jpeg):
            record = JPEG.pack(*place, size, image.deadline, image.decode_ms)
            self.send_record(Kind.JPEGS, record)
        else:
            record = IMAGE.pack(*place, *picture.shape, image.deadline, image.decode_ms)
            self.send_record(Kind.IMAGES, record)
        try:
            return await answer
        except asyncio.CancelledError:  # the slot is free once the device process has answered
            self.send_record(Kind.CANCELS, CANCEL.pack(slot, generation))
            raise

    async def call(self, name: str, *arguments: Any) -> Any:
        """Return the result of a call. Raises Problem, also if the device process ends."""
        if self.lost.is_set():
            raise gone()
        number = next(self._numbers)
        reply = self._calls[number] = asyncio.get_running_loop().create_future()
        self.send_json(Kind.CALL, {"id": number, "name": name, "arguments": arguments})
        try:
            return await reply
        finally:
            self._calls.pop(number, None)

    def frame_received(self, kind: Kind, payload: bytes) -> None:
        """Deliver answers and replies, and note the state of the engines."""
        match kind:
            case Kind.ANSWERS:
                for record in ANSWER.iter_unpack(payload):
                    self._deliver(*record)
            case Kind.STATE:
                self.state = json.loads(payload)
                self._changed()
            case _:
                message = json.loads(payload)
                reply = self._calls.get(message["id"])
                if reply and not reply.done():
                    if "problem" in message:
                        reply.set_exception(unpacked(message["problem"]))
                    else:
                        reply.set_result(message["result"])

    def _deliver(
        self, slot: int, generation: int, outcome: int, classes: int, batch: int, queue_ms: float, inference_ms: float
    ) -> None:
        """Free a slot and deliver its outcome to whoever waits, if anyone still does."""
        if generation != self._generations[slot] or slot not in self._waiting:
            logger.error("slot %d: an answer to another image was dropped", slot)
            return
        answer = self._waiting.pop(slot)
        logits = self._slots.logits(slot, classes) if outcome == AnswerStatus.OK and not answer.done() else None
        self._free.append(slot)
        if answer.done():
            return
        match outcome:
            case AnswerStatus.OK:
                assert logits is not None
                answer.set_result(Answer(logits, batch, queue_ms, inference_ms))
            case AnswerStatus.LATE:
                answer.set_exception(Late(LATE))
            case AnswerStatus.REFUSED:
                answer.set_exception(RefusedJpeg())
            case AnswerStatus.NO_ENGINE:
                answer.set_exception(NoEngine())
            case _:
                answer.set_exception(RuntimeError("the engine failed; the log of the device process has the error"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail everything that waits for the device process."""
        self.lost.set()
        for waiting in (*self._waiting.values(), *self._calls.values()):
            if not waiting.done():
                waiting.set_exception(gone())
        self._changed()


async def linked(path: Path, slots: int, slot_bytes: int, changed: Callable[[], None]) -> DeviceLink:
    """Connect to a device process. Raises OSError if the process does not listen."""
    descriptor = anonymous(slots * slot_bytes)
    connection = socket.socket(socket.AF_UNIX)
    try:
        hello = HELLO.pack(slots, slot_bytes)
        table, column = await asyncio.to_thread(greet, connection, path, descriptor, hello)
        own = Slots(descriptor, slots, slot_bytes)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: DeviceLink(own, table, column, changed), sock=connection)
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(descriptor)
    return link


def greet(connection: socket.socket, path: Path, descriptor: int, hello: bytes) -> tuple[Expectations, int]:
    """Exchange descriptors of shared memory with a device process; return the process's table and a column of it."""
    connection.settimeout(HELLO_S)
    connection.connect(str(path))
    socket.send_fds(connection, [hello], [descriptor])
    reply, descriptors, _, _ = socket.recv_fds(connection, HELLO.size, 1)
    if not descriptors:
        raise ConnectionError("the device process did not say hello")
    try:
        return Expectations(descriptors[0]), HELLO.unpack(reply)[0]
    finally:
        os.close(descriptors[0])
        connection.setblocking(False)
