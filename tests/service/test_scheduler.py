"""Tests of the scheduler in simulated time: batching, fair shares, deadlines, and isolation of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from loadtest.scale.virtual_time import now, simulated
from service.admission import Answer, EngineQueue, Late, Overloaded
from service.batches import Inputs, Outcome, run
from service.cost import BatchCost
from service.scheduler import Scheduler


class FirstPixelEngine:
    """Engine that returns the first pixel of each image; a batch with a pixel of 255 fails."""

    runtime = "simulated"
    precision = "none"
    lanes = 1

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if pixels.max() == 255:
            raise RuntimeError("a batch that fails")
        return pixels.reshape(len(pixels), -1)[:, :1].astype(np.float32)


class ExactDevice:
    """ExactDevice whose batches take exactly the predicted time; records start, queue and size of each."""

    seconds: float | None = None  # of each batch, in place of the prediction

    def __init__(self) -> None:
        self.queues: dict[object, EngineQueue] = {}
        self.ran: list[tuple[float, EngineQueue, int]] = []
        self._computing = asyncio.Lock()

    def queue(self, seconds: float, gain: float = 1.0, best: int = 4) -> EngineQueue:
        """Return a queue whose images take `seconds` alone, and the share `gain` of it in a batch of `best`."""
        cost = BatchCost({1: seconds, best: best * gain * seconds}, best)
        queue = EngineQueue(FirstPixelEngine(), cost)
        self.queues[queue.engine] = queue
        return queue

    async def __call__(self, inputs: Inputs) -> Iterable[Outcome]:
        queue, size = self.queues[inputs.engine], len(inputs.pictures)
        async with self._computing:
            self.ran.append((now(), queue, size))
            await asyncio.sleep(self.seconds or queue.cost(size))
        return run(inputs)


def image(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 1), value, np.uint8)


async def ask(
    scheduler: Scheduler, queue: EngineQueue, value: int = 1, within_s: float = 1000.0
) -> tuple[Answer, float]:
    """Return the answer to an image and the time of the answer."""
    deadline = now() + within_s
    with scheduler.admit(queue, deadline) as place:
        return await place.infer(image(value)), now()


async def start_requests(
    scheduler: Scheduler, queue: EngineQueue, *values: int, within_s: float = 1000.0
) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(ask(scheduler, queue, value, within_s)) for value in values]
    await asyncio.sleep(0)
    return tasks


@pytest.fixture
def device() -> ExactDevice:
    return ExactDevice()


def test_what_waits_rides_together_and_each_gets_its_own(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, gain=0.5), Scheduler(100, device, now)
        first = await start_requests(scheduler, queue, 1)
        await asyncio.sleep(0.25)
        rest = await start_requests(scheduler, queue, 2, 3, 4, 5, 6, 7)
        answers = [answer for answer, _ in await asyncio.gather(*first, *rest)]
        assert [(at, size) for at, _, size in device.ran] == [(0, 1), (1, 4), (3, 2)]
        assert [answer.logits.tolist() for answer in answers] == [[value] for value in range(1, 8)]
        assert [answer.batch_size for answer in answers] == [1, 4, 4, 4, 4, 2, 2]
        assert [round(answer.queue_ms) for answer in answers] == [0, 750, 750, 750, 750, 2750, 2750]

    simulated(main())


class FillingDevice(ExactDevice):
    """Device that fills each input in 0.5 s, two at once if it must, and computes each batch in 2 s, one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._inside: list[EngineQueue] = []
        self.together: list[list[EngineQueue]] = []  # queues of the batches at each start of one

    async def __call__(self, inputs: Inputs) -> Iterable[Outcome]:
        queue = self.queues[inputs.engine]
        self._inside.append(queue)
        self.together.append(list(self._inside))
        await asyncio.sleep(0.5)
        async with self._computing:
            self.ran.append((now(), queue, len(inputs.pictures)))
            await asyncio.sleep(2)
        self._inside.remove(queue)
        return run(inputs)


def test_batches_overlap_in_the_lanes_of_an_engine_and_time_is_charged_once() -> None:
    async def main() -> None:
        device = FillingDevice()
        queue, scheduler = device.queue(1.0, gain=0.5), Scheduler(100, device, now)
        queue.engine.lanes = 2  # type: ignore[misc]
        answers = await asyncio.gather(*await start_requests(scheduler, queue, *range(1, 17)))
        assert [answer.logits.tolist() for answer, _ in answers] == [[value] for value in range(1, 17)]
        assert [(at, size) for at, _, size in device.ran] == [(0.5, 4), (2.5, 4), (4.5, 4), (6.5, 4)]
        assert max(map(len, device.together)) == 2
        assert queue.share == now() == 8.5  # filling is hidden but for the first batch
        assert scheduler.free_at == 0

    simulated(main())


