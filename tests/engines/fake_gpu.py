"""Fake GPU: an emulation of the parts of CUDA that engines use, which guarantees no more than CUDA does.

Enqueued work runs when its stream is synchronised. Freed memory is also gone for enqueued work and for recorded graphs.
Every thread must make the device its current one. While a thread records a graph, nothing that the thread enqueues on
the stream runs, and the thread can neither allocate memory nor compile kernels; no thread can wait for the whole GPU.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Work = Callable[[], None]
MB = 1_000_000
FIRST_ADDRESS = 1 << 48  # of the GPU's memory; those of the host are lower


class Status(NamedTuple):
    """Status that every CUDA call returns first."""

    name: str


SUCCESS = Status("cudaSuccess")


class CUDAError(Exception):
    """Raised where cuda.core would raise its own error."""


@dataclass
class GPU:
    """State of the fake GPU: memory, streams and plans, counts of what was `done`, and the failures to simulate."""

    total: int = 1000 * MB
    kept: int = 0  # bytes that were freed, and that CUDA keeps for allocations until they are given back
    needed_per_image: int = MB
    refusal: str | None = None
    status: Status = SUCCESS  # of a query of a stream
    records_graphs: bool = True
    ended_recordings: int = 0  # how many of the next recordings another thread ends
    cuda: int = 13000
    memory: dict[int, bytearray] = field(default_factory=dict)
    pinned: dict[int, Any] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    streams: dict[int, Stream] = field(default_factory=dict)
    plans: dict[str, tuple[Path, int]] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    next_address: int = FIRST_ADDRESS
    events: list[tuple[str, int]] = field(default_factory=list)  # in their order, with the stream's handle
    captures: Captures | None = None

    def check_thread(self) -> None:
        if threading.get_ident() not in self.threads:
            raise CUDAError("CUDA_ERROR_INVALID_CONTEXT")

    def check_idle(self, doing: str, *, whole_device: bool = False) -> None:
        """Refuse what a recording of this thread forbids, or for the `whole_device` a recording of any thread."""
        recorders = {stream.recorder for stream in self.streams.values() if stream.recording is not None}
        if threading.get_ident() in recorders or (whole_device and recorders):
            raise CUDAError(f"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: {doing}")

    @property
    def free(self) -> int:
        return self.total - self.kept - sum(map(len, list(self.memory.values())))

    def allocate(self, size: int) -> int:
        self.check_thread()
        self.check_idle("allocation")
        if size > self.free + self.kept:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY")
        self.kept -= min(size, self.kept)
        address = self.next_address
        self.next_address += size
        self.memory[address] = bytearray(size)
        return address

    def release(self, blocks: dict[int, Any], handle: int) -> None:
        block = blocks.pop(handle)
        self.kept += len(block) if blocks is self.memory else 0

    def give_back(self) -> tuple[Status]:
        self.kept = 0
        return (SUCCESS,)

    def wait(self) -> tuple[Status]:
        self.check_idle("a wait for the whole GPU", whole_device=True)
        return (SUCCESS,)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._at(address, size))

    def write(self, address: int, data: bytes) -> None:
        self._at(address, len(data))[:] = data

    def _at(self, address: int, size: int) -> memoryview:
        for blocks in (self.memory, self.pinned):
            start = max((start for start in list(blocks) if start <= address), default=0)
            block = blocks.get(start)
            if block is not None and address < start + len(block):
                whole = memoryview(block).cast("B")[address - start :]
                if size > len(whole):
                    raise CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: beyond its end")
                return whole[:size]
        raise CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: freed, or never allocated")


class Stream:
    """Stream that runs its work in order, when synchronised."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.handle = len(gpu.streams) + 1
        self.waiting: list[Work] = []
        self.recording: list[Work] | None = None
        self.recorder: int | None = None  # the thread that records
        gpu.streams[self.handle] = self

    def enqueue(self, work: Work, name: str = "work") -> None:
        self.gpu.check_thread()
        if self.recording is None:
            self.gpu.events.append((name, self.handle))
        (self.waiting if self.recording is None else self.recording).append(work)

    def sync(self) -> None:
        self.gpu.check_thread()
        self.gpu.check_idle("synchronisation")
        if self.recording is not None:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: synchronisation of a stream that is recorded")
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()
        self.gpu.done["sync"] += 1
        self.gpu.events.append(("sync", self.handle))


