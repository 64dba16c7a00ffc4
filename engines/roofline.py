"""What bounds each engine: its multiply-accumulates a second below this machine's two peaks (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from adjustText import adjust_text
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engines import records
from engines.peak import Peak, bytes_moved
from engines.records import BATCH
from engines.store import PublishedModel

mpl.use("Agg")
LITTLE = 0.25  # an engine that uses less of either peak spends its time elsewhere


class Point(NamedTuple):
    """One engine: 10^9 multiply-accumulates a second, how many a byte moved, and its shares of the two peaks."""

    tag: str
    precision: str
    gmacs_per_s: float
    intensity: float
    of_compute: float
    of_bandwidth: float

    @property
    def bound(self) -> str:
        """What keeps the engine from being faster."""
        if max(self.of_compute, self.of_bandwidth) < LITTLE:
            return f"by neither: {self.of_compute:.0%} of the arithmetic, {self.of_bandwidth:.0%} of the bandwidth"
        if self.of_compute >= self.of_bandwidth:
            return f"by arithmetic: {self.of_compute:.0%} of its peak"
        return f"by memory: {self.of_bandwidth:.0%} of its bandwidth"


def measured(models: Sequence[PublishedModel], peak: Peak) -> list[Point]:
    """OpenVINO's engines with one stream and all threads, at batch 8, of precisions whose peak is known."""
    points = []
    for model in models:
        cost = model.manifest.complexity
        for precision in peak.gmacs_per_s:
            record = records.find(model, "openvino", precision)
            for row in record.decisive if record else ():
                shares = peak.shares(cost, precision, BATCH, row.images_per_s)
                if (row.streams, row.threads) == (1, None) and shares:
                    intensity = BATCH * cost.macs / bytes_moved(cost, precision, BATCH)
                    points.append(Point(row.tag, precision, row.gmacs_per_s, intensity, *shares))
    return points


def draw(points: Sequence[Point], peak: Peak, path: Path) -> list[Path]:
    """Write the picture as PNG and SVG; the paths."""
    figure = picture(points, peak)
    paths = [path.with_suffix(ending) for ending in (".png", ".svg")]
    for written in paths:
        written.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(written, dpi=120)
    plt.close(figure)
    return paths


def picture(points: Sequence[Point], peak: Peak) -> Figure:
    """A panel a precision, one below the other."""
    precisions = [name for name in peak.gmacs_per_s if any(point.precision == name for point in points)]
    figure, panels = plt.subplots(
        len(precisions), figsize=(10, 7 * len(precisions)), layout="constrained", squeeze=False
    )
    for axes, precision in zip(panels.flat, precisions, strict=True):
        panel(axes, [point for point in points if point.precision == precision], peak, precision)
    figure.suptitle(f"OpenVINO at batch {BATCH} on {peak.device}")
    figure.draw_without_rendering()  # lays out: names make room for each other where they will be
    for axes in panels.flat:
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "grey"}
        adjust_text(list(axes.texts), ax=axes, objects=[axes.get_legend()], iter_lim=500, arrowprops=line)
    return figure


def panel(axes: Axes, points: Sequence[Point], peak: Peak, precision: str) -> None:
    """One precision: the engines by name, each at its arithmetic intensity and speed, and the line they stay below."""
    intensities = [point.intensity for point in points]
    heights = [point.gmacs_per_s for point in points]
    axes.plot(intensities, heights, "o", markersize=4)
    axes.set(
        xscale="log",
        yscale="log",
        title=precision,
        xlabel="multiply-accumulates per byte moved (weights once a batch, activations in and out of each layer)",
        ylabel="10⁹ multiply-accumulates a second",
    )
    axes.grid(which="both", alpha=0.2)
    axes.margins(0.1)
    left, right = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    top = peak.gmacs_per_s[precision]
    roof = f"peaks: {top:.0f} · 10⁹ a second, {peak.gb_per_s:.0f} GB/s"
    ridge = max(left, top / peak.gb_per_s)
    axes.plot([left, ridge, right], [min(top, left * peak.gb_per_s), top, top], color="tab:red", alpha=0.6, label=roof)
    axes.set(xlim=(left, right), ylim=(bottom, 1.2 * max(top, *heights)))
    axes.legend(loc="lower right")
    architectures = [point.tag.partition(":")[0] for point in points]
    for point, name in zip(points, architectures, strict=True):
        axes.text(point.intensity, point.gmacs_per_s, name if architectures.count(name) == 1 else point.tag, fontsize=7)
