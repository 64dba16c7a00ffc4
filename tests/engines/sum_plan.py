"""Plan of which each logit is the sum of every tenth pixel, in place of a plan that a GPU's library might refuse.

On a GPU a kernel computes the sums; on the fake GPU NumPy does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engines.fake_gpu import GPU

CLASSES = 10
# Function that enqueues the sums: the stream's handle, the addresses of pixels, activations and logits, and the shape.
Launch = Callable[[int, int, int, int, tuple[int, ...]], None]
KERNEL = """
extern "C" __global__ void sums(
    const unsigned char* pixels, unsigned* activations, float* logits, long long size, int classes, int rounds
) {
    const unsigned char* image = pixels + blockIdx.x * size;
    unsigned* own = activations + blockIdx.x * classes;
    for (int round = 0; round < rounds; ++round) {
        for (int at = threadIdx.x; at < classes; at += blockDim.x) own[at] = 0;
        __syncthreads();
        unsigned sum = 0;  // of one class, since the threads are a multiple of the classes
        for (long long at = threadIdx.x; at < size; at += blockDim.x) sum += image[at];
        atomicAdd(own + threadIdx.x % classes, sum);
        __syncthreads();
    }
    for (int at = threadIdx.x; at < classes; at += blockDim.x) logits[blockIdx.x * classes + at] = own[at];
}
"""


def sums(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logits, (N, classes), of pixels, (N, height, width, channels)."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    return np.stack([flat[:, first::CLASSES].sum(1) for first in range(CLASSES)], axis=1)


class SumPlan:
    """Engine of TensorRT's interface, for images of one shape."""

    def __init__(self, shape: tuple[int, ...], largest: int, launch: Launch) -> None:
        self.shape, self.largest, self.launch = shape, largest, launch
        self.device_memory_size_v2 = largest * CLASSES * 4
        self.contexts = 0
        self.most_contexts = 1000
        self.refuses = False

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"pixels": (-1, *self.shape), "logits": (-1, CLASSES)}[name]

    def create_execution_context(self, config: object) -> SumContext:
        self.contexts += 1
        if self.contexts > self.most_contexts:
            raise RuntimeError("no memory for another context")
        return SumContext(self)


class SumContext:
    """Execution context of a SumPlan."""

    def __init__(self, plan: SumPlan) -> None:
        self._plan = plan
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self._plan.device_memory_size_v2
        self._addresses["activations"] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return name == "pixels" and shape[1:] == self._plan.shape and shape[0] <= self._plan.largest

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        if self._plan.refuses:
            return False
        pixels, activations, logits = (self._addresses[name] for name in ("pixels", "activations", "logits"))
        self._plan.launch(handle, pixels, activations, logits, self._shape)
        return True


def fake_launch(gpu: GPU) -> Launch:
    """Return a function that enqueues the sums on the fake GPU."""

    def launch(handle: int, pixels: int, activations: int, logits: int, shape: tuple[int, ...]) -> None:
        def work() -> None:
            images = np.frombuffer(gpu.read(pixels, int(np.prod(shape))), np.uint8).reshape(shape)
            gpu.write(activations, sums(images).tobytes())
            gpu.write(logits, gpu.read(activations, shape[0] * CLASSES * 4))

        gpu.streams[handle].enqueue(work, "execute")

    return launch


def compiled(arch: str) -> Any:
    """Return the kernel's object code for an architecture such as "90"; needs no GPU."""
    from cuda.core import Program, ProgramOptions

    return Program(KERNEL, "c++", ProgramOptions(arch=f"sm_{arch}")).compile("cubin")


def real_launch(rounds: int = 1) -> Launch:
    """Return a function that launches the kernel, which computes every sum `rounds` times, on the first GPU."""
    from cuda.core import LaunchConfig, Stream
    from cuda.core import launch as enqueue

    from engines.runtimes.tensorrt import gpu

    device = gpu.device()
    device.set_current()
    kernel = compiled(device.arch).get_kernel("sums")

    def launch(handle: int, pixels: int, activations: int, logits: int, shape: tuple[int, ...]) -> None:
        size, scalars = np.int64(np.prod(shape[1:])), (np.int32(CLASSES), np.int32(rounds))
        config = LaunchConfig(grid=shape[0], block=25 * CLASSES)
        enqueue(Stream.from_handle(handle), config, kernel, pixels, activations, logits, size, *scalars)

    return launch
