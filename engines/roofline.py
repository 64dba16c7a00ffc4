"""What bounds each engine: its multiply-accumulates a second below this machine's two peaks (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from adjustText import adjust_text
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from engines import records
from engines.peak import Peak, bytes_moved
from engines.records import BATCH, Speed
from engines.store import PublishedModel

mpl.use("Agg")
LITTLE = 0.25  # an engine that uses less of either peak spends its time elsewhere


def measured(models: Sequence[PublishedModel], peak: Peak) -> list[Speed]:
    """OpenVINO's rows of one stream and all threads, at batch 8, of precisions whose peak is known."""
    rows = [
        row
        for model in models
        for precision in peak.gmacs_per_s
        if (record := records.find(model, "openvino", precision))
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
    """Write the picture of these speeds, a panel a precision, as PNG and SVG; the paths."""
    costs = {model.manifest.tag: model.manifest.complexity for model in models}
    precisions = [name for name in peak.gmacs_per_s if any(speed.precision == name for speed in speeds)]
    figure, panels = plt.subplots(
        len(precisions), figsize=(10, 7 * len(precisions)), layout="constrained", squeeze=False
    )
    for axes, precision in zip(panels.flat, precisions, strict=True):
        rows = [speed for speed in speeds if speed.precision == precision]
        places = {
            speed.tag: (
                BATCH * costs[speed.tag].macs / bytes_moved(costs[speed.tag], precision, BATCH),
                speed.gmacs_per_s,
            )
            for speed in rows
        }
        panel(axes, places, peak, precision)
    figure.suptitle(f"OpenVINO at batch {BATCH} on {peak.device}")
    paths = [path.with_suffix(ending) for ending in (".png", ".svg")]
    for written in paths:
        written.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(written, dpi=120)
    plt.close(figure)
    return paths


def panel(axes: Axes, places: dict[str, tuple[float, float]], peak: Peak, precision: str) -> None:
    """One precision: the engines by tag, each at its arithmetic intensity and speed, and the line they stay below."""
    intensities, heights = zip(*places.values(), strict=True)
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
    names = [axes.text(*place, tag.partition(":")[0], fontsize=7) for tag, place in places.items()]
    adjust_text(names, ax=axes, arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"})
