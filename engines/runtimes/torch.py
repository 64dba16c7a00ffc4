"""PyTorch: the reference that engines are compared with, and an engine for GPUs without TensorRT."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from engines.published.manifest import WEIGHTS
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.machine import accelerator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GIB = 2**30


class Normalise(nn.Module):
    """Normalisation of pixels of 0 to 255, (N, channels, height, width), to (p / 255 - mean) / std."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.get_buffer("mean")) / self.get_buffer("std")


class FromPixels(nn.Module):
    """Network that takes uint8 pixels, (N, height, width, channels), and returns float32 logits, (N, classes).

    Layout and normalisation are part of the exported graph; `net` computes in its own precision.
    """

    def __init__(self, net: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        # The cast comes first because a cast is the only operation that TensorRT accepts on uint8 pixels.
        normalised = self.normalise(pixels.float().permute(0, 3, 1, 2))
        logits: Tensor = self.net(normalised.to(next(self.net.parameters()).dtype)).float()
        return logits


class TorchEngine:
    """Engine of a module on the device: the GPU if there is one, else the CPU."""

    def __init__(self, module: FromPixels, precision: str = "fp32", *, compiled: bool = False) -> None:
        """Copy `module` to the device in `precision`, and compile the copy by torch.compile if `compiled`.

        Raises EngineError if the precision is unknown.
        """
        if precision not in DTYPES:
            raise EngineError(f"torch has no precision {precision!r}; it has {', '.join(DTYPES)}")
        self.runtime = "torch_compile" if compiled else "torch"
        self.precision = precision
        self.device = torch.device(DEVICE)
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; matrix products have the same default
        torch.backends.cudnn.benchmark = True  # times the algorithms of each convolution before a graph is recorded
        self.module = copy.deepcopy(module).eval().to(self.device)
        self.module.net.to(DTYPES[precision]).to(memory_format=torch.channels_last)
        if compiled:
            # Compiled for batch 1, and once or twice for all other sizes. The modes with CUDA graphs of their own would
            # be recorded within ours, and those that tune every convolution take minutes for each network. Without
            # isolation all engines of a process share one limit of 8 compilations.
            self.module.compile(isolate_recompiles=True)

    @property
    def lanes(self) -> int:
        """Number of threads that may call `infer` at once."""
        return 1

    @torch.inference_mode()
    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
        logits: NDArray[np.float32] = self.module(torch.from_numpy(pixels).to(self.device)).cpu().numpy()
        return logits


def torch_engine(module: FromPixels, precision: str = "fp32", *, compiled: bool = False) -> TorchEngine:
    """Return an engine of `module`; on a GPU one with lanes and recorded graphs."""
    from engines.runtimes.torch_gpu import TorchGpuEngine

    return (TorchEngine if DEVICE == "cpu" else TorchGpuEngine)(module, precision, compiled=compiled)


def open_torch(model: PublishedModel, precision: str, *, compiled: bool = False) -> TorchEngine:
    """Open a published model's checkpoint, with batch norms folded into convolutions in fp32.

    Raises EngineError if the manifest lacks the normalisation of pixels, or if torch cannot use the machine's GPU.
    """
    from models.fold import fold_batch_norms
    from models.zoo import ZOO

    if accelerator() and DEVICE == "cpu":  # records would name the GPU
        raise EngineError(
            "this torch has no CUDA, or the driver is too old for it; with CUDA_VISIBLE_DEVICES= torch runs on the CPU"
        )
    manifest = model.manifest
    normalisation: dict[str, Any] | None = manifest.provenance.get("input")
    if normalisation is None:
        raise EngineError(f"{manifest.tag} does not say how its pixels are normalised: publish it again")
    net = ZOO[manifest.architecture].build(len(manifest.labels))
    net.load_state_dict(load_file(model.folder / WEIGHTS))
    height, width, channels = manifest.preprocess.shape
    fold_batch_norms(net.eval(), (channels, height, width))
    normalise = Normalise(tuple(normalisation["mean"]), tuple(normalisation["std"]))
    return torch_engine(FromPixels(net, normalise), precision, compiled=compiled)


def rates(width: int = 8192, size: int = GIB, device: str = DEVICE) -> tuple[dict[str, float], float]:
    """Return the device's rates: MACs a second in a matrix product by precision, and bytes a second in a copy.

    The matrices have `width` rows and columns, and random values, with which a GPU draws more power than with equal
    ones; the copy reads `size` bytes and writes as many. Precisions that torch cannot multiply in are left out.
    """
    random = torch.randint(-128, 128, (width, width), dtype=torch.int8, device=device)
    products: dict[str, float] = {}
    for precision, dtype in [*DTYPES.items(), ("int8", torch.int8)]:
        values = random.to(dtype)
        multiply = torch._int_mm if dtype == torch.int8 else torch.mm
        with suppress(RuntimeError):
            products[precision] = width**3 / fastest(partial(multiply, values, values.t()), device)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    copied = 2 * size / fastest(partial(torch.empty_like(source).copy_, source), device)
    del random, values, source
    torch.cuda.empty_cache()  # does nothing without a GPU
    return products, copied


def fastest(work: Callable[[], object], device: str, runs: int = 8, calls: int = 4) -> float:
    """Return the least seconds of a call over several runs, each of calls that follow one another at once."""
    seconds = []
    for _ in range(runs):
        synchronise(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        seconds.append((time.perf_counter() - started) / calls)
    return min(seconds)


def synchronise(device: str) -> None:
    """Wait until a GPU has done its work; a CPU's is done when a call returns."""
    if device == "cuda":
        torch.cuda.synchronize()
