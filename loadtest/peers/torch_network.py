"""Torch network of a published model, run eagerly: the same network and weights for every peer on a GPU."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.published.store import PublishedModel
from engines.runtimes.machine import processor
from engines.runtimes.torch import open_torch


def infer_torch(
    model: PublishedModel, precision: str, device: str, batches: Sequence[int]
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return the function from pixels to logits of the network in channels_last, after a run of each batch size.

    The network is that of convserve's torch engine, with batch norms folded, but without recorded CUDA graphs.
    Raises EngineError if torch cannot run the model.
    """
    module = open_torch(model, precision).module.to(device)
    torch.backends.cudnn.benchmark = False  # it would time every convolution anew for each batch size that comes up

    @torch.inference_mode()
    def infer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = module(torch.from_numpy(pixels).to(device)).cpu().numpy()
        return logits

    for batch in batches:
        infer(np.zeros((batch, *model.manifest.preprocess.shape), np.uint8))
    return infer


def machine(device: str) -> str:
    """Return the names of processor and GPU, and the version of torch, as far as the device uses them."""
    if device == "cpu":
        return f"{processor()}, torch {torch.__version__} on the CPU"
    gpu = f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return f"{gpu}, {processor()}, {platform.machine()}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def from_numpy(array: NDArray[Any]) -> Any:
    """Return a tensor that shares the array's memory."""
    return torch.from_numpy(array)
