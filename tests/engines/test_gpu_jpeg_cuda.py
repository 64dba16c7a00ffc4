"""Tests of a GPU's JPEGs with a stand-in for cuda.core: memory of the host, and the kernel on the processor."""

from __future__ import annotations

import ctypes
import io
import itertools
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.published.preprocess import Preprocess
from engines.runtimes.engine import EngineError
from engines.runtimes.gpu_jpeg import decode, jpegs
from engines.runtimes.gpu_jpeg.jpegs import DevicePixels, GpuCanvas, GpuJpegs
from engines.runtimes.lanes import LANES
from engines.runtimes.tensorrt import gpu
from tests.engines.host_canvas import CPU, by_pillow, jpeg

PHOTO = Preprocess(mode="RGB", resize_edge=64, crop=56)


class HostBuffer:
    """Memory of the host in place of a GPU's."""

    def __init__(self, size: int) -> None:
        self._block = (ctypes.c_uint8 * size)()
        self.handle, self.size = ctypes.addressof(self._block), size


class HostStream:
    """Stream whose work is done when somebody waits for it."""

    def __init__(self) -> None:
        self.handle = next(HANDLES)
        self.waiting: list[Any] = []
        self._working = threading.Lock()
        STREAMS[self.handle] = self

    @staticmethod
    def from_handle(handle: int) -> HostStream:
        return STREAMS[handle]

    def sync(self) -> None:
        with self._working:
            while self.waiting:
                self.waiting.pop(0)()

    def record(self, event: HostEvent | None) -> HostEvent:
        event = event or HostEvent()
        event.stream = self
        return event


class HostEvent:
    """Event of the work that its stream has."""

    stream: HostStream

    def sync(self) -> None:
        self.stream.sync()


HANDLES = itertools.count(1)
STREAMS: dict[int, HostStream] = {}


class HostDevice:
    """Device that nvImageCodec takes for the processor."""

    device_id = CPU
    name = "Processor"
    problem = ""

    def set_current(self) -> None:
        pass

    def create_stream(self) -> HostStream:
        return HostStream()

    def allocate(self, size: int, *, stream: HostStream) -> HostBuffer:
        if self.problem:
            raise OSError(self.problem)
        return HostBuffer(size)


