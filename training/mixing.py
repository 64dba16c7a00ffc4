"""Changes of whole batches on the training's device: MixUp, CutMix, and random erasing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from training.recipes import Recipe


class Mixing:
    """Random changes of a batch of normalised images and targets, as a recipe wants them; torchvision's.

    Random numbers are torch's global ones, drawn on the CPU, so that no step waits for a GPU.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        kinds = {v2.MixUp: recipe.mixup, v2.CutMix: recipe.cutmix}
        self.mixes: list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = [
            kind(alpha=float(alpha), num_classes=classes) for kind, alpha in kinds.items() if alpha
        ]
        self.share, self.erasing = recipe.erasing, v2.RandomErasing()

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return images, (N, channels, height, width), and targets, (N,), or (N, classes) if images are mixed.

        Erased rectangles become 0, the mean colour.
        """
        if self.mixes:
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            images, targets = mix(images, targets)
        if self.share:
            for index in torch.nonzero(torch.rand(len(images)) < self.share).flatten().tolist():
                place = self.erasing.make_params([images[index]])
                if place["v"] is not None:
                    top, left = place["i"], place["j"]
                    images[index, :, top : top + place["h"], left : left + place["w"]] = 0
        return images, targets
