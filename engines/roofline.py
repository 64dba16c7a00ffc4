"""What bounds each engine: its multiply-accumulates a second below this machine's two peaks (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from engines import records
from engines.peak import Peak, bytes_moved
from engines.records import BATCH, Speed
from engines.store import PublishedModel

mpl.use("Agg")
LITTLE = 0.25  # an engine that uses less of either peak spends its time elsewhere
MARKERS = {"fp32": ("o", "tab:blue"), "bf16": ("s", "tab:orange"), "int8": ("^", "tab:green")}


def measured(models: Sequence[PublishedModel], peak: Peak) -> list[Speed]:
    """OpenVINO's rows of one stream and all threads, at batch 8, of precisions whose peak is known."""
    rows = [
        row
        for model in models
        for precision in MARKERS
        if precision in peak.gmacs_per_s and (record := records.find(model, "openvino", precision))
        for row in record.decisive
    ]
    return [row for row in rows if (row.streams, row.threads) == (1, None)]


def bound(speed: Speed) -> str:
    """What keeps an engine from being faster."""
    assert speed.of_compute is not None
    assert speed.of_bandwidth is not None
    share = max(speed.of_compute, speed.of_bandwidth)
    if share < LITTLE:
        return f"by neither: {speed.of_compute:.0%} of the arithmetic, {speed.of_bandwidth:.0%} of the bandwidth"
    if speed.of_compute >= speed.of_bandwidth:
        return f"by arithmetic: {speed.of_compute:.0%} of its peak"
    return f"by memory: {speed.of_bandwidth:.0%} of its bandwidth"


def draw(models: Sequence[PublishedModel], speeds: Sequence[Speed], peak: Peak, path: Path) -> list[Path]:
    """Write the picture of these speeds as PNG and SVG; the paths."""
    costs = {model.manifest.tag: model.manifest.complexity for model in models}
    figure, axes = plt.subplots(figsize=(10, 7), layout="constrained")
    for precision in peak.gmacs_per_s:
        marker, colour = MARKERS[precision]
        rows = [speed for speed in speeds if speed.precision == precision]
        intensities = [
            speed.batch * costs[speed.tag].macs / bytes_moved(costs[speed.tag], precision, speed.batch)
            for speed in rows
        ]
        heights = [speed.gmacs_per_s for speed in rows]
        axes.plot(intensities, heights, marker, color=colour, label=precision)
        roof(axes, peak, precision, colour)
        for speed, intensity in zip(rows, intensities, strict=True):
            name, place = speed.tag.partition(":")[0], (intensity, speed.gmacs_per_s)
            axes.annotate(name, place, textcoords="offset points", xytext=(5, 3), fontsize=7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="multiply-accumulates per byte moved (weights once a batch, activations in and out of each layer)",
        ylabel="10⁹ multiply-accumulates a second",
        title=f"OpenVINO at batch {BATCH} on {peak.device}",
    )
    axes.grid(which="both", alpha=0.2)
    axes.legend()
    paths = [path.with_suffix(ending) for ending in (".png", ".svg")]
    for written in paths:
        written.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(written, dpi=120)
    plt.close(figure)
    return paths


def roof(axes: Axes, peak: Peak, precision: str, colour: str) -> None:
    """The line below which this precision stays."""
    top = peak.gmacs_per_s[precision]
    ridge = top / peak.gb_per_s
    axes.plot([ridge / 1000, ridge, ridge * 100], [top / 1000, top, top], color=colour, alpha=0.6)
