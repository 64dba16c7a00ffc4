"""How accurate an engine is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engines.engine import Engine
from engines.manifest import Accuracy
from engines.preprocess import Preprocess
from training.data import Images

BATCH = 32


def logits(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The engine's logits, (N, classes), in batches of at most 32."""
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return np.concatenate([engine.infer(batch) for batch in batches])


def held_out_logits(engine: Engine, images: Images, preprocess: Preprocess) -> NDArray[np.float32]:
    """The engine's logits of every image, of which no more than a batch are in memory."""
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / BATCH))
    return np.concatenate(
        [
            engine.infer(images.pixels(preprocess, batch))
            for batch in tqdm(batches, "evaluating", leave=False, disable=None)
        ]
    )


def accuracy(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> Accuracy:
    """Top-1 of logits, (N, classes)."""
    return Accuracy(top1=float((outputs.argmax(1) == targets).mean()), images=len(targets))
