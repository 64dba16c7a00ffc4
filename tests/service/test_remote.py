"""Tests of a front and a device process in one event loop: every image gets its own answer, and slots come back."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.published.maps import MAPS
from engines.published.store import PublishedModel
from service import device_process
from service.admission import Late, Overloaded, PendingImage
from service.batches import Jpeg
from service.clients import SHADOWS, current
from service.context import ServerContext, make_context, make_front
from service.device import LocalDevice
from service.device_process import DeviceProcess
from service.errors import Problem
from service.frames import AnswerStatus
from service.link import DeviceLink
from service.loading import Slot
from service.remote import RemoteDevice, RemoteQueue
from service.settings import Settings
from service.slots import SLOT_BYTES, Expectations, Slots, anonymous
from tests.service.stubs import StubEngine, put

pytestmark = pytest.mark.anyio
WAITING = 64


class EchoEngine(StubEngine):
    """Engine whose first logit is the number in an image's first pixels; waits `seconds` for each batch."""

    seconds = 0.0
    error: Exception | None = None

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        logits = np.zeros((len(pixels), 10), np.float32)
        logits[:, 0] = pixels[:, 0, :3, 0].astype(np.float32) @ [1, 256, 65536]
        return logits


def numbered(number: int) -> NDArray[np.uint8]:
    """Return an image whose first pixels are a number."""
    image = np.zeros((4, 4, 1), np.uint8)
    image[0, :3, 0] = number & 255, number >> 8 & 255, number >> 16
    return image


@dataclass
class Split:
    """Front and device process, and one model's engine."""

    front: ServerContext
    device: ServerContext
    process: DeviceProcess
    engine: EchoEngine
    tag: str
    serving: asyncio.Task[None]

    @property
    def link(self) -> DeviceLink:
        return cast(RemoteDevice, self.front.device).links[0]

    async def ask(self, number: int, within_s: float = 30.0) -> float:
        """Return the echo of an image's number, by way of the device process."""
        queue = await self.front.device.queue(self.front.catalog.models[self.tag])
        with self.front.scheduler.admit(queue, time.monotonic() + within_s) as place:
            return float((await place.infer(numbered(number))).logits[0])

    async def free(self, slots: int) -> None:
        """Wait until so many slots of the front are free, and nothing is pending."""
        async with asyncio.timeout(5):
            while self.link.free != slots or self.process.pending:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def split(tag: str, path: Path) -> AsyncIterator[Split]:
    """Yield a front that has connected to a device process."""
    settings = Settings(load="first_use", tune="off", max_waiting=WAITING)
    device = make_context(settings)
    engine = EchoEngine()
    put(device, tag, engine)
    process = DeviceProcess(cast(LocalDevice, device.device), device.catalog, path / "d.sock")
    front = make_front(settings, [process.path], path)
    serving = asyncio.create_task(process.serve())
    tasks = [serving, asyncio.create_task(device.device.run()), asyncio.create_task(front.device.run())]
    try:
        async with asyncio.timeout(5):
            while front.device.problem:
                await asyncio.sleep(0.01)
        yield Split(front, device, process, engine, tag, serving)
    finally:
        for task in tasks:
            task.cancel()


async def test_thousands_of_cancelled_requests_never_get_answers_to_others(three: list[str], tmp_path: Path) -> None:
    chance = random.Random(0)
    wrong, outcomes = [], {"answered": 0, "cancelled": 0, "refused": 0}
    async with split(three[0], tmp_path) as both:

        async def client(first: int) -> None:
            for number in range(first, first + 100):
                request = asyncio.create_task(both.ask(number))
                if chance.random() < 0.5:
                    for _ in range(chance.randrange(12)):
                        await asyncio.sleep(0)
                    await asyncio.sleep(chance.choice((0, 0, 0.001)))
                    request.cancel()
                try:
                    if await request != number:
                        wrong.append(number)
                    outcomes["answered"] += 1
                except asyncio.CancelledError:
                    outcomes["cancelled"] += 1
                except Overloaded:
                    outcomes["refused"] += 1

        await asyncio.gather(*(client(1000 * number) for number in range(50)))
        await both.free(WAITING)
    assert not wrong
    assert outcomes["answered"] > 1000, outcomes
    assert outcomes["cancelled"] > 1000, outcomes


