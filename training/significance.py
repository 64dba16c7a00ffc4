"""Significance of an accuracy: how far few held-out images can mislead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from engines.published.manifest import Accuracy

DOUBT = 0.05  # probability of an accuracy by chance above which the accuracy proves nothing
WIDE = 0.1  # half of a 95 % interval that is too wide to compare models by


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of the share `right` / `images`."""
    low, high = binomtest(right, images).proportion_ci(method="wilson")
    return float(low), float(high)


def warnings(accuracy: Accuracy, targets: NDArray[np.int64]) -> list[str]:
    """Return what to know before relying on a top-1 of images with the true classes `targets`, (N,).

    A one-sided binomial test compares the top-1 with always answering the most frequent class; the interval is
    Wilson's, of 95 %.
    """
    right = round(accuracy.top1 * accuracy.images)
    most_frequent = float(np.bincount(targets).max()) / len(targets)
    found = []
    if binomtest(right, accuracy.images, most_frequent, alternative="greater").pvalue > DOUBT:
        found.append(
            f"top-1 {accuracy.top1:.1%} of {accuracy.images} held-out images cannot be told from chance: always "
            f"answering the most frequent class gives {most_frequent:.1%}"
        )
    low, high = wilson(right, accuracy.images)
    if high - low > 2 * WIDE:
        found.append(
            f"only {accuracy.images} images are held out: top-1 on other pictures is between {low:.0%} and {high:.0%} "
            "(95 % confidence)"
        )
    return found
