"""Accuracy and calibration of an engine on held-out images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from tqdm import tqdm

from engines.published.manifest import Accuracy
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import MAX_BATCH, Engine
from training.data import Images

BINS = 15  # Guo et al. 2017, arXiv:1706.04599


def held_out_logits(engine: Engine, images: Images, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return an engine's logits, (N, classes), of all images. Only one batch of pixels is in memory at a time."""
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / MAX_BATCH))
    progress = tqdm(batches, "evaluating", leave=False, disable=None)
    return np.concatenate([engine.infer(images.pixels(preprocess, batch)) for batch in progress])


def accuracy(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> Accuracy:
    """Return top-1 of logits, (N, classes)."""
    return Accuracy(top1=float((outputs.argmax(1) == targets).mean()), images=len(targets))


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, calibration error and confusion matrix; all shares are between 0 and 1.

    `confusion` counts images by true class (rows) and predicted class (columns). `calibration_error` is the mean
    difference of confidence and accuracy over 15 equal bins of confidence, weighted by their images (Guo et al. 2017,
    equation 3). `per_class` is the top-1 of each class, NaN for a class without images.
    """

    images: int
    top1: float
    top5: float
    calibration_error: float
    per_class: NDArray[np.float64]
    confusion: NDArray[np.int64]


def evaluate(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> Evaluation:
    """Return the evaluation of logits, (N, classes), against the true classes `targets`, (N,)."""
    classes = np.arange(outputs.shape[1])
    matrix = confusion_matrix(targets, outputs.argmax(1), labels=classes)
    with np.errstate(invalid="ignore"):
        per_class = matrix.diagonal() / matrix.sum(1)
    return Evaluation(
        images=len(targets),
        top1=accuracy(outputs, targets).top1,
        top5=float(top_k_accuracy_score(targets, outputs, k=5, labels=classes)) if len(classes) > 5 else 1.0,
        calibration_error=calibration_error(outputs, targets),
        per_class=per_class,
        confusion=matrix,
    )


def probabilities(outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax of logits, (N, classes)."""
    exponents = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    shares: NDArray[np.float64] = exponents / exponents.sum(1, keepdims=True)
    return shares


class Bin(NamedTuple):
    """Bin of confidence: number of images, sum of their confidences, and how many are right."""

    images: int
    confidence: float
    right: int


def reliability(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> list[Bin]:
    """Return the 15 equal bins of confidence of logits, (N, classes), the least confident first."""
    confidence = probabilities(outputs).max(1)
    right = outputs.argmax(1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [bins == bin_ for bin_ in range(BINS)]
    return [Bin(int(each.sum()), float(confidence[each].sum()), int(right[each].sum())) for each in inside]


def calibration_error(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Return the expected calibration error of logits, (N, classes), between 0 and 1."""
    return sum(abs(bin_.confidence - bin_.right) for bin_ in reliability(outputs, targets)) / len(targets)
