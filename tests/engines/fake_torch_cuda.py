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
    """Stream, known by a number."""

    numbers = itertools.count(1)

    def __init__(self, device: torch.device) -> None:
        self.cuda_stream = next(self.numbers)

    def wait_stream(self, other: TorchStream) -> None:
        pass

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
    """State of the stand-in: the number of recordings."""

    def __init__(self) -> None:
        self.recordings = 0
        self._recording = threading.Lock()

    @contextmanager
    def graph(self, graph: RecordedGraph, pool: int, stream: TorchStream, capture_error_mode: str) -> Iterator[None]:
        """Record the operations of this thread. Two recordings at once fail, as CUDA's would."""
        assert pool
        assert capture_error_mode == "thread_local"
        assert self._recording.acquire(blocking=False)
        try:
            with graph:
                yield
            self.recordings += 1
        finally:
            self._recording.release()


@contextmanager
def current(stream: TorchStream) -> Iterator[None]:
    """Do nothing: work is done at once."""
    yield


def install(patch: pytest.MonkeyPatch) -> TorchCuda:
    """Replace the parts of torch's CUDA that the engine uses, until the patch is undone."""
    cuda = TorchCuda()
    pools = itertools.count(1)
    for name, value in {
        "Stream": TorchStream,
        "stream": current,
        "current_stream": TorchStream,
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
