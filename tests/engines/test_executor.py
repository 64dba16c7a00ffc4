"""Tests of the executor of plans, with a plan of sums: on the fake GPU, and on any NVIDIA GPU."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.runtimes.engine import EngineError, Fill
from engines.runtimes.tensorrt import executor, gpu
from engines.runtimes.tensorrt.executor import Executor, LoadedPlan
from tests.conftest import Measured
from tests.engines import fake_gpu
from tests.engines.fake_gpu import GPU
from tests.engines.sum_plan import SumPlan, compiled, fake_launch, real_launch, sums

SHAPE = (7, 5, 3)
LARGEST = 8
rng = np.random.default_rng(0)


def opened(plan: SumPlan) -> Executor:
    """Return an executor of the plan on the current GPU."""
    device = gpu.device()
    device.set_current()
    untyped: Any = plan
    return Executor(LoadedPlan(device, untyped, config=untyped, largest=plan.largest))


def images(count: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Return random pixels, (count, height, width, channels)."""
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture(params=["faked", pytest.param("real", marks=pytest.mark.gpu)])
def plan(request: pytest.FixtureRequest) -> SumPlan:
    """Plan on the fake GPU, and on a real one where there is one."""
    if request.param == "faked":
        return SumPlan(SHAPE, LARGEST, fake_launch(request.getfixturevalue("fake")))
    return SumPlan(SHAPE, LARGEST, real())


def real(rounds: int = 1) -> Callable[..., None]:
    """Return the kernel's launch, or skip the test."""
    try:
        gpu.device()
    except EngineError as error:
        pytest.skip(str(error))
    return real_launch(rounds)


def filling(pixels: NDArray[np.uint8]) -> tuple[object, Fill]:
    """Return pinned memory with the pixels, which must outlive the call, and a function that enqueues their copy."""
    from cuda.core import LegacyPinnedMemoryResource

    gpu.device().set_current()
    pinned = LegacyPinnedMemoryResource().allocate(pixels.nbytes)
    executor.view(pinned)[:] = pixels.reshape(-1)
    return pinned, lambda pointer, stream: gpu.copy(pointer, int(pinned.handle), pixels.nbytes, stream)


def test_logits_are_the_plans_at_every_batch_size(plan: SumPlan, caplog: pytest.LogCaptureFixture) -> None:
    running = opened(plan)
    for count in (8, 1, 3, 8, 5, 2, 27, 16):  # smaller batches after larger ones, and more than the largest
        pixels = images(count)
        assert np.array_equal(running.infer(pixels), sums(pixels)), count
        pinned, fill = filling(pixels)
        assert np.array_equal(running.infer_filled(count, fill), sums(pixels)), count
        del pinned
    assert "there is no CUDA graph" not in caplog.text


def test_every_thread_gets_its_own_logits(plan: SumPlan) -> None:
    running = opened(plan)

    def infer(number: int) -> None:
        for turn in range(6):
            pixels = np.full((1 + (number + turn) % 11, *SHAPE), 10 * number + turn, np.uint8)
            if turn % 2:
                pinned, fill = filling(pixels)
                logits = running.infer_filled(len(pixels), fill)
                del pinned
            else:
                logits = running.infer(pixels)
            assert np.array_equal(logits, sums(pixels))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(infer, range(16)))
    assert running.lanes == 2


def test_a_failed_fill_leaves_both_lanes_usable(plan: SumPlan) -> None:
    running = opened(plan)
    running.prepare((4, *SHAPE))
    pixels, inside, leave = images(4), threading.Event(), threading.Event()

    def fails(pointer: int, stream: int) -> None:
        inside.set()
        assert leave.wait(30)
        raise OSError("a broken picture")

    for _ in range(2):
        with ThreadPoolExecutor(1) as other:
            failing = other.submit(running.infer_filled, 4, fails)
            assert inside.wait(30)
            assert np.array_equal(running.infer(pixels), sums(pixels))  # in the second lane, while the first is taken
            leave.set()
            with pytest.raises(OSError, match="a broken picture"):
                failing.result()
    for _ in range(3):
        assert np.array_equal(running.infer(pixels), sums(pixels))
    assert running.lanes == 2


