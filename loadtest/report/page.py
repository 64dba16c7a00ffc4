"""The report's files: index.html, which needs nothing else, a picture a drawing, and CSV of what was drawn."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from loadtest import rows
from loadtest.report import charts, data
from loadtest.report.data import Records
from loadtest.rows import Architecture, Engine, Measured, by_engine
from loadtest.traffic import ScenarioError

COLUMNS = {
    "model": "model",
    "top1": "top-1 %",
    "gmacs": "GMACs",
    "mparams": "parameters, 10⁶",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "images_per_s": "images/s",
    "max_rate": "highest rate /s",
    "p99_at_80_ms": "p99 ms at 80 %",
    "cpu_ms": "CPU ms",
    "engine_mb": "engine MB",
    "failures": "failed offline",
}


@dataclass(frozen=True)
class Figure:
    """A drawing; `name` is its picture's, without the suffix."""

    name: str
    title: str
    caption: str
    chart: Any


@dataclass(frozen=True)
class TableRow:
    """Of a family, if it is to be filtered."""

    cells: Sequence[str]
    family: str = ""


@dataclass(frozen=True)
class Table:
    """Figures in rows."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[TableRow]
    sorts: bool = False


@dataclass(frozen=True)
class Section:
    """One kind of accuracy, or none."""

    title: str
    note: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def write_report(results: Path, folder: Path) -> None:
    """From a sweep's file; ScenarioError if it is not one, or holds no engine."""
    architectures, engines = rows.read(results)
    if not engines:
        raise ScenarioError(f"{results} holds no measured engine")
    found = by_engine(engines)
    records = data.measured(found)
    sections = [published_section(architectures)]
    for dataset, group in groupby(sorted(found, key=lambda found: found.engine.dataset), lambda f: f.engine.dataset):
        sections.append(measured_section(dataset, list(group)))
    sections.append(time_section(found, records))
    folder.mkdir(parents=True, exist_ok=True)
    for figure in (figure for section in sections for figure in section.figures):
        png = vl_convert.vegalite_to_png(figure.chart.to_json(), scale=2)
        (folder / f"{figure.name}.png").write_bytes(png)
    write_csv(folder / "measured.csv", records)
    write_csv(folder / "published.csv", data.published(architectures))
    (folder / "index.html").write_text(html(sections, engines))


def html(sections: Sequence[Section], engines: Sequence[Engine]) -> str:
    """The page, with its drawings and what draws them."""
    figures = [figure for section in sections for figure in section.figures]
    specs = json.dumps({figure.name: figure.chart.to_dict() for figure in figures}).replace("<", "\\u003c")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("page.html").render(
        about=about(engines),
        families=sorted({engine.family for engine in engines}),
        problems=[
            f"{row.tag} in {row.precision}, round {row.round + 1}: {row.problem}" for row in engines if row.problem
        ],
        sections=sections,
        specs=Markup(specs),  # noqa: S704 (JSON of ours)
        library=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")),  # noqa: S704 (Vega)
    )


def about(engines: Sequence[Engine]) -> list[str]:
    """What a reader must know to judge the figures."""
    load, last = engines[0].load, engines[-1]
    versions = ", ".join(
        f"{name} {value}" for name, value in {**last.server, **last.client}.items() if name != "processor"
    )
    behind = sum(point.fell_behind is not None for row in engines for point in (*row.search, *row.at_percent.values()))
    return [
        f"Server: {last.server.get('processor', 'unknown')}; {versions}. {min(row.date for row in engines)} to"
        f" {max(row.date for row in engines)}. {1 + max(row.round for row in engines)} round(s) of"
        f" {load.seconds:g} s a run after a warm-up of 2 s; medians of rounds.",
        f"One connection: one request after another. Offline: always {load.in_flight} requests in flight. Highest rate:"
        f" the most requests a second, coming by a Poisson process, whose p99 since each was due stays within"
        f" {load.p99_ms:g} ms, by {load.steps} halvings below the offline rate."
        f" All over HTTP, the load generator on the client's {last.client['cores']} cores. In {behind} open loops the"
        f" generator fell behind.",
    ]


