"""Sections of the report: this machine's own results first, papers' figures last."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from loadtest.landscape.document import reading
from loadtest.landscape.figure import landscape_figure
from loadtest.landscape.rows import LandscapeRow
from loadtest.report import bars, charts, data
from loadtest.report.data import Records
from loadtest.rows import Measured, ServedArchitecture

LINEAR, BOTH = (False, False), (True, True)  # which of the axes x and y are logarithmic
COLUMNS = {
    "label": "model",
    "precision": "precision",
    "top1": "top-1, %",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "images_per_s": "images/s",
    "max_rate": "highest rate/s",
    "gmacs": "MACs",
    "mparams": "parameters",
    "engine_mb": "engine, MB",
}


@dataclass(frozen=True)
class Figure:
    """Drawing with its title and caption; `draw(width=…)` returns it for a page or a phone.

    `name` is the name of its picture without the suffix.
    """

    name: str
    title: str
    caption: str
    draw: Callable[..., Any]


@dataclass(frozen=True)
class Table:
    """Table with a caption, which a click on a heading sorts. A cell is a text, a smaller second line, and a value."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[tuple[str, str, object]]]


@dataclass(frozen=True)
class Section:
    """Section of the page with the name of its anchor: a note, figures, and a table."""

    name: str
    title: str
    note: str = ""
    figures: list[Figure] = field(default_factory=list)
    table: Table | None = None


def landscape_section(rows: Sequence[LandscapeRow]) -> Section:
    """Return the section on published accuracy against time measured here."""
    machine = rows[0].machine
    note = (
        "Top-1 on ImageNet as published by each network's paper or library (source on hover), against time measured on"
        f" this machine ({machine.get('processor', 'unknown processor')}). The weights that were timed are random where"
        " none were imported: time does not depend on them, and no accuracy here was measured."
    )
    draw = partial(landscape_figure, rows)
    figure = Figure("landscape", "Published accuracy against time measured here", reading(rows), draw)
    return Section("landscape", "What each network buys on ImageNet", note, [figure])


def measured_section(dataset: str, measurements: Sequence[Measured], p99_ms: float | None) -> Section:
    """Return the section of one data set: accuracy of the served weights against cost and time on this machine."""
    every = data.measured(measurements)
    records = [record for record in every if record["top1"] is not None]
    name = re.sub(r"\W+", "_", dataset)
    title = f"Trained and measured here: {dataset}"
    if not records:
        return Section(name, title, "None of these weights has a measured accuracy.", table=full_table(every))
    several = len({record["precision"] for record in records}) > 1
    joined = " A line joins the precisions of one model." if several else ""
    note = f"Top-1 of the served weights on {images(records)}held-out images of {dataset}.{joined}"
    load, draw = measurements[0].engine.load, partial(charts.scatter, records)
    figures = [
        Figure(f"{name}_{what}", title, caption, drawn)
        for what, field_of_x, title, caption, drawn in (
            (
                *("p99", "p99_ms", "Accuracy against the p99 of one connection"),
                f"Blue, on the dashed line: no other engine is both faster and more accurate.{chance(records)}",
                partial(draw, "p99_ms", bound=p99_ms),
            ),
            (
                *("rate", "max_rate", "Accuracy against the highest rate"),
                f"Poisson arrivals, p99 within {load.p99_ms:g} ms. Right is better.",
                partial(draw, "max_rate", more_is_better=True),
            ),
            (
                *("macs", "gmacs", "Accuracy against multiply-accumulates"),
                "A precision does not change their number.",
                partial(charts.scatter, one_precision(records), "gmacs"),
            ),
        )
        if charts.drawable(records, field_of_x)
    ]
    return Section(name, title, note, figures, full_table(every))


def images(records: Records) -> str:
    """Return the number of held-out images, if all accuracies have the same, with a space."""
    counts = {record["images"] for record in records}
    return f"{counts.pop():,} " if len(counts) == 1 and None not in counts else ""


def chance(records: Records) -> str:
    """Return the largest half-width of the accuracies' 95 % intervals as a sentence; nothing without counts."""
    known = [record for record in records if record["images"]]
    if not known:
        return ""
    points = max(record["top1"] - data.lower_bound(record["top1"], record["images"]) for record in known)
    return f" Chance alone moves an accuracy by up to {points:.1f} points (95 %)."


def one_precision(records: Records) -> Records:
    """Return the records of the first precision of each model."""
    return list({record["label"]: record for record in reversed(records)}.values())[::-1]


def full_table(records: Records) -> Table:
    """Return the table of all engines, the most accurate first, and of equals the fastest."""
    spread = any(record["p99_ms_spread"] for record in records)
    caption = "A click on a heading sorts." + (" Small: the least and the largest of the rounds." if spread else "")
    ordered = sorted(records, key=lambda record: (-(record["top1"] or 0), record["p99_ms"] or 0))
    lines = [
        [(shown(name, record[name]), record.get(f"{name}_spread") or "", record[name]) for name in COLUMNS]
        for record in ordered
    ]
    return Table(caption, list(COLUMNS.values()), lines)