def test_a_lane_without_memory_is_given_up(plan: SumPlan, caplog: pytest.LogCaptureFixture) -> None:
    plan.most_contexts = 3  # of three sizes in the first lane
    running = opened(plan)
    for count in (1, 2, 4):
        running.infer(images(count))
    assert running.lanes == 2
    running.prepare((4, *SHAPE))
    assert running.lanes == 1
    assert "since a second one fails: no memory for another context" in caplog.text
    pixels = [images(count) for count in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as threads:
        for given, logits in zip(pixels, threads.map(running.infer, pixels), strict=True):
            assert np.array_equal(logits, sums(given))


def test_a_plan_that_cannot_run_is_reported_and_tried_again(plan: SumPlan) -> None:
    running = opened(plan)
    plan.refuses = True
    with pytest.raises(RuntimeError, match="the inference cannot be enqueued"):
        running.prepare((2, *SHAPE))
    with pytest.raises(RuntimeError, match=r"pixels are \(1, 1, 1\), but must be \(7, 5, 3\)"):
        running.infer(images(2, (1, 1, 1)))
    plan.refuses = False
    pixels = images(2)
    assert np.array_equal(running.infer(pixels), sums(pixels))


def test_deleted_executors_free_their_memory(plan: SumPlan) -> None:
    def one() -> None:
        running = opened(plan)
        running.prepare((8, *SHAPE))
        running.prepare((3, *SHAPE))
        running.infer(images(8))

    one()  # loads what CUDA keeps
    gc.collect()
    before = gpu.memory()[0]
    plan.device_memory_size_v2 = 50_000_000
    for _ in range(8):
        one()
    gc.collect()
    assert before - gpu.memory()[0] < 100_000_000  # eight executors of two lanes had 800 MB


def test_deleted_executors_leave_nothing_behind(fake: GPU) -> None:
    running = opened(SumPlan(SHAPE, LARGEST, fake_launch(fake)))
    running.prepare((8, *SHAPE))
    assert fake.memory
    assert fake.captures
    assert fake.captures.executables
    del running  # without a collection of garbage: a lane that was given up frees its memory at once
    assert not fake.captures.executables
    assert not fake.memory
    assert not fake.pinned


def test_a_recording_that_another_thread_ends_is_tried_again(fake: GPU, caplog: pytest.LogCaptureFixture) -> None:
    running = opened(SumPlan(SHAPE, LARGEST, fake_launch(fake)))
    fake.ended_recordings = 1
    pixels = images(4)
    assert np.array_equal(running.infer(pixels), sums(pixels))
    assert fake.done["launch"] == 1
    assert "there is no CUDA graph" not in caplog.text


def test_cuda_is_lost_after_an_error_that_stays(fake: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lost in {
        "cudaSuccess": False,
        "cudaErrorNotReady": False,
        "cudaErrorMemoryAllocation": False,
        "cudaErrorStreamCaptureImplicit": False,
        "cudaErrorInsufficientDriver": False,
        "cudaErrorIllegalAddress": True,
        "cudaErrorLaunchFailure": True,
    }.items():
        fake.status = fake_gpu.Status(name)
        assert gpu.context_lost() == lost, name
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not gpu.context_lost()


def test_the_errors_that_stay_are_cudas() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert not gpu.LOST - set(runtime.cudaError_t.__members__)


def test_a_lane_is_filled_while_another_computes(fake: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: dict[int, set[int]] = {1: set(), 2: set()}  # by the stream's handle
    launch = fake_launch(fake)

    def noting(handle: int, *arguments: Any) -> None:
        addresses[handle] |= set(arguments[:3])
        launch(handle, *arguments)

    running = opened(SumPlan(SHAPE, LARGEST, noting))
    running.prepare((4, *SHAPE))
    assert [len(own) for own in addresses.values()] == [3, 3]
    assert not addresses[1] & addresses[2]  # of pixels, activations and logits
    fake.events.clear()
    both = threading.Barrier(2, timeout=30)
    sync = fake_gpu.Stream.sync

    def waits_for_the_other(stream: fake_gpu.Stream) -> None:
        both.wait()  # breaks unless both lanes have enqueued their work before one of them is synchronised
        sync(stream)

    monkeypatch.setattr(fake_gpu.Stream, "sync", waits_for_the_other)
    pixels = [images(4), images(3)]
    with ThreadPoolExecutor(2) as threads:
        for given, logits in zip(pixels, threads.map(running.infer, pixels), strict=True):
            assert np.array_equal(logits, sums(given))
    names = [name for name, _ in fake.events]
    assert sorted(names[:4]) == ["copy to the GPU", "copy to the GPU", "launch", "launch"]
    assert names[4:] == ["sync", "sync"]
    assert {stream for _, stream in fake.events} == {1, 2}


def test_the_kernel_of_the_plan_compiles_without_a_gpu() -> None:
    assert b"sums" in compiled("90").code


@pytest.mark.gpu
def test_two_lanes_overlap_copies_with_work(measured: Measured) -> None:
    """Two threads take less time than one: pixels are staged and copied in while the GPU computes."""
    shape, batch, runs = (224, 224, 3), 64, 30
    real()
    seconds: dict[int, float] = {}
    for rounds in (2**power for power in range(13)):  # until a kernel takes as long as staging and copying
        running = opened(SumPlan(shape, batch, real(rounds)))
        running.prepare((batch, *shape))
        pixels = images(batch, shape)
        seconds[rounds] = timed(partial(running.infer, pixels), 1, runs)
        if seconds[rounds] > 2 * seconds[1]:
            break
    together = timed(partial(running.infer, pixels), 2, runs)
    alone = seconds[rounds]
    measured(f"plan of sums, batch {batch}: {1e3 * alone:.2f} ms in one thread, {1e3 * together:.2f} ms in two")
    assert together < 0.85 * alone


def timed(work: Callable[[], object], threads: int, runs: int) -> float:
    """Return the seconds of a run, of `runs` by each of several threads at once, after a warm-up."""
    with ThreadPoolExecutor(threads) as pool:
        for count in (3, runs):
            started = time.perf_counter()
            list(pool.map(lambda _: [work() for _ in range(count)], range(threads)))  # noqa: B023
    return (time.perf_counter() - started) / (runs * threads)
