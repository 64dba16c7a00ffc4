"""Server of the fronts in a device process: images from their slots to the scheduler, answers back, by the batch."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

from service.admission import Answer, EngineQueue, Late, PendingImage
from service.batches import Picture, RefusedJpeg
from service.catalog import Catalog
from service.clients import NOBODY, SHADOWS, Client
from service.device import LocalDevice
from service.errors import Problem
from service.frames import ANSWER, CANCEL, HELLO, HELLO_S, IMAGE, JPEG, AnswerStatus, FramedProtocol, Kind, packed
from service.loading import ServedModel, Slot
from service.slots import FRONTS, ROWS, Expectations, Slots, anonymous

GRACE_S = 2.0  # for which an unloaded engine answers fronts that have not heard yet
logger = logging.getLogger("bentoml.convserve")


class LoadedEngine(NamedTuple):
    """Loaded engine as the fronts know the engine: a number that is never used again, and a row of the table."""

    number: int
    row: int
    tag: str
    slot: Slot
    queue: EngineQueue


class DeviceProcess:
    """Server on a Unix socket for the fronts of one device."""

    def __init__(
        self, device: LocalDevice, catalog: Catalog, path: Path, fronts: int = 1, clients: Sequence[Client] = (NOBODY,)
    ) -> None:
        """Listen at `path` for a number of fronts. Until all have been connected the process is not ready.

        `clients` are those of the settings, by their numbers.
        """
        self.clients = clients
        self.device, self.catalog, self.path, self._expected_fronts = device, catalog, path, fronts
        self._table_descriptor = anonymous(Expectations.SIZE)
        self.table = Expectations(self._table_descriptor)
        self.engines: dict[int, LoadedEngine] = {}
        self._numbers = count(1)
        self._unloaded: set[int] = set()  # numbers of engines that are kept for images on their way
        self._rows = list(range(ROWS))
        self.columns = list(range(FRONTS))
        self.fronts: set[FrontConnection] = set()
        self.deserted = asyncio.Event()  # set while no front is connected
        self.deserted.set()
        self.pending = 0  # images of all fronts
        self._paused = ExitStack()  # entered while an image is pending
        self._told = self._expected = False  # the fronts will learn of it in this turn of the event loop
        catalog.loader.changed = self.tell_soon

    async def serve(self) -> None:
        """Accept fronts. Never returns."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listening:
            self.path.unlink(missing_ok=True)  # of a device process before this one
            listening.bind(str(self.path))
            listening.listen()
            listening.setblocking(False)
            while True:
                connection, _ = await loop.sock_accept(listening)
                column = self.columns.pop()
                try:
                    slots = await asyncio.to_thread(self._greet, connection, column)
                    await loop.connect_accepted_socket(
                        lambda: FrontConnection(self, slots, column),  # noqa: B023
                        connection,
                    )
                except Exception as error:  # a front may end at any point of its hello
                    logger.warning("a front did not say hello: %s", error)
                    connection.close()
                    self.columns.append(column)

    def _greet(self, connection: socket.socket, column: int) -> Slots:
        """Exchange descriptors of shared memory with a front, and return the front's slots."""
        connection.settimeout(HELLO_S)
        hello, descriptors, _, _ = socket.recv_fds(connection, HELLO.size, 1)
        try:
            slots = Slots(descriptors[0], *HELLO.unpack(hello))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        socket.send_fds(connection, [HELLO.pack(column, Expectations.SIZE)], [self._table_descriptor])
        connection.setblocking(False)
        return slots

    def connected(self, front: FrontConnection) -> None:
        """Note that a front has connected, and tell all fronts the state."""
        self.fronts.add(front)
        self.deserted.clear()
        if len(self.fronts) >= self._expected_fronts:
            self._expected_fronts = 0
        self.tell()

    def tell_soon(self) -> None:
        """Tell all fronts the state of the engines, once in this turn of the event loop."""
        if not self._told:
            self._told = True
            asyncio.get_running_loop().call_soon(self.tell)

    def tell(self) -> None:
        """Tell all fronts the state of the engines."""
        self._told = False
        state = self.state()
        for front in self.fronts:
            front.send_json(Kind.STATE, state)

    def state(self) -> dict[str, Any]:
        """Return the state of all models; engines that are loaded have their number and row."""
        loaded = {engine.queue: engine for engine in self.engines.values()}
        current = {
            slot.queue: (tag, slot)
            for tag, model in self.catalog.models.items()
            for slot in model.slots.values()
            if slot.queue
        }
        for queue in loaded.keys() - current.keys():
            engine = loaded.pop(queue)
            if engine.number not in self._unloaded:
                self._unloaded.add(engine.number)
                asyncio.get_running_loop().call_later(GRACE_S, self._drop, engine)
        for queue in current.keys() - loaded.keys():
            engine = LoadedEngine(next(self._numbers), self._rows.pop(), *current[queue], queue)
            self.engines[engine.number] = loaded[queue] = engine
            self.expect(engine)
        return {
            "problem": self.device.problem or ("fronts are being started" if self._expected_fronts else None),
            "left": self.device.left(),
            "models": {
                tag: {
                    "proven": model.proven,
                    "tuning": self.device.tuning(model).model_dump(),
                    "slots": {precision or "": slot_state(slot, loaded) for precision, slot in model.slots.items()},
                }
                for tag, model in self.catalog.models.items()
            },
        }

    def _drop(self, engine: LoadedEngine) -> None:
        """Forget an engine that was unloaded; images on their way to the engine have been answered."""
        del self.engines[engine.number]
        self._unloaded.discard(engine.number)
        self.table.forget(row=engine.row)
        self._rows.append(engine.row)

    def expect_soon(self) -> None:
        """Write what is expected of all engines into the table, once in this turn of the event loop.

        The backlog of one engine delays all others.
        """
        if not self._expected:
            self._expected = True
            asyncio.get_running_loop().call_soon(self._expect_all)

    def _expect_all(self) -> None:
        self._expected = False
        self.expect(*self.engines.values())

    def expect(self, *engines: LoadedEngine) -> None:
        """Write what is expected of engines into the table."""
        scheduler = self.device.scheduler
        backlogs_s = scheduler.backlogs_s([engine.queue for engine in engines])
        for engine, backlog_s in zip(engines, backlogs_s, strict=True):
            queue, cost = engine.queue, engine.queue.cost
            self.table.put(engine.row, len(queue.waiting), backlog_s, cost(1), cost(cost.best_batch))
        self.table.free_at = scheduler.free_at

    def began(self) -> None:
        """Count an image more; while there is one, self-tuning is stopped."""
        if not self.pending:
            self._paused.enter_context(self.device.request())
        self.pending += 1

    def ended(self) -> None:
        """Count an image less, of those that are pending."""
        self.pending -= 1
        if not self.pending:
            self._paused.close()

    async def call(self, name: str, arguments: list[Any]) -> Any:
        """Return the result of a call of a front. Raises Problem as the device does."""
        handlers: dict[str, Callable[..., Any]] = {
            "queue": self._queue,
            "unload": self._unload,
            "recent": self._recent,
            "forget": self._forget,
        }
        return await handlers[name](*arguments)

    async def _model(self, tag: str) -> ServedModel:
        """Return a published model, which a front may have seen first. Raises Problem 503 if there is none."""
        if tag not in self.catalog.models and not await self.catalog.rescan():
            await asyncio.sleep(1)
            await self.catalog.rescan()
        try:
            return self.catalog.models[tag]
        except KeyError:
            detail = f"{tag} is not known to the device process yet"
            raise Problem(503, "not_loadable", detail, headers={"Retry-After": "1"}) from None

    async def _queue(self, tag: str, precision: str | None) -> int:
        """Load an engine if necessary, tell the fronts, and return the engine's number."""
        queue = await self.device.queue(await self._model(tag), precision)
        self.tell()
        for engine in self.engines.values():
            if engine.queue is queue:
                return engine.number
        raise Problem(503, "not_loadable", f"{tag} was unloaded meanwhile", headers={"Retry-After": "1"})

    async def _unload(self, tag: str) -> None:
        await self.device.unload(await self._model(tag))
        self.tell()

    async def _recent(self, tag: str) -> list[tuple[float, ...]]:
        return self.device.latencies.of(tag)

    async def _forget(self, number: int) -> None:
        if engine := self.engines.get(number):
            engine.queue.cost.forget(self.device.scheduler.clock())
            self.expect(engine)


