"""Losses: cross-entropy, LeNet-5's, weights of classes, and a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def map_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0, weight: Tensor | None = None) -> Tensor:
    """Return the maximum a posteriori loss (LeCun et al. 1998, equation 9): a "rubbish" class at the distance j.

    The paper states no value for j. Here j is the distance of a code with a tenth of its 84 pixels flipped, 4 each.
    """
    j = 4 * 84 / 10
    rubbish = logits.new_full((len(logits), 1), -j)
    if targets.is_floating_point():  # shares of each class
        targets = F.pad(targets, (0, 1))
    if weight is not None:
        weight = F.pad(weight, (0, 1), value=1)
    return F.cross_entropy(torch.cat([logits, rubbish], dim=1), targets, weight=weight, label_smoothing=label_smoothing)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "map": map_loss}


def balanced_weights(targets: NDArray[np.int64], classes: int) -> Tensor:
    """Return a weight for each class, inversely proportional to its number of images; images weigh 1 on average."""
    counts = np.bincount(targets, minlength=classes).clip(1)
    return torch.from_numpy(len(targets) / (classes * counts)).float()


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence from a teacher's logits, both softened (Hinton et al. 2015, section 2).

    The square of the temperature is a factor, so that gradients keep their size.
    """
    ours, theirs = (F.log_softmax(each / temperature, dim=1) for each in (logits, taught))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
