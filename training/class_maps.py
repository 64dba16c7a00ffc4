"""Class maps: which part of a picture speaks for a class (Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engines.runtimes.torch import FromPixels
from training.parts import units_of


def class_maps(module: FromPixels, pixels: NDArray[np.uint8], classes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a map, 0 to 1, (N, height, width), for a class of each picture, (N, height, width, channels).

    The maps are those of the last layer with more than one place, each channel weighted by the mean gradient of the
    class's logit, of which what is positive is kept; all 0 for a network without such a layer.
    """
    maps: list[Tensor] = []

    def note(kept: list[Tensor], _: nn.Module, __: object, output: Tensor) -> None:
        if output.ndim == 4 and output.shape[2] > 1:
            kept[:] = [output]

    hooks = [unit.register_forward_hook(partial(note, maps)) for _, unit in units_of(module.net)]
    try:
        logits = module.eval()(torch.from_numpy(pixels))
    finally:
        for hook in hooks:
            hook.remove()
    height, width = pixels.shape[1:3]
    if not maps:
        return np.zeros((len(pixels), height, width), np.float32)
    chosen = logits.gather(1, torch.from_numpy(classes)[:, None]).sum()
    (gradients,) = torch.autograd.grad(chosen, maps)
    positive = F.relu((gradients.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True)).detach()
    scaled = positive / positive.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    large = F.interpolate(scaled, [height, width], mode="bilinear", align_corners=False)
    found: NDArray[np.float32] = large[:, 0].numpy()
    return found
