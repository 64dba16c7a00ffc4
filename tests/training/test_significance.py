"""Tests of the warnings about an accuracy that few held-out images or chance can explain."""

from __future__ import annotations

import numpy as np
import pytest

from engines.published.manifest import Accuracy
from training.significance import warnings


@pytest.mark.parametrize(
    ("classes", "images", "top1", "expected"),
    [
        (10, 1000, 0.978, []),
        (10, 1000, 0.11, ["cannot be told from chance: always answering the most frequent class gives 10.0%"]),
        (3, 60, 0.95, []),
        (3, 6, 1.0, ["only 6 images are held out: top-1 on other pictures is between 61% and 100%"]),
        (3, 4, 0.25, ["cannot be told from chance", "only 4 images are held out"]),
    ],
)
def test_chance_and_few_images_are_reported(classes: int, images: int, top1: float, expected: list[str]) -> None:
    found = warnings(Accuracy(top1=top1, images=images), np.arange(images) % classes)
    assert len(found) == len(expected)
    assert all(part in warning for part, warning in zip(expected, found, strict=True))


def test_chance_is_the_most_frequent_class() -> None:
    targets = np.repeat([0, 1], [90, 10])
    assert "gives 90.0%" in warnings(Accuracy(top1=0.92, images=100), targets)[0]
    assert warnings(Accuracy(top1=0.99, images=100), targets) == []