def published_section(architectures: Sequence[Architecture]) -> Section:
    """Accuracies that others measured, against costs at the same input; no time of ours."""
    records = data.published(architectures)
    note = (
        f"Top-1 on ImageNet's validation images, one crop of the input at which the cost is counted, as published"
        f" by the source in the tooltip: {len(records)} of {len(architectures)} architectures have such a figure."
        f" Nothing here was measured by us; times that were are of other weights and inputs, and not in these drawings."
    )
    figures = [Figure("ilsvrc", "ILSVRC's winners", "Top-5 error on the test set; ensembles.", charts.history())]
    if records:
        figures += [
            ball(
                "published_macs",
                records,
                "gmacs",
                "mparams",
                "Canziani et al. 2016, Fig. 2; Bianco et al. 2018, Fig. 1.",
            ),
            ball("published_params", records, "mparams", "gmacs", ""),
            ball("published_activations", records, "mactivations", "mparams", ""),
            Figure("published_top1", "Top-1", "Canziani et al., Fig. 1.", charts.bars(records, "top1")),
            *(
                Figure(f"published_{name}", f"Density: {charts.NAMES[name]}", caption, charts.bars(records, name))
                for name, caption in (
                    ("top1_per_mparams", "Canziani et al., Fig. 10; Bianco et al., Fig. 2a."),
                    ("top1_per_gmac", "The same by computation."),
                )
            ),
            ball("published_density", records, "top1_per_mparams", "mparams", "Bianco et al., Fig. 2b.", front=False),
        ]
    return Section("Accuracy published on ImageNet", note, figures)


def measured_section(dataset: str, found: Sequence[Measured]) -> Section:
    """Accuracies of the weights that were served, on one data set, against their costs and times here."""
    every = data.measured(found)
    records = [record for record in every if record["top1"] is not None]
    note = (
        f"Top-1 of the weights that this server serves, on held-out images of {dataset}, against their cost at their"
        f" own input and their time here. Not to be compared with the accuracies above."
    )
    if not records:
        return Section(f"Accuracy measured on {dataset}", note + " None of these weights has a measured accuracy.")
    prefix = re.sub(r"\W+", "_", dataset) + "_"
    figures = [
        ball(f"{prefix}macs", records, "gmacs", "mparams", ""),
        ball(f"{prefix}params", records, "mparams", "gmacs", ""),
        ball(f"{prefix}activations", records, "mactivations", "mparams", ""),
        ball(f"{prefix}p50", records, "p50_ms", "mparams", "One connection."),
        ball(f"{prefix}p99", records, "p99_ms", "mparams", "One connection."),
        ball(
            *(f"{prefix}throughput", records, "images_per_s", "gmacs"),
            "Offline. Canziani et al., Fig. 9; Bianco et al., Fig. 3.",
            more_is_better=True,
        ),
        ball(f"{prefix}rate", records, "max_rate", "gmacs", "Poisson arrivals.", more_is_better=True),
    ]
    return Section(f"Accuracy measured on {dataset}", note, figures, [constraint_table(records), full_table(every)])


def ball(
    name: str,
    records: Records,
    x: str,
    area: str,
    caption: str,
    *,
    more_is_better: bool = False,
    front: bool = True,
) -> Figure:
    """Top-1 against `x`, with the front's names."""
    best = data.front(records, x, more_is_better=more_is_better)
    names = [f"{number} {record['model']}" for number, record in enumerate(best, 1)]
    named = f" Nothing beats {', '.join(names)}." if front else ""
    chart = charts.balls(records, x, area, more_is_better=more_is_better, drawn_front=front)
    title = f"Top-1 against {charts.NAMES[x]}; area: {charts.NAMES[area]}"
    return Figure(name, title, f"{caption}{named}".strip(), chart)


