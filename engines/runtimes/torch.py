"""PyTorch itself: the reference, and the way to a GPU without TensorRT."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from engines.published import manifest
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # batch sizes for which a CUDA graph is recorded


class Normalise(nn.Module):
    """uint8 pixels, (N, channels, height, width), to the floats that the network takes: (p / 255 - mean) / std."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.get_buffer("mean")) / self.get_buffer("std")


class FromPixels(nn.Module):
    """uint8 pixels, (N, height, width, channels), to float32 logits, the network between in its own precision.

    Layout and normalisation belong to the graph.
    """

    def __init__(self, net: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        # cast first: of uint8, TensorRT takes pixels that are cast, and nothing else
        entry = self.normalise(pixels.float().permute(0, 3, 1, 2))
        logits: Tensor = self.net(entry.to(next(self.net.parameters()).dtype)).float()
        return logits


class TorchEngine:
    """A module on a GPU, where there is one, else on the CPU; on a GPU as CUDA graphs of a few batch sizes."""

    def __init__(self, module: FromPixels, precision: str = "fp32", *, compiled: bool = False) -> None:
        """Eager, or `compiled` by torch.compile; EngineError if the precision is unknown. `module` stays as it is."""
        if precision not in DTYPES:
            raise EngineError(f"torch has no precision {precision!r}; it has {', '.join(DTYPES)}")
        self.runtime = "torch_compile" if compiled else "torch"
        self.precision = precision
        self.device = torch.device(DEVICE)
        torch.backends.cudnn.allow_tf32 = False  # as it is for matrix products: fp32 is fp32
        self.module = copy.deepcopy(module).eval().to(self.device)
        self.module.net.to(DTYPES[precision]).to(memory_format=torch.channels_last)
        if compiled:
            self.module.compile(isolate_recompiles=True)  # else all engines of a process share one limit of 8
        self._graphs: dict[int, Recorded] = {}

    @torch.inference_mode()
    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, (N, classes), of pixels, (N, height, width, channels)."""
        count = len(pixels)
        if self.device.type == "cpu" or count > BUCKETS[-1]:
            return self._numpy(self.module(torch.from_numpy(pixels).to(self.device)))
        bucket = next(size for size in BUCKETS if size >= count)
        if bucket not in self._graphs:
            self._graphs[bucket] = Recorded(self.module, (bucket, *pixels.shape[1:]), self.device)
        return self._numpy(self._graphs[bucket](torch.from_numpy(pixels))[:count])

    @staticmethod
    def _numpy(logits: Tensor) -> NDArray[np.float32]:
        array: NDArray[np.float32] = logits.cpu().numpy()
        return array


class Recorded:
    """A CUDA graph of a module for one shape of pixels."""

    def __init__(self, module: FromPixels, shape: tuple[int, ...], device: torch.device) -> None:
        self.pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        aside = torch.cuda.Stream(device)
        with torch.cuda.stream(aside):  # libraries choose their kernels before anything is recorded
            for _ in range(3):
                module(self.pixels)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits: Tensor = module(self.pixels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits, (batch, classes), of at most as many pixels; what is above their number is of pixels before."""
        self.pixels[: len(pixels)].copy_(pixels)
        self.graph.replay()
        return self.logits


def open_torch(model: PublishedModel, precision: str, *, compiled: bool = False) -> TorchEngine:
    """A published model from its checkpoint; EngineError if it does not say how pixels are normalised."""
    from models.zoo import ZOO

    entry = model.manifest
    normalisation: dict[str, Any] | None = entry.provenance.get("input")
    if normalisation is None:
        raise EngineError(f"{entry.tag} does not say how its pixels are normalised: publish it again")
    net = ZOO[entry.architecture].build(len(entry.labels))
    net.load_state_dict(load_file(model.folder / manifest.WEIGHTS))
    normalise = Normalise(tuple(normalisation["mean"]), tuple(normalisation["std"]))
    return TorchEngine(FromPixels(net, normalise), precision, compiled=compiled)