def slot_state(slot: Slot, loaded: dict[EngineQueue, LoadedEngine]) -> dict[str, Any]:
    """Return the state of one engine of a model."""
    state: dict[str, Any] = {"status": slot.status, "error": slot.error}
    if queue := slot.queue:
        engine = loaded[queue]
        state |= {
            "engine": engine.number,
            "row": engine.row,
            "memory_mb": slot.memory_mb,
            "runtime": queue.engine.runtime,
            "precision": queue.engine.precision,
            "best_batch": queue.cost.best_batch,
            "uncorrected_s": queue.cost.uncorrected_s,
            "samplings": sorted(queue.samplings),
        }
    return state


class SlotAnswer:
    """Answer to the image in a slot of a front; delivered by a record, with the logits in the slot."""

    __slots__ = ("_front", "engine", "generation", "image", "settled", "slot")

    def __init__(self, front: FrontConnection, engine: LoadedEngine, slot: int, generation: int) -> None:
        self._front, self.engine, self.slot, self.generation = front, engine, slot, generation
        self.image: PendingImage | None = None
        self.settled = False

    def done(self) -> bool:
        """Return True if the answer has been delivered, or if the front has gone."""
        return self.settled

    def set_result(self, result: Answer, /) -> None:
        """Write the logits into the slot and tell the front."""
        self._front.slots.put_logits(self.slot, result.logits)
        assert self.image
        if not isnan(self.image.decode_ms):
            stages = (self.image.decode_ms, result.queue_ms, result.inference_ms)
            self._front.process.device.latencies.add(self.engine.tag, stages)
        self._front.settle(self, AnswerStatus.OK, len(result.logits), result)

    def set_exception(self, exception: Exception, /) -> None:
        """Tell the front that the image was late, that Pillow must decode the image, or that the engine failed."""
        match exception:
            case Late():
                status = AnswerStatus.LATE
            case RefusedJpeg():
                status = AnswerStatus.REFUSED
            case _:
                status = AnswerStatus.FAILED
                logger.error("%s cannot classify an image", self.engine.tag, exc_info=exception)
        self._front.settle(self, status)


