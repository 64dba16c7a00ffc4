"""Plots: training curves, comparisons of networks, and confusion matrices."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import ConfusionMatrixDisplay

from engines.published import files
from training.checkpoint import Epoch
from training.errors import TrainingError
from training.evaluate import Bin
from training.machine import check_writable, machine_errors

mpl.use("Agg")
mpl.rcParams["text.parse_math"] = False  # a label may have dollar signs
WRITTEN_CLASSES = 20  # A confusion matrix of more classes has no room for numbers and names.


def curves(title: str, epochs: Sequence[Epoch], path: Path) -> None:
    """Plot training loss and held-out top-1 by epoch, as PNG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    numbers = [epoch.epoch for epoch in epochs]
    (loss,) = axes.plot(numbers, [epoch.loss for epoch in epochs], "o-", color="tab:red", label="training loss")
    axes.set(xlabel="epoch", ylabel="training loss", title=title)
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    accuracies = [100 * epoch.top1 for epoch in epochs]
    (top1,) = right.plot(numbers, accuracies, "s-", color="tab:blue", label="held-out top-1, %")
    right.set_ylabel("held-out top-1, %")
    axes.legend(handles=[loss, top1], loc="center right")
    axes.grid(alpha=0.3)
    save(figure, path)


def losses_by_rate(title: str, rates: Sequence[float], losses: Sequence[float], proposed: float, path: Path) -> None:
    """Plot the mean loss by learning rate with the proposed rate, as PNG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(rates, losses)
    axes.axvline(proposed, linestyle="--", color="tab:red", label=f"{proposed:.1e}")
    axes.set(xlabel="learning rate", ylabel="mean loss", xscale="log", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def comparison(
    title: str, series: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]], path: Path
) -> None:
    """Plot the mean, minimum and maximum over seeds by epoch, as PNG.

    `series` maps a network to its training losses and its held-out top-1s, each a sequence per seed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for (label, values), style in zip(series.items(), ("o-", "s--", "^-.", "d:"), strict=False):
        for axis, of_seeds, scale in zip(axes, values, (1, 100), strict=True):
            seeds = scale * np.array(of_seeds)
            epochs = np.arange(1, seeds.shape[1] + 1)
            (line,) = axis.plot(epochs, seeds.mean(0), style, label=label)
            axis.fill_between(epochs, seeds.min(0), seeds.max(0), color=line.get_color(), alpha=0.2)
    axes[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="held-out top-1, %")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    save(figure, path)


def confusion(title: str, matrix: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Plot a confusion matrix, true classes in rows and predicted classes in columns, as PNG."""
    save(confusion_figure(title, matrix, labels), path)


def confusion_figure(title: str, matrix: NDArray[np.int64], labels: Sequence[str]) -> Figure:
    """Return the figure of a confusion matrix."""
    written = len(labels) <= WRITTEN_CLASSES
    figure, axes = plt.subplots(figsize=(8, 8), layout="constrained")
    display = ConfusionMatrixDisplay(matrix, display_labels=labels if written else None)
    display.plot(ax=axes, include_values=written, colorbar=not written, xticks_rotation="vertical", cmap="Blues")
    if not written:
        axes.set(xticks=[], yticks=[])
    axes.set_title(title)
    return figure


def calibration(title: str, bins: Sequence[Bin]) -> bytes:
    """Return the plot of the share of right answers by mean confidence, a point for each bin of images, as PNG."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    filled = [bin_ for bin_ in bins if bin_.images]
    largest = max(bin_.images for bin_ in filled)
    axes.plot([0, 1], [0, 1], "--", color="tab:gray")
    axes.scatter(
        [bin_.confidence / bin_.images for bin_ in filled],
        [bin_.right / bin_.images for bin_ in filled],
        s=[20 + 200 * bin_.images / largest for bin_ in filled],
        alpha=0.7,
    )
    axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    return encoded(figure, "png")


def check_picture(path: Path, other: str) -> None:
    """Raise TrainingError, with `other`, which says how to choose another file, if no picture can be written there."""
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix[1:].lower() not in {"", *known}:
        raise TrainingError(f"{path}: a picture ends in one of {', '.join(known)}; {other}")
    check_writable(path.parent, other)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, and close the figure. Raises MachineError if it cannot be written."""
    picture = encoded(figure, path.suffix[1:] or "png")
    with machine_errors(path):
        files.write(path, picture)


def encoded(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of a kind, such as "png", and close the figure."""
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=120)
    plt.close(figure)
    return picture.getvalue()
