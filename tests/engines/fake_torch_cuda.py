"""Stand-in for torch's CUDA on a processor: streams whose work is done at once, and graphs of recorded operations."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engines.runtimes import torch as torch_runtime
from engines.runtimes import torch_gpu


class TorchStream:
    """Stream, known by a number, and the streams for whose work it has waited."""

    numbers = itertools.count(1)

    def __init__(self, device: torch.device) -> None:
        self.cuda_stream = next(self.numbers)
        self.waited: list[TorchStream] = []

    def wait_stream(self, other: TorchStream) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        pass


class RecordedGraph(TorchDispatchMode):
    """Operations of one thread, which can be done again with the contents that their tensors have then."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._done: list[tuple[Callable[..., object], Any, Any, object]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self._done.append((operation, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for operation, args, kwargs, result in self._done:
            for new, old in zip(tree_leaves(operation(*args, **kwargs)), tree_leaves(result), strict=True):
                if isinstance(new, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class TorchCuda:
    """State of the stand-in: the number of recordings, and of the next ones that another thread ends."""

    def __init__(self) -> None:
        self.recordings = self.ended_recordings = 0
        self.default = TorchStream(torch.device("cpu"))
        self._recording = threading.Lock()
        self._thread = threading.local()
        self._pools_in_use: set[int] = set()

    def current_stream(self, device: torch.device) -> TorchStream:
        """Return the thread's current stream."""
        current: TorchStream = getattr(self._thread, "stream", self.default)
        return current

    @contextmanager
    def stream(self, stream: TorchStream) -> Iterator[None]:
        """Make a stream the thread's current one. Work is done at once all the same."""
        before, self._thread.stream = self.current_stream(torch.device("cpu")), stream
        try:
            yield
        finally:
            self._thread.stream = before

    @contextmanager
    def graph(self, graph: RecordedGraph, pool: int, stream: TorchStream, capture_error_mode: str) -> Iterator[None]:
        """Record the operations of this thread. Two recordings at once fail, as CUDA's would.

        As with torch, a recording that has failed leaves its stream the current one, and its pool in use.
        """
        if pool in self._pools_in_use:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        assert capture_error_mode == "thread_local"
        assert self._recording.acquire(blocking=False)
        before, self._thread.stream = self.current_stream(torch.device("cpu")), stream
        self._pools_in_use.add(pool)
        try:
            with graph:
                yield
            if self.ended_recordings:
                self.ended_recordings -= 1
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.recordings += 1
        finally:
            self._recording.release()
        self._thread.stream = before
        self._pools_in_use.remove(pool)


def install(patch: pytest.MonkeyPatch) -> TorchCuda:
    """Replace the parts of torch's CUDA that the engine uses, until the patch is undone."""
    cuda = TorchCuda()
    pools = itertools.count(1)
    for name, value in {
        "Stream": TorchStream,
        "stream": cuda.stream,
        "current_stream": cuda.current_stream,
        "CUDAGraph": RecordedGraph,
        "graph": cuda.graph,
        "graph_pool_handle": lambda: next(pools),
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch_runtime, "DEVICE", "cpu:0")  # unlike "cpu", the device of an engine with lanes
    patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    patch.setattr(torch_gpu, "capture_stream", TorchStream)
    patch.setattr(torch_gpu, "pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    return cuda