def time_section(found: Sequence[Measured], records: Records) -> Section:
    """Times, rates and memory, whatever the accuracy."""
    speeds, parts, rates = data.batches(found), data.stages(records), data.rates(found)
    figures = []
    for precision in sorted({record["precision"] for record in records}):
        of_one = [record for record in records if record["precision"] == precision]
        if line := data.fit(of_one):
            caption = (
                f"Time of one inference within a request, in {precision}, against multiply-accumulates: the"
                f" least-squares line is {line.fixed_ms:.2f} ms + {line.ms_per_gmac:.1f} ms for 10⁹ of them"
                f" (R² {line.r_squared:.2f}), that is {1000 / line.ms_per_gmac:.0f}·10⁹ a second. Canziani et al.,"
                f" Fig. 7."
            )
            chart = charts.predicted(of_one, line)
            figures.append(Figure(f"predicted_{precision}", f"Predicted and measured, {precision}", caption, chart))
    if parts:
        caption = "Means of the server's stages; the rest is the p50 of one connection less these."
        figures.append(Figure("stages", "Where a request's time goes", caption, charts.by_stage(parts)))
    if rates:
        caption = "At 10, 50 and 80 % of the highest rate whose p99 was within the bound."
        figures.append(Figure("rates", "p99 under load", caption, charts.at_rates(rates)))
    if speeds:
        alone = "The engine alone, without HTTP."
        figures += [
            Figure(
                "batch_latency",
                "A batch's latency",
                f"{alone} Canziani et al., Fig. 3; Bianco et al., Table 1.",
                charts.by_batch(speeds, "p50_ms"),
            ),
            Figure("batch_throughput", "Images a second by batch", alone, charts.by_batch(speeds, "images_per_s")),
            Figure("precision", "Images a second by precision", f"{alone} Batch 8.", charts.by_precision(speeds, 8)),
        ]
    if any(speed["intensity"] for speed in speeds):
        caption = (
            "Each engine's share of its precision's arithmetic peak on this machine, against its multiply-accumulates a"
            " byte moved over those of the ridge (left of 1 memory is the roof, right of it arithmetic)."
        )
        figures.append(Figure("roofline", "Roofline", caption, charts.roofline(speeds)))
    if any(record["engine_mb"] for record in records):
        caption = (
            "What the engine and its largest timed batch add to a process. Canziani et al., Fig. 6; Bianco et al.,"
            " Fig. 4."
        )
        figures.append(Figure("memory", "Memory", caption, charts.memory(records)))
    return Section("Time and memory", "Power is not measured: this needs a meter.", figures)


def constraint_table(records: Records) -> Table:
    """The best net under latency and memory."""
    cells = data.constraints(records)
    head = ["p99 within", *(f"{cell.memory_mb:g} MB" for cell in (cells[0] if cells else []))]
    lines = [
        TableRow(
            [
                f"{row[0].latency_ms:g} ms",
                *(f"{cell.best['model']}, {cell.best['top1']:.1f} %" if cell.best else "none" for cell in row),
            ]
        )
        for row in cells
    ]
    caption = (
        "The most accurate model within both bounds, p99 at one connection and the engine's memory (Bianco et al.,"
        " Table 3)."
    )
    if not cells:
        caption += " Needs `python -m engines bench`, which measures memory."
    return Table("Which model under which constraints", caption, head, lines)


def full_table(records: Records) -> Table:
    """All engines; a click on a name sorts."""
    lines = [TableRow([shown(record[name]) for name in COLUMNS], record["family"]) for record in records]
    return Table("All models", "A click on a column's name sorts by it.", list(COLUMNS.values()), lines, sorts=True)


def shown(value: object) -> str:
    """A cell: numbers to four digits."""
    if value is None:
        return "-"
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def write_csv(path: Path, records: Records) -> None:
    """One line a record."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0] if records else [])
        writer.writeheader()
        writer.writerows(records)