class FrontConnection(FramedProtocol):
    """Connection of one front, with its slots and its pending images."""

    def __init__(self, process: DeviceProcess, slots: Slots, column: int) -> None:
        super().__init__()
        self.process, self.slots, self._column = process, slots, column
        self._pending: dict[int, SlotAnswer] = {}  # by slot
        self._calls: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the fronts of the device process."""
        super().connection_made(transport)
        self.process.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Withdraw the images of a front that has gone."""
        self.process.fronts.discard(self)
        logger.info("a front has ended or stopped; %d are connected", len(self.process.fronts))
        if not self.process.fronts:
            self.process.deserted.set()
        for answer in list(self._pending.values()):
            self._withdraw(answer)
            self._release(answer)
        self.process.table.forget(column=self._column)
        self.process.columns.append(self._column)
        self.process.expect_soon()
        for call in self._calls:
            call.cancel()

    def frame_received(self, kind: Kind, payload: bytes) -> None:
        """Enqueue images, withdraw images, or answer a call."""
        match kind:
            case Kind.IMAGES:
                for slot, generation, number, client, *shape, deadline, decode_ms in IMAGE.iter_unpack(payload):
                    pixels = self.slots.pixels(slot, tuple(shape))
                    self._enqueue(slot, generation, number, client, pixels, deadline, decode_ms)
            case Kind.JPEGS:
                for slot, generation, number, client, length, deadline, decode_ms in JPEG.iter_unpack(payload):
                    jpeg = self.slots.jpeg(slot, length)
                    self._enqueue(slot, generation, number, client, jpeg, deadline, decode_ms)
            case Kind.CANCELS:
                for slot, generation in CANCEL.iter_unpack(payload):
                    answer = self._pending.get(slot)
                    if answer and answer.generation == generation and self._withdraw(answer):
                        self.settle(answer, AnswerStatus.CANCELLED)
            case _:
                task = asyncio.create_task(self._answer(payload))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    def _enqueue(
        self, slot: int, generation: int, number: int, client: int, picture: Picture, deadline: float, decode_ms: float
    ) -> None:
        """Enqueue an image, and write what is expected of the engines from now on."""
        engine = self.process.engines.get(number)
        if engine is None:
            self.send_record(Kind.ANSWERS, ANSWER.pack(slot, generation, AnswerStatus.NO_ENGINE, 0, 0, 0, 0))
            return
        scheduler = self.process.device.scheduler
        now = scheduler.clock()
        answer = SlotAnswer(self, engine, slot, generation)
        whose = SHADOWS if client == SHADOWS.number else self.process.clients[client]
        answer.image = PendingImage(picture, now, deadline, answer, decode_ms, whose)
        self._pending[slot] = answer
        engine.queue.users += 1
        engine.slot.used_at = now
        self.process.began()
        scheduler.enqueue(engine.queue, answer.image)
        self.process.expect_soon()

    def _withdraw(self, answer: SlotAnswer) -> bool:
        """Take an image out of its queue; return False if the image is running."""
        assert answer.image
        return self.process.device.scheduler.withdraw(answer.engine.queue, answer.image)

    def settle(self, answer: SlotAnswer, outcome: AnswerStatus, classes: int = 0, result: Answer | None = None) -> None:
        """Tell the front the outcome of an image."""
        self._release(answer)
        figures = (result.batch_size, result.queue_ms, result.inference_ms) if result else (0, 0.0, 0.0)
        self.send_record(Kind.ANSWERS, ANSWER.pack(answer.slot, answer.generation, outcome, classes, *figures))

    def _release(self, answer: SlotAnswer) -> None:
        """Forget an image that has been settled, or whose front has gone."""
        answer.settled, answer.image = True, None  # which refers to the answer in turn
        del self._pending[answer.slot]
        answer.engine.queue.users -= 1
        self.process.ended()

    def _flush(self, kind: Kind) -> None:
        super()._flush(kind)
        self.process.expect_soon()

    async def _answer(self, payload: bytes) -> None:
        """Answer a call with its result or its problem."""
        call = json.loads(payload)
        number, name, arguments = call["id"], call["name"], call["arguments"]
        try:
            reply = {"id": number, "result": await self.process.call(name, arguments)}
        except Problem as problem:
            reply = {"id": number, "problem": packed(problem)}
        except Exception:
            logger.exception("cannot %s", name)
            reply = {"id": number, "problem": packed(Problem(500, "internal_error", "the device process failed"))}
        self.send_json(Kind.REPLY, reply)