class Captures:
    """CUDA's calls for graphs. A failed recording returns no graph and ends the stream's recording state."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.handles = itertools.count(1)
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}

    def begin(self, handle: int, mode: object) -> tuple[Status]:
        assert mode == "thread_local"
        self.gpu.check_idle("two recordings at once", whole_device=True)
        self.gpu.streams[handle].recording, self.gpu.streams[handle].recorder = [], threading.get_ident()
        return (SUCCESS,)

    def end(self, handle: int) -> tuple[Status, int | None]:
        stream = self.gpu.streams[handle]
        recorded, stream.recording = stream.recording, None
        if recorded is None or not self.gpu.records_graphs or self.gpu.ended_recordings:
            self.gpu.ended_recordings = max(0, self.gpu.ended_recordings - 1)
            return Status("cudaErrorStreamCaptureInvalidated"), None
        self.gpu.done["graph"] += 1
        graph = next(self.handles)
        self.graphs[graph] = recorded
        return SUCCESS, graph

    def instantiate(self, graph: int, flags: int) -> tuple[Status, int]:
        self.executables[graph] = self.graphs[graph]
        return SUCCESS, graph

    def launch(self, executable: int, handle: int) -> tuple[Status]:
        self.gpu.done["launch"] += 1
        self.gpu.check_thread()
        self.gpu.events.append(("launch", handle))
        self.gpu.streams[handle].waiting += self.executables[executable]
        return (SUCCESS,)

    def destroy(self, graph: int) -> tuple[Status]:
        del self.graphs[graph]
        return (SUCCESS,)

    def destroy_executable(self, executable: int) -> tuple[Status]:
        del self.executables[executable]
        return (SUCCESS,)


class Buffer:
    """Memory that is freed when the buffer is deleted."""

    def __init__(self, gpu: GPU, handle: int, size: int, blocks: dict[int, Any]) -> None:
        self.gpu, self.handle, self.size = gpu, handle, size
        weakref.finalize(self, gpu.release, blocks, handle)


class Device:
    """Only device of the fake GPU: compute capability 8.9, Ada."""

    name = "NVIDIA Imaginary"
    compute_capability = (8, 9)
    gpu: GPU

    def set_current(self) -> None:
        self.gpu.threads.add(threading.get_ident())

    def create_stream(self) -> Stream:
        return Stream(self.gpu)

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        assert stream.handle in self.gpu.streams
        return Buffer(self.gpu, self.gpu.allocate(size), size, self.gpu.memory)


def pinned_memory(gpu: GPU) -> type:
    """Return a class in place of cuda.core's LegacyPinnedMemoryResource."""

    class Pinned:
        def allocate(self, size: int) -> Buffer:
            gpu.check_thread()
            gpu.check_idle("allocation")
            block = (ctypes.c_uint8 * size)()
            address = ctypes.addressof(block)
            gpu.pinned[address] = block
            return Buffer(gpu, address, size, gpu.pinned)

    return Pinned


def modules(gpu: GPU) -> dict[str, types.ModuleType]:
    """Return modules that replace cuda.core and CUDA's runtime."""

    class BoundDevice(Device):
        @staticmethod
        def get_all_devices() -> list[Device]:
            return [device]

    BoundDevice.gpu = gpu
    device = BoundDevice()

    core = types.ModuleType("cuda.core")
    vars(core).update(Device=BoundDevice, LegacyPinnedMemoryResource=pinned_memory(gpu))
    cuda = types.ModuleType("cuda.bindings.runtime")

    def copy(target: int, source: int, size: int, kind: str, handle: int) -> tuple[Status]:
        assert kind == "default"
        way = {(True, False): "to the GPU", (False, True): "from the GPU"}.get(
            (target >= FIRST_ADDRESS, source >= FIRST_ADDRESS), "on the GPU"
        )

        def work() -> None:
            gpu.write(target, gpu.read(source, size))
            gpu.done[f"bytes {way}"] += size

        gpu.streams[handle].enqueue(work, f"copy {way}")
        return (SUCCESS,)

    captures = gpu.captures = Captures(gpu)
    vars(cuda).update(
        cudaError_t=types.SimpleNamespace(cudaSuccess=SUCCESS),
        cudaDeviceSynchronize=gpu.wait,
        cudaGetDevice=lambda: (SUCCESS, 0),
        cudaDeviceGetDefaultMemPool=lambda number: (SUCCESS, f"pool of GPU {number}"),
        cudaMemPoolTrimTo=lambda pool, size: gpu.give_back(),
        cudaMemGetInfo=lambda: (SUCCESS, gpu.free, gpu.total),
        cudaDriverGetVersion=lambda: (SUCCESS, gpu.cuda),
        cudaMemcpyKind=types.SimpleNamespace(cudaMemcpyDefault="default"),
        cudaMemcpyAsync=copy,
        cudaStreamQuery=lambda stream: (gpu.status,),
        cudaStreamCaptureMode=types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread_local"),
        cudaStreamBeginCapture=captures.begin,
        cudaStreamEndCapture=captures.end,
        cudaGraphInstantiate=captures.instantiate,
        cudaGraphLaunch=captures.launch,
        cudaGraphDestroy=captures.destroy,
        cudaGraphExecDestroy=captures.destroy_executable,
    )
    return {"cuda.core": core, "cuda.bindings.runtime": cuda}
