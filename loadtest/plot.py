"""Pictures of what was measured."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection

from loadtest.compare import Load, Row

mpl.use("Agg")


def accuracy_against_compute(rows: list[Row], load: Load, path: Path) -> None:
    """Held-out top-1, where it is known, against MACs, as PNG; the area of a ball grows with the parameters."""
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for row in rows:
        model = row.model
        if model.top1 is None:
            continue
        area = 40 + model.params / 40_000  # points squared
        place = (model.macs, 100 * model.top1)
        note = f"{model.name}: {model.params / 1e6:.2f} M parameters, p50 {row.median('p50_ms'):.0f} ms"
        axes.scatter(*place, s=area, alpha=0.6, edgecolors="black", label=note)
    legend = figure.legend(loc="outside right upper", fontsize=8)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.3)
    axes.set_xlabel("multiply-accumulates an image, at the input that these weights take")
    axes.set_ylabel("held-out top-1, %")
    axes.set_title("Accuracy against compute; the area of a ball grows with the parameters")
    figure.supxlabel("\n".join(textwrap.wrap(str(load), 110)), fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