async def test_only_decoded_pictures_count_in_the_latencies(three: list[str], tmp_path: Path) -> None:
    async with split(three[0], tmp_path) as both:
        model = both.front.catalog.models[both.tag]
        await both.ask(7)  # which has no time of decoding
        queue = await both.front.device.queue(model)
        with both.front.scheduler.admit(queue, time.monotonic() + 30) as place:
            await place.infer(numbered(8), 0.5)
        assert [stages[0] for stages in await both.front.device.recent(model)] == [0.5]


async def test_images_of_shadows_give_way_in_the_device_process_too(three: list[str], tmp_path: Path) -> None:
    async with split(three[0], tmp_path) as both:
        both.engine.seconds = 0.2

        async def of_a_shadow() -> float:
            current.set(SHADOWS)
            return await both.ask(7)

        asking = asyncio.create_task(of_a_shadow())
        async with asyncio.timeout(5):
            while not both.process.pending:
                await asyncio.sleep(0.01)
        (front,) = both.process.fronts
        (pending,) = front._pending.values()
        assert pending.image
        assert pending.image.client is SHADOWS
        assert await asking == 7


async def test_slots_are_bounded_and_come_back_late_failed_or_answered(three: list[str], tmp_path: Path) -> None:
    async with split(three[0], tmp_path) as both:
        both.engine.seconds = 0.05
        requests = [asyncio.create_task(both.ask(number)) for number in range(3 * WAITING)]
        done = await asyncio.gather(*requests, return_exceptions=True)
        answered = [number for number, value in enumerate(done) if value == number]
        assert len(answered) >= WAITING
        assert all(isinstance(value, Overloaded) for number, value in enumerate(done) if number not in answered)
        await both.free(WAITING)
        both.engine.seconds = 0.3
        first = asyncio.create_task(both.ask(1))
        await asyncio.sleep(0.05)
        with pytest.raises((Late, Overloaded)):
            await both.ask(2, within_s=0.1)
        assert await first == 1
        both.engine.error = RuntimeError("broken")
        with pytest.raises(RuntimeError, match="the engine failed"):
            await both.ask(3)
        both.engine.error, both.engine.seconds = None, 0.0
        await both.free(WAITING)
        assert await both.ask(4) == 4


async def test_the_slots_take_the_memory_of_the_images_in_flight_only(tmp_path: Path) -> None:
    descriptor = anonymous(WAITING * SLOT_BYTES)
    slots = Slots(descriptor, WAITING, SLOT_BYTES)
    link = DeviceLink(slots, Expectations(anonymous(Expectations.SIZE)), 0, lambda: None)
    for _ in range(3 * WAITING):
        image = PendingImage(Jpeg(bytes(1 << 20)), 0.0, 0.0, asyncio.get_running_loop().create_future())
        infer = asyncio.create_task(link.infer(1, image))
        await asyncio.sleep(0)
        (slot,) = link._waiting
        link._deliver(slot, link._generations[slot], AnswerStatus.LATE, 0, 0, 0, 0)
        with pytest.raises(Late):
            await infer
    assert os.fstat(descriptor).st_blocks * 512 <= 2 << 20
    os.close(descriptor)


async def test_an_engine_that_was_unloaded_meanwhile_is_loaded_again(
    lenet5: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_process, "GRACE_S", 0.05)
    async with split(lenet5.manifest.tag, tmp_path) as both:
        front = both.front.device
        model = both.front.catalog.models[both.tag]
        queue = await front.queue(model)
        both.device.catalog.models[both.tag].slots[None] = Slot()  # no message has told the front yet
        both.process.state()
        await asyncio.sleep(device_process.GRACE_S)
        with both.front.scheduler.admit(queue, time.monotonic() + 30) as place:
            answer = await place.infer(np.zeros((32, 32, 1), np.uint8))
        assert answer.logits.shape == (10,)
        await front.unload(model)
        assert both.front.catalog.models[both.tag].chosen.status == "published"


