"""Pictures of what was measured."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from loadtest.compare import Row

mpl.use("Agg")


def accuracy_against_compute(rows: list[Row], path: Path) -> None:
    """Top-1 against MACs, the area of a ball proportional to the parameters; as PNG."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for row in rows:
        top1 = 100 * (row.right if row.top1 is None else row.top1)
        area = 40 + row.params / 40_000  # points squared
        axes.scatter(row.macs, top1, s=area, alpha=0.6, edgecolors="black")
        note = f"{row.model.partition(':')[0]}\n{row.params / 1e6:.2f} M parameters\np50 {row.p50_ms:.0f} ms"
        axes.annotate(
            note,
            (row.macs, top1),
            xytext=(0, -4 - math.sqrt(area / math.pi)),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.6)
    axes.set_xlabel("multiply-accumulates an image, at the input that these weights take")
    axes.set_ylabel("held-out top-1, %")
    axes.set_title("Accuracy against compute; area of a ball: parameters")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
