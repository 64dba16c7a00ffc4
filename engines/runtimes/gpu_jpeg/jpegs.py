"""JPEGs on an NVIDIA GPU: from the bytes of a batch to the pixels in an engine's input, without a copy to the host."""

from __future__ import annotations

import ctypes
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.published.preprocess import Preprocess
from engines.runtimes.engine import EngineError
from engines.runtimes.gpu_jpeg import kernel
from engines.runtimes.gpu_jpeg.decode import JpegLane, library
from engines.runtimes.gpu_jpeg.kernel import Decoded
from engines.runtimes.lanes import LANES, recording
from engines.runtimes.machine import cores
from engines.runtimes.tensorrt import gpu

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Event

CAPACITY = 256 << 20  # bytes of decoded pictures of a lane: 128 photos of 0.7 megapixels, or one of 89
SMALLEST = 1 << 20  # bytes; memory grows by doubling
THREADS_SHARE = 4  # of the cores, one in as many is for a lane's decoder, which reads headers or Huffman codes
BACKENDS = {"HW_GPU_ONLY": "hardware", "HYBRID_CPU_GPU": "CUDA"}  # nvImageCodec's names, and words for people
logger = logging.getLogger("bentoml.convserve")


class GpuJpegs:
    """Decoder of JPEGs into the input of a network; the threads of several networks may use their own at once.

    All of a GPU share its lanes: two, each with a decoder and memory of at most CAPACITY.
    """

    def __init__(self, device: Device, preprocess: Preprocess) -> None:
        """Open the decoders of a GPU, once. Raises EngineError if there are none, or for strokes that may be dark."""
        if not can_preprocess(preprocess):
            raise EngineError("pictures that are inverted by what they show must be decoded by Pillow")
        self._device, self._preprocess = device, preprocess
        self._lanes, self.decoder = opened(device)

    def fill(self, bodies: Sequence[bytes | memoryview], pointer: int, stream: int) -> list[int]:
        """Write the input pixels, uint8 (N, height, width, channels), of JPEGs to an address on the GPU.

        The bodies are plain JPEGs without metadata, as `sampling_of` accepts, and must last until the stream has done
        the work that this call enqueues on the stream, by its handle. Returns the indices of the JPEGs that the decoder
        refuses, whose pixels are undefined. Raises RuntimeError if CUDA reports an error.
        """
        self._device.set_current()  # the current device is a property of the thread
        lane = self._lanes.get()
        try:
            return lane.fill(self._preprocess, bodies, pointer, stream)
        except Exception as error:  # cuda.core's errors have no public class
            raise RuntimeError(f"JPEGs cannot be decoded on the GPU: {error}") from error
        finally:
            self._lanes.put(lane)

    def copy(self, pixels: NDArray[np.uint8], pointer: int, stream: int) -> None:
        """Enqueue the copy of stacked pixels to an address on the GPU.

        The pixels must last until the stream has done the copy. Raises RuntimeError if CUDA reports an error.
        """
        self._device.set_current()
        gpu.copy(pointer, pixels.ctypes.data, pixels.nbytes, stream)

    def pixels(self, bodies: Sequence[bytes | memoryview]) -> tuple[NDArray[np.uint8], list[int]]:
        """Return the input pixels of JPEGs in memory of the host, and the indices that `fill` returns."""
        pixels = np.empty((len(bodies), *self._preprocess.shape), np.uint8)
        self._device.set_current()
        stream = self._device.create_stream()
        output = self._device.allocate(pixels.nbytes, stream=stream)
        handle = int(stream.handle)
        refused = self.fill(bodies, int(output.handle), handle)
        gpu.copy(pixels.ctypes.data, int(output.handle), pixels.nbytes, handle)
        stream.sync()
        return pixels, refused


def can_preprocess(preprocess: Preprocess) -> bool:
    """Return True unless what a picture shows decides what becomes of its pixels."""
    return not preprocess.light_on_dark