async def test_an_engine_of_another_precision_never_stands_in(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unloaded_again(*_: object) -> None:
        pass

    async with split(three[0], tmp_path) as both:
        monkeypatch.setattr(both.front.device, "_load", unloaded_again)
        model = both.front.catalog.models[both.tag]
        with pytest.raises(Problem) as problem:
            await both.front.device.queue(model, MAPS)
        assert problem.value.code == "device_gone"
        assert (await both.front.device.queue(model)).engine.precision == both.engine.precision


async def test_a_front_that_has_gone_leaves_nothing_and_a_device_that_has_gone_fails_what_waits(
    three: list[str], tmp_path: Path
) -> None:
    async with split(three[0], tmp_path) as both:
        both.engine.seconds = 0.2
        waiting = [asyncio.create_task(both.ask(number)) for number in range(WAITING // 2)]
        await asyncio.sleep(0.1)
        lost = both.link
        assert lost.transport
        lost.transport.abort()
        for problem in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(problem, Problem)
            assert (problem.status, problem.code) == (503, "device_gone")
            assert problem.headers == {"Retry-After": "1"}
        assert not both.process.pending
        both.engine.seconds = 0.0
        async with asyncio.timeout(5):
            while both.front.device.problem:
                await asyncio.sleep(0.01)
        assert both.link is not lost
        assert await both.ask(7) == 7
        await both.free(WAITING)
        with suppress(Problem):
            await lost.call("recent", both.tag)


async def test_fronts_see_what_the_others_decode_until_they_have_gone(three: list[str], tmp_path: Path) -> None:
    async with split(three[0], tmp_path) as both:
        other = make_front(both.front.settings, [both.process.path], tmp_path)
        running = asyncio.create_task(other.device.run())
        async with asyncio.timeout(5):
            while other.device.problem:
                await asyncio.sleep(0.01)
        queue, seen = [await front.device.queue(front.catalog.models[both.tag]) for front in (other, both.front)]
        empty_s = both.front.scheduler.expected_answer_s(seen)
        with other.scheduler.admit(queue, time.monotonic() + 30), other.scheduler.admit(queue, time.monotonic() + 30):
            assert seen.depth == 2
            assert both.front.scheduler.expected_answer_s(seen) > 2 * empty_s
        assert seen.depth == 0
        with other.scheduler.admit(queue, time.monotonic() + 30):
            assert seen.depth == 1
            (link,) = cast(RemoteDevice, other.device).links
            assert link.transport
            link.transport.abort()
            async with asyncio.timeout(5):
                while seen.depth:
                    await asyncio.sleep(0.01)
        running.cancel()


async def test_every_device_process_loads_what_is_asked_for(lenet5: PublishedModel, tmp_path: Path) -> None:
    settings = Settings(load="first_use", tune="off", runtime="null")
    servers = [make_context(settings) for _ in range(2)]
    processes = [
        DeviceProcess(cast(LocalDevice, server.device), server.catalog, tmp_path / f"{number}.sock")
        for number, server in enumerate(servers)
    ]
    front = make_front(settings, [process.path for process in processes], tmp_path)
    running = [*(process.serve() for process in processes), *(each.device.run() for each in (*servers, front))]
    tasks = [asyncio.create_task(each) for each in running]
    async with asyncio.timeout(5):
        while front.device.problem:
            await asyncio.sleep(0.01)
        model = front.catalog.models[lenet5.manifest.tag]
        for _ in range(2):
            assert model.chosen.status == "published"
            queue = cast(RemoteQueue, await front.device.queue(model))
            while len(queue.replicas) < 2:
                await asyncio.sleep(0.01)
            await front.device.unload(model)
    for task in tasks:
        task.cancel()


async def test_a_front_knows_before_the_body_that_the_wait_is_too_long(three: list[str], tmp_path: Path) -> None:
    async with split(three[0], tmp_path) as both:
        both.engine.seconds = 0.1
        queue = both.device.catalog.models[both.tag].chosen.queue
        assert queue
        for _ in range(200):
            queue.cost.observe(1, 0.1)
        waiting = [asyncio.create_task(both.ask(number)) for number in range(40)]
        await asyncio.sleep(0.05)
        mirrored = await both.front.device.queue(both.front.catalog.models[both.tag])
        with pytest.raises(Overloaded, match="an answer would take"):
            both.front.scheduler.check(mirrored, time.monotonic() + 0.3)
        both.engine.seconds = 0.0
        await asyncio.gather(*waiting)