@pytest.mark.parametrize("seconds", [1.4, 2.6])
def test_a_wrong_prediction_does_not_add_up_while_lanes_are_busy(seconds: float) -> None:
    async def main() -> None:
        device = ExactDevice()
        queue, scheduler = device.queue(1.0, gain=0.5), Scheduler(100, device, now)
        queue.engine.lanes = 2  # type: ignore[misc]
        device.seconds = seconds
        ahead = []

        async def client(value: int) -> None:
            for _ in range(40):
                await ask(scheduler, queue, value)
                ahead.append(scheduler.free_at - now())

        await asyncio.gather(*(client(value) for value in range(1, 13)))
        assert 2 * max(2.0, seconds) + 1e-9 >= max(ahead) >= seconds
        assert scheduler.free_at == 0

    simulated(main())


def test_an_engine_without_a_second_lane_runs_alone() -> None:
    async def main() -> None:
        device = FillingDevice()
        two, one, scheduler = device.queue(1.0), device.queue(1.0), Scheduler(100, device, now)
        two.engine.lanes = 2  # type: ignore[misc]
        tasks = [await start_requests(scheduler, queue, *range(4)) for queue in (two, one)]
        await asyncio.gather(*tasks[0], *tasks[1])
        assert [len(batches) for batches in device.together if one in batches] == [1] * 4
        assert [two, two] in device.together

    simulated(main())


def test_a_flood_of_one_model_costs_another_one_batch_of_it(device: ExactDevice) -> None:
    async def main() -> None:
        vgg, lenet, scheduler = device.queue(1.0), device.queue(0.01), Scheduler(1000, device, now)
        flood = await start_requests(scheduler, vgg, *[1] * 200)
        waits = []
        for _ in range(50):
            await asyncio.sleep(0.37)
            waits.append((await ask(scheduler, lenet))[0].queue_ms)
        assert max(waits) <= 1000 * vgg.cost(vgg.cost.best_batch)
        await asyncio.gather(*flood)
        assert now() == pytest.approx(200 * 1.0 + 50 * 0.01)  # the device was never idle

    simulated(main())


def test_two_floods_get_the_same_device_time(device: ExactDevice) -> None:
    async def main() -> None:
        slow, fast, scheduler = device.queue(1.0), device.queue(0.1), Scheduler(2000, device, now)
        tasks = await start_requests(scheduler, slow, *[1] * 50) + await start_requests(scheduler, fast, *[1] * 500)
        await asyncio.sleep(40)
        spent = {queue: sum(queue.cost(size) for _, ran, size in device.ran if ran is queue) for queue in (slow, fast)}
        assert spent[slow] == pytest.approx(spent[fast], abs=1.0)
        await asyncio.gather(*tasks)

    simulated(main())


def test_who_was_idle_has_saved_nothing_up(device: ExactDevice) -> None:
    async def main() -> None:
        busy, idle, scheduler = device.queue(1.0, best=1), device.queue(1.0, best=1), Scheduler(2000, device, now)
        flood = await start_requests(scheduler, busy, *[1] * 200)
        await asyncio.sleep(100.5)
        flood += await start_requests(scheduler, idle, *[1] * 50)
        await asyncio.sleep(20)
        ran = [queue for at, queue, _ in device.ran if at > 100.5]
        assert ran.count(busy) == pytest.approx(ran.count(idle), abs=1)
        await asyncio.gather(*flood)

    simulated(main())


def test_a_batch_is_small_enough_for_its_first_deadline(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, gain=0.5, best=8), Scheduler(100, device, now)
        first = await start_requests(scheduler, queue, 1)
        rest = await start_requests(scheduler, queue, 2, within_s=2.8)
        rest += await start_requests(scheduler, queue, *range(3, 9))
        await asyncio.gather(*first, *rest)
        assert device.ran[1][2] < 7
        assert rest[0].result()[1] <= 2.8

    simulated(main())


def test_what_cannot_be_in_time_is_refused_and_told_when_it_could(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0), Scheduler(100, device, now)
        tasks = await start_requests(scheduler, queue, *[1] * 10)
        await asyncio.sleep(0.5)
        depth = queue.depth
        with pytest.raises(Overloaded, match="would take 10500 ms, of which 5000 ms are left") as raised:
            scheduler.check(queue, now() + 5.0)
        assert depth == raised.value.depth == 9
        assert raised.value.retry_after_s == pytest.approx(5.5)
        await asyncio.sleep(raised.value.retry_after_s)
        assert (await ask(scheduler, queue, within_s=5.001))[1] == pytest.approx(11.0)
        await asyncio.gather(*tasks)

    simulated(main())