def shown(name: str, value: object) -> str:
    """Format a cell: counts with a unit, other numbers with three digits, None as a dash."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return data.precision_name(str(value))
    if name in charts.UNITS:
        return counted(value * charts.UNITS[name])
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def counted(count: float) -> str:
    """Return a count with three digits and its unit: 60.0 K, 25.6 M, 4.09 G."""
    unit, factor = next(((unit, factor) for unit, factor in (("G", 1e9), ("M", 1e6)) if count >= factor), ("K", 1e3))
    return f"{count / factor:#.3g}".rstrip(".") + f" {unit}"


def details_section(measurements: Sequence[Measured], records: Records) -> Section:
    """Return the section of times, rates and memory, without accuracy."""
    figures = [
        *engine_figures(data.batches(measurements)),
        *request_figures(measurements, records),
        *cost_figures(records),
    ]
    return Section("details", "Details", figures=figures)


def engine_figures(speeds: Records) -> list[Figure]:
    """Return the figures of engines alone: precisions, batch sizes, and the limiting resource."""
    figures = []
    eight = [speed for speed in speeds if speed["batch"] == 8]
    pairs = {speed["label"] for speed in eight if speed["precision"] == "fp32"} & {
        speed["label"] for speed in eight if speed["precision"] != "fp32"
    }
    if pairs:
        others = list(dict.fromkeys(speed["precision"] for speed in eight if speed["precision"] != "fp32"))
        figures += [
            Figure(
                f"precision_{other}",
                f"{data.precision_name(other)} against fp32",
                f"{charts.SYMBOLS['fp32']} fp32, ○ {data.precision_name(other)}; right is faster.",
                partial(
                    bars.precisions,
                    [speed for speed in eight if speed["precision"] in {"fp32", other} and speed["label"] in pairs],
                    "images_per_s",
                ),
            )
            for other in others
        ]
    if len({speed["batch"] for speed in speeds}) > 1:
        caption = "The engine alone, without HTTP."
        draw = partial(charts.line_panels, speeds, "batch", "images_per_s")
        figures.append(Figure("batch_throughput", "What a larger batch gains", caption, draw))
    if placed := charts.drawable(eight, "intensity", "of_compute"):
        caption = (
            "Each engine's share of its precision's arithmetic peak at batch 8, against its multiply-accumulates per"
            " byte moved: memory is the limit left of 1, arithmetic right of 1."
        )
        roof = charts.Fitted("the limit", lambda intensity: min(1.0, intensity))
        draw = partial(charts.scatter, placed, "intensity", "of_compute", log=BOTH, drawn_front=False, fitted=roof)
        figures.append(Figure("roofline", "Memory or arithmetic", caption, draw))
    return figures


def request_figures(measurements: Sequence[Measured], records: Records) -> list[Figure]:
    """Return the figures of requests through the server."""
    parts, rates, figures = data.stages(records), data.rates(measurements), []
    if parts:
        caption = 'Means of the server\'s stages, ms; "HTTP and client" is the rest of the p50 of one connection.'
        figures.append(Figure("stages", "Where a request's time goes", caption, partial(bars.stages, parts)))
    if rates:
        caption = "At 10, 50 and 80 % of the highest rate whose p99 was within the bound."
        draw = partial(charts.line_panels, rates, "rate", "p99_ms")
        figures.append(Figure("rates", "p99 under load", caption, draw))
    return figures


def cost_figures(records: Records) -> list[Figure]:
    """Return the figures of time and memory against costs that are known before measuring."""
    figures = []
    precision = next((name for name in charts.SYMBOLS if any(row["precision"] == name for row in records)), "")
    of_one = [record for record in records if record["precision"] == precision]
    if line := data.fit(of_one):
        caption = (
            f"Time of one inference within a request, in {data.precision_name(precision)}: the least-squares line is"
            f" {line.fixed_ms:.2f} ms + {line.ms_per_gmac:.1f} ms for 10⁹ multiply-accumulates"
            f" (R² {line.r_squared:.2f})."
        )
        fitted = charts.Fitted("least squares", line.at)
        draw = partial(charts.scatter, of_one, "gmacs", "inference_ms", log=LINEAR, drawn_front=False, fitted=fitted)
        figures.append(Figure("predicted", "Do multiply-accumulates predict time?", caption, draw))
    if remembered := charts.drawable(records, "param_mb", "engine_mb"):
        caption = "Memory that the engine and its largest timed batch add to a process, against that of the parameters."
        alone = charts.Fitted("parameters alone", float)
        draw = partial(charts.scatter, remembered, "param_mb", "engine_mb", log=BOTH, drawn_front=False, fitted=alone)
        figures.append(Figure("memory", "Memory", caption, draw))
    return figures


def published_section(architectures: Sequence[ServedArchitecture], drawn: Collection[str] = ()) -> Section:
    """Return the section of accuracies that others published, against costs at the same input.

    The drawings that the landscape has too are left out if all networks are among its `drawn` names.
    """
    records = data.published(architectures)
    note = (
        f"Top-1 on ImageNet's validation images, one crop of the input at which the cost is counted, as published"
        f" by the source (on hover): {len(records)} of {len(architectures)} architectures have such a figure."
        f" Nothing in this section was measured here."
    )
    figures = []
    if not {record["model"] for record in records} <= set(drawn):
        caption = "After Canziani et al. 2016, Fig. 2. Blue, dashed: no other is both cheaper and more accurate."
        figures += [
            Figure(f"published_{name}", f"Published accuracy against {what}", said, partial(charts.scatter, records, x))
            for name, what, said, x in (
                ("macs", "multiply-accumulates", caption, "gmacs"),
                ("params", "parameters", "", "mparams"),
                ("activations", "activations", "", "mactivations"),
            )
        ]
    if records:
        caption = "Top-1 percent per 10⁶ parameters (Canziani et al., Fig. 10; Bianco et al. 2018, Fig. 2a)."
        draw = partial(bars.bars, records, "top1_per_mparams")
        figures.append(Figure("published_top1_per_mparams", "Published accuracy per parameter", caption, draw))
    caption = "Top-5 error on the test set in percent; entries are ensembles."
    figures.append(Figure("ilsvrc", "ILSVRC's winners", caption, bars.history))
    return Section("published", "Published figures", note, figures)