class GpuCanvas:
    """Memory of a GPU for decoded pictures, and the kernel that resizes them.

    nvJPEG's hardware decoder writes at once, whatever its stream still has to do. So the memory is this canvas's own,
    and is only given to a decoder after the host has seen that the last kernel has read it. It is cleared before: of a
    broken JPEG a decoder may write a part, and report no failure.
    """

    capacity = CAPACITY

    def __init__(self, device: Device) -> None:
        from cuda.core import Program

        self._device = device
        self._stream = device.create_stream()
        self._kernel = Program(kernel.SOURCE, "c++").compile("cubin").get_kernel("resize")
        self._pixels: Buffer | None = None
        self._packed: tuple[Buffer, Buffer] | None = None  # pinned, and on the GPU
        self._read: Event | None = None

    def begin(self, size: int) -> int:
        """Wait until the memory is no longer read, make `size` bytes of zeros, and return their address.

        Raises MemoryError if there is no memory.
        """
        if self._read:
            self._read.sync()
        if self._pixels is None or self._pixels.size < size:
            self._pixels = None  # free it first
            self._pixels = self._allocate(grown(size))
        address = int(self._pixels.handle)
        gpu.clear(address, size, int(self._stream.handle))
        self._stream.sync()
        return address

    def _allocate(self, size: int) -> Buffer:
        """Return memory of the GPU that is ready for every stream. Raises MemoryError if there is none."""
        try:
            buffer = self._device.allocate(size, stream=self._stream)
        except Exception as error:  # cuda.core's errors have no public class
            if gpu.context_lost():
                raise
            raise MemoryError(f"{size / 1e6:,.0f} MB: {error}") from error
        self._stream.sync()
        return buffer

    def image(self, address: int, height: int, width: int) -> Any:
        """Return an object by which nvImageCodec finds the pixels of a picture at an address."""
        return DevicePixels(address, (height, width, 3))

    def resize(self, preprocess: Preprocess, pictures: Sequence[Decoded], pointer: int, stream: int) -> None:
        """Enqueue the resizing of decoded pictures into the output at `pointer`."""
        from cuda.core import LaunchConfig, Stream, launch

        packed = kernel.pack(preprocess, pictures)
        host, there = self._staging(packed.size)
        packed.write(np.ctypeslib.as_array((ctypes.c_uint8 * packed.size).from_address(int(host.handle))))
        address = int(there.handle)
        gpu.copy(address, int(host.handle), packed.size, stream)
        launch(
            Stream.from_handle(stream),
            LaunchConfig(grid=kernel.grid(preprocess, len(pictures)), block=(*kernel.BLOCK, 1)),
            self._kernel,
            *(address, address + packed.descriptions.nbytes, pointer),
            *map(np.int32, kernel.scalars(preprocess)),
        )

    def _staging(self, size: int) -> tuple[Buffer, Buffer]:
        """Return pinned memory and memory of the GPU for the kernel's tables."""
        from cuda.core import LegacyPinnedMemoryResource

        if self._packed is None or self._packed[0].size < size:
            self._packed = None
            self._packed = LegacyPinnedMemoryResource().allocate(grown(size)), self._allocate(grown(size))
        return self._packed

    def settle(self, stream: int) -> None:
        """Wait for all work of a stream."""
        from cuda.core import Stream

        Stream.from_handle(stream).sync()

    def end(self, stream: int) -> None:
        """Note that the memory is read until the work that the stream has now is done."""
        from cuda.core import Stream

        self._read = Stream.from_handle(stream).record(self._read)


class DevicePixels:
    """Memory of the GPU in the words of CUDA's array interface."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def grown(size: int) -> int:
    """Return the next power of two, in bytes, but at least SMALLEST."""
    return max(SMALLEST, 1 << (size - 1).bit_length())


opening = Lock()
lanes_of: dict[int, tuple[SimpleQueue[JpegLane], str]] = {}  # and the kind of decoder, by the GPU's number


def opened(device: Device) -> tuple[SimpleQueue[JpegLane], str]:
    """Return a GPU's lanes and the kind of its decoder: "hardware", or "CUDA". Raises EngineError if there are none."""
    with opening:
        if device.device_id not in lanes_of:
            device.set_current()
            with recording:  # what is opened may wait for the whole GPU
                lanes_of[device.device_id] = open_lanes(device)
        return lanes_of[device.device_id]


def open_lanes(device: Device) -> tuple[SimpleQueue[JpegLane], str]:
    """Open lanes of the first kind of decoder that decodes a JPEG on a GPU. Raises EngineError if none does."""
    library()
    reasons = []
    for backend, kind in BACKENDS.items():
        try:
            lanes = [open_lane(device, backend) for _ in range(LANES)]
        except Exception as error:  # nvImageCodec's and cuda.core's errors have no public class
            reasons.append(f"{kind}: {error}")
            continue
        queue: SimpleQueue[JpegLane] = SimpleQueue()
        for lane in lanes:
            queue.put(lane)
        logger.info("JPEGs are decoded on %s by its %s decoder", device.name, kind)
        return queue, kind
    raise EngineError(f"nvImageCodec decodes no JPEG on {device.name} (`pip install '.[gpu-jpeg]'`): {reasons}")


def open_lane(device: Device, backend: str) -> JpegLane:
    """Return a lane that has decoded a JPEG. Raises RuntimeError if the backend refuses JPEGs, or nearly anything."""
    lane = JpegLane(GpuCanvas(device), backend, device.device_id, max(1, cores() // THREADS_SHARE))
    body = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(body, "JPEG")  # 256 x 256
    preprocess = Preprocess(mode="RGB", resize_edge=32, crop=32)
    stream = device.create_stream()
    output = device.allocate(32 * 32 * 3, stream=stream)
    try:
        refused = lane.fill(preprocess, [body.getvalue()], int(output.handle), int(stream.handle))
    finally:
        with suppress(Exception):
            stream.sync()
    if refused:
        raise RuntimeError("there is none")
    return lane