class HostPixels(DevicePixels):
    """Pixels in the words of NumPy's array interface."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__array_interface__ = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3}


@pytest.fixture
def device(kernel_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: pip install '.[gpu-jpeg]'")

    class Program:
        def __init__(self, source: str, language: str) -> None:
            pass

        def compile(self, kind: str) -> Any:
            return types.SimpleNamespace(get_kernel=lambda name: kernel_library.run)

    def launch(stream: HostStream, config: Any, run: Any, *arguments: Any) -> None:
        pointers, whole = map(ctypes.c_void_p, arguments[:3]), map(int, arguments[3:])
        stream.waiting.append(lambda: run(*config.grid, *pointers, *whole))

    def copy(target: int, source: int, size: int, stream: int) -> None:
        STREAMS[stream].waiting.append(lambda: ctypes.memmove(target, source, size))

    def clear(target: int, size: int, stream: int) -> None:
        STREAMS[stream].waiting.append(lambda: ctypes.memset(target, 0, size))

    core = types.ModuleType("cuda.core")
    pinned = types.SimpleNamespace(allocate=HostBuffer)
    vars(core).update(
        Program=Program,
        LaunchConfig=types.SimpleNamespace,
        Stream=HostStream,
        launch=launch,
        LegacyPinnedMemoryResource=lambda: pinned,
    )
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    monkeypatch.setattr(gpu, "copy", copy)
    monkeypatch.setattr(gpu, "clear", clear)
    monkeypatch.setattr(jpegs, "DevicePixels", HostPixels)
    monkeypatch.setattr(jpegs, "BACKENDS", {"HW_GPU_ONLY": "hardware", "CPU_ONLY": "processor's"})
    jpegs.lanes_of.clear()
    yield HostDevice()
    jpegs.lanes_of.clear()


def test_a_card_without_a_hardware_decoder_uses_another(device: Any) -> None:
    found = GpuJpegs(device, PHOTO)
    assert found.decoder == "processor's"
    bodies = [jpeg(), jpeg(300, 40), b"", jpeg(40, 300)]
    pixels, refused = found.pixels(bodies)
    assert refused == [2]
    for place in (0, 1, 3):
        assert np.array_equal(pixels[place], by_pillow(PHOTO, bodies[place]))


def test_threads_of_two_networks_share_the_lanes(device: Any) -> None:
    other = Preprocess(mode="L", resize_edge=30, crop=28, pad=2, fill=9)
    found = {preprocess: GpuJpegs(device, preprocess) for preprocess in (PHOTO, other)}
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        preprocess = (PHOTO, other)[number % 2]
        barrier.wait()
        for turn in range(8):
            bodies = [jpeg(30 + 7 * number, 40 + 5 * turn) for _ in range(3)]
            pixels, refused = found[preprocess].pixels(bodies)
            assert not refused
            assert all(
                np.array_equal(one, by_pillow(preprocess, body)) for one, body in zip(pixels, bodies, strict=True)
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_memory_is_written_again_only_when_it_was_read(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [jpeg(64, 64), jpeg(64, 60), jpeg(60, 64)]
    found = GpuJpegs(device, PHOTO)
    monkeypatch.setattr(GpuCanvas, "capacity", 3 * 64 * 64)  # a picture at a time
    output = np.zeros((3, *PHOTO.shape), np.uint8)
    stream = device.create_stream()
    assert not found.fill(bodies, output.ctypes.data, stream.handle)
    assert not output[2].any(), "the last is enqueued only"
    stream.sync()
    assert all(np.array_equal(one, by_pillow(PHOTO, body)) for one, body in zip(output, bodies, strict=True))


def test_what_a_decoder_left_out_is_not_another_picture(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    white = io.BytesIO()
    Image.new("RGB", (90, 60), "white").save(white, "JPEG")
    found = GpuJpegs(device, PHOTO)
    for _ in range(LANES):
        assert (found.pixels([white.getvalue()] * 2)[0] == 255).all()

    class Silent:
        """Decoder that reports success, and has written nothing, as of a JPEG that ends early."""

        def decode(self, codes: list[Any], **options: Any) -> list[Any]:
            return codes

    for _ in range(LANES):
        lane = found._lanes.get()
        monkeypatch.setattr(lane, "_decoder", Silent())
        found._lanes.put(lane)
    for _ in range(LANES):
        pixels, refused = found.pixels([jpeg(90, 60)] * 2)
        assert not refused
        assert not pixels.any()


def test_only_a_failed_allocation_is_for_pillow(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = GpuJpegs(device, PHOTO)
    output = np.zeros((1, *PHOTO.shape), np.uint8)
    stream = device.create_stream()
    large = [jpeg(700, 600)]  # more than the memory that the lanes have
    monkeypatch.setattr(HostDevice, "problem", "CUDA_ERROR_OUT_OF_MEMORY")
    assert found.fill(large, output.ctypes.data, stream.handle) == [0]
    monkeypatch.setattr(gpu, "context_lost", lambda: True)
    with pytest.raises(RuntimeError, match="JPEGs cannot be decoded on the GPU: CUDA_ERROR_OUT_OF_MEMORY"):
        found.fill(large, output.ctypes.data, stream.handle)


def test_pixels_are_copied_when_the_stream_comes_to_them(device: Any) -> None:
    found, stream = GpuJpegs(device, PHOTO), device.create_stream()
    pixels = np.full((2, *PHOTO.shape), 9, np.uint8)
    output = np.zeros_like(pixels)
    found.copy(pixels, output.ctypes.data, stream.handle)
    assert not output.any()
    stream.sync()
    assert np.array_equal(output, pixels)


def test_errors_say_what_to_do(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="must be decoded by Pillow"):
        GpuJpegs(device, Preprocess(mode="L", resize_edge=28, crop=28, light_on_dark=True))
    monkeypatch.setattr(jpegs, "BACKENDS", {"HW_GPU_ONLY": "hardware"})
    with pytest.raises(EngineError, match=r"decodes no JPEG on Processor .*gpu-jpeg.*hardware: .*not create"):
        GpuJpegs(device, PHOTO)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    decode.library.cache_clear()
    with pytest.raises(EngineError, match=r"nvImageCodec is not installed: pip install '.\[gpu-jpeg\]'"):
        GpuJpegs(device, PHOTO)
