"""Canvas in host memory: the GPU's kernel, compiled for the processor, on pictures of nvImageCodec's CPU decoder."""

from __future__ import annotations

import ctypes
import io
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.published.preprocess import Preprocess
from engines.runtimes.gpu_jpeg import kernel
from engines.runtimes.gpu_jpeg.decode import JpegLane
from engines.runtimes.gpu_jpeg.kernel import Decoded

# The words of CUDA that the kernel uses; the last loops are what a GPU does at once.
AROUND = f"""
struct Place {{ int x, y, z; }};
static thread_local Place blockIdx, blockDim = {{{kernel.BLOCK[0]}, {kernel.BLOCK[1]}, 1}}, threadIdx;
#define __global__
#define __device__ static
{kernel.SOURCE}
extern "C" void run(
    int wide, int high, int count, const Description* descriptions, const int* tables, unsigned char* output,
    int crop, int pad, int fill, int channels
) {{
    for (blockIdx.z = 0; blockIdx.z < count; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < high; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < wide; blockIdx.x++)
                for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                    for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
                        resize(descriptions, tables, output, crop, pad, fill, channels);
}}
"""
CPU = -99999  # nvImageCodec's number of a device that is none


def compiled(folder: Path) -> ctypes.CDLL:
    """Return the kernel as a library for the processor, with a function `run`."""
    source, library = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(AROUND)
    subprocess.run(["g++", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


class HostCanvas:
    """Canvas of a gigabyte at most, or less for a test; `begun` lists the sizes of the groups."""

    def __init__(self, library: ctypes.CDLL, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.begun: list[int] = []
        self._run = library.run
        self._memory = np.zeros(0, np.uint8)

    def begin(self, size: int) -> int:
        self.begun.append(size)
        self._memory = np.full(size, 77, np.uint8)
        return self._memory.ctypes.data

    def image(self, address: int, height: int, width: int) -> Any:
        start = address - self._memory.ctypes.data
        return self._memory[start : start + 3 * width * height].reshape(height, width, 3)

    def resize(self, preprocess: Preprocess, pictures: Sequence[Decoded], pointer: int, stream: int) -> None:
        packed = kernel.pack(preprocess, pictures)
        memory = np.empty(packed.size, np.uint8)
        packed.write(memory)
        address = memory.ctypes.data
        pointers = map(ctypes.c_void_p, (address, address + packed.descriptions.nbytes, pointer))
        self._run(*kernel.grid(preprocess, len(pictures)), *pointers, *kernel.scalars(preprocess))

    def settle(self, stream: int) -> None:
        pass

    def end(self, stream: int) -> None:
        self._memory[:] = 77


def fill(
    lane: JpegLane, preprocess: Preprocess, bodies: Sequence[bytes | memoryview]
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the input pixels of JPEGs, (N, height, width, channels), and the places of the refused."""
    pixels = np.zeros((len(bodies), *preprocess.shape), np.uint8)
    return pixels, lane.fill(preprocess, bodies, pixels.ctypes.data, 0)


def noise(width: int, height: int) -> NDArray[np.uint8]:
    """Return noise of few and of many levels: the sums of bicubic weights leave 0 to 255 and are cut."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = pixels[:, : width // 2] // 128 * 255
    return pixels


def jpeg(width: int = 90, height: int = 60, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(width, height)).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(preprocess: Preprocess, body: bytes) -> NDArray[np.uint8]:
    return preprocess(Image.open(io.BytesIO(body)))