def test_what_comes_for_other_engines_meanwhile_is_expected(device: ExactDevice) -> None:
    async def main() -> None:
        heavy, scheduler = device.queue(0.02, best=1), Scheduler(1000, device, now)
        others = [device.queue(0.01, best=1) for _ in range(6)]
        late = refused = 0

        async def one(queue: EngineQueue) -> None:
            nonlocal late, refused
            try:
                await ask(scheduler, queue, within_s=1.0)
            except Late:
                late += 1
            except Overloaded:
                refused += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(1000):  # 10 s: the others have 60 % of the device, the first asks for 200 %
                tasks.create_task(one(heavy))
                tasks.create_task(one(others[number % len(others)]))
                await asyncio.sleep(0.01)
        assert late < 0.1 * refused

    simulated(main())


def test_the_backlogs_of_all_queues_are_those_of_each(device: ExactDevice) -> None:
    async def main() -> None:
        scheduler = Scheduler(1000, device, now)
        queues = [device.queue(0.01 * number, gain=0.5) for number in range(1, 9)]
        for number, queue in enumerate(queues[:6]):
            await start_requests(scheduler, queue, *[1] * (7 * number % 5))
        scheduler.began(queues[6])
        await asyncio.sleep(0.05)
        each = [scheduler.backlog_s(queue) for queue in queues]
        assert len(set(each)) == len(each)
        assert scheduler.backlogs_s(queues) == pytest.approx(each)
        await asyncio.sleep(10)

    simulated(main())


def test_the_queue_is_bounded_and_counts_what_is_still_decoded(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0), Scheduler(3, device, now)
        places = [scheduler.admit(queue, now() + 1000) for _ in range(3)]
        for place in places:
            place.__enter__()
        with pytest.raises(Overloaded, match="3 images wait already"):
            scheduler.admit(queue, now() + 1000)
        places[0].__exit__()
        await ask(scheduler, queue)
        for place in places[1:]:
            place.__exit__()
        assert queue.depth == 0

    simulated(main())


def test_what_has_become_late_costs_no_device_time(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, best=1), Scheduler(100, device, now)
        tasks = await start_requests(scheduler, queue, 1, 2, within_s=2.5)
        queue.cost.observe(1, 4.0)  # the engine becomes slower after both were admitted
        tasks += await start_requests(scheduler, queue, 3)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[1], Late)
        assert len(device.ran) == 2

    simulated(main())


def test_a_cancelled_request_leaves_the_queue(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, best=8), Scheduler(100, device, now)
        running, stays, goes = await start_requests(scheduler, queue, 1, 2, 3)
        await asyncio.sleep(0.5)
        goes.cancel()
        await asyncio.gather(running, stays)
        assert [size for _, _, size in device.ran] == [1, 1]
        runs = (await start_requests(scheduler, queue, 4))[0]
        await asyncio.sleep(0.5)
        runs.cancel()  # while the image runs
        assert (await ask(scheduler, queue, 5))[0].logits.tolist() == [5]

    simulated(main())


def test_of_a_batch_that_fails_only_those_fail_that_must(device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, gain=0.5), Scheduler(100, device, now)
        one, bad, three = await start_requests(scheduler, queue, 1, 255, 3)
        with pytest.raises(RuntimeError, match="a batch that fails"):
            await bad
        assert [(await good)[0].logits.tolist() for good in (one, three)] == [[1], [3]]
        assert [size for _, _, size in device.ran] == [3, 1, 1, 1]

    simulated(main())


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 5),  # arrival
            st.integers(0, 2),  # queue
            st.floats(0.05, 10),  # time limit
            st.sampled_from([None, None, None, 0.3, 2.0]),  # time after which the client leaves
            st.integers(0, 255),
        ),
        max_size=60,
    ),
    st.sampled_from([1, 2]),
)
def test_whatever_comes_each_has_one_outcome_and_answers_are_in_time(
    arrivals: list[tuple[float, int, float, float | None, int]], lanes: int
) -> None:
    device = ExactDevice()

    async def main() -> None:
        queues = [device.queue(0.5, gain=0.4), device.queue(0.05), device.queue(0.01, gain=0.2, best=8)]
        for queue in queues:
            queue.engine.lanes = lanes  # type: ignore[misc]
        scheduler = Scheduler(20, device, now)
        outcomes: list[str] = []

        async def one(at: float, which: int, within_s: float, gone_after: float | None, value: int) -> None:
            await asyncio.sleep(at)
            due = now() + within_s
            try:
                async with asyncio.timeout(gone_after):
                    answer, when = await ask(scheduler, queues[which], value, within_s)
            except (Overloaded, Late, TimeoutError, RuntimeError) as error:
                outcomes.append(type(error).__name__)
                return
            assert answer.logits.tolist() == [value]
            assert when <= due + 1e-9
            outcomes.append("answered")

        await asyncio.gather(*(one(*arrival) for arrival in arrivals))
        assert len(outcomes) == len(arrivals)
        assert all(queue.depth == 0 for queue in queues)

    simulated(main())
    busy_until = 0.0
    for at, queue, size in device.ran:
        assert at >= busy_until - 1e-9  # one at a time
        busy_until = at + queue.cost(size)
