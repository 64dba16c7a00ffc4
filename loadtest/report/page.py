"""Files of the report: index.html, which needs no network, one picture per drawing, and CSV files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from loadtest import rows
from loadtest.report import charts, data
from loadtest.report.data import Records
from loadtest.rows import EngineRow, Measured, ServedArchitecture, by_engine
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
    """Drawing with its title and caption; `name` is the name of its picture without the suffix."""

    name: str
    title: str
    caption: str
    chart: Any


@dataclass(frozen=True)
class TableRow:
    """Row of a table. A row with a family can be filtered on the page."""

    cells: Sequence[str]
    family: str = ""


@dataclass(frozen=True)
class Table:
    """Table with a title and a caption; a click on a heading sorts it if `sorts`."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[TableRow]
    sorts: bool = False


@dataclass(frozen=True)
class Section:
    """Section of the page: first `summary`, a table, then the figures, then further tables."""

    title: str
    note: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    summary: Table | None = None


def write_report(results: Path, folder: Path) -> None:
    """Write the report of a sweep's file. Raises ScenarioError if the file is not a sweep's, or holds no engine."""
    architectures, engines = rows.read(results)
    if not engines:
        raise ScenarioError(f"{results} holds no measured engine")
    measurements = by_engine(engines)
    records = data.measured(measurements)
    # The order of the rows is the server's order of architectures, so that a new family needs no change here.
    families = list(dict.fromkeys([*(card.family for card in architectures), *(row.family for row in engines)]))
    by_dataset: dict[str, list[Measured]] = {}
    for measurement in sorted(measurements, key=lambda measurement: measurement.engine.dataset):
        by_dataset.setdefault(measurement.engine.dataset, []).append(measurement)
    sections = [
        *(measured_section(dataset, group, families) for dataset, group in by_dataset.items()),
        time_section(measurements, records, families),
        published_section(architectures, families),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for figure in (figure for section in sections for figure in section.figures):
        png = vl_convert.vegalite_to_png(figure.chart.to_json(), scale=2)
        (folder / f"{figure.name}.png").write_bytes(png)
    write_csv(folder / "measured.csv", records)
    write_csv(folder / "published.csv", data.published(architectures))
    (folder / "index.html").write_text(html(sections, engines))


def html(sections: Sequence[Section], engines: Sequence[EngineRow]) -> str:
    """Return the page, with its drawings and the library that draws them."""
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
        specs=Markup(specs),  # noqa: S704 (JSON from this module)
        library=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")),  # noqa: S704 (Vega)
    )


def about(engines: Sequence[EngineRow]) -> list[str]:
    """Return the paragraphs on how the figures were measured."""
    load, last = engines[0].load, engines[-1]
    versions = ", ".join(
        f"{name} {value}" for name, value in {**last.server, **last.client}.items() if name != "processor"
    )
    behind = sum(point.fell_behind is not None for row in engines for point in (*row.search, *row.at_percent.values()))
    return [
        f"Server: {last.server.get('processor', 'unknown')}; {versions}. {min(row.date for row in engines)} to"
        f" {max(row.date for row in engines)}. {1 + max(row.round for row in engines)} round(s),"
        f" {load.seconds:g} s per run after a warm-up of 2 s; figures are medians over the rounds.",
        f"One connection: one request after another. Offline: always {load.in_flight} requests in flight. Highest rate:"
        f" the most requests per second, arriving by a Poisson process, whose p99 since the due time stays within"
        f" {load.p99_ms:g} ms, searched in {load.steps} halvings below the offline rate."
        f" All requests are sent over HTTP by a load generator on {last.client['cores']} cores,"
        f" which fell behind in {behind} open loops.",
    ]


def published_section(architectures: Sequence[ServedArchitecture], families: Sequence[str]) -> Section:
    """Return the section of accuracies that others published, against costs at the same input."""
    records = data.published(architectures)
    note = (
        f"Top-1 on ImageNet's validation images, one crop of the input at which the cost is counted, as published"
        f" by the source in the tooltip: {len(records)} of {len(architectures)} architectures have such a figure."
        f" No figure of this section was measured here. The times above belong to other weights and inputs,"
        f" and are not in these drawings."
    )
    figures = [
        Figure("ilsvrc", "ILSVRC's winners", "Top-5 error on the test set; entries are ensembles.", charts.history())
    ]
    if records:
        figures += [
            ball(
                "published_macs",
                records,
                families,
                "gmacs",
                "mparams",
                "Canziani et al. 2016, Fig. 2; Bianco et al. 2018, Fig. 1.",
            ),
            ball("published_params", records, families, "mparams", "gmacs", ""),
            ball("published_activations", records, families, "mactivations", "mparams", ""),
            Figure("published_top1", "Top-1", "Canziani et al., Fig. 1.", charts.bars(records, families, "top1")),
            *(
                Figure(
                    f"published_{name}", f"Density: {charts.NAMES[name]}", caption, charts.bars(records, families, name)
                )
                for name, caption in (
                    ("top1_per_mparams", "Canziani et al., Fig. 10; Bianco et al., Fig. 2a."),
                    ("top1_per_gmac", "Top-1 per multiply-accumulate."),
                )
            ),
            ball(
                "published_density",
                records,
                families,
                "top1_per_mparams",
                "mparams",
                "Bianco et al., Fig. 2b.",
                front=False,
            ),
        ]
    return Section("Accuracy published on ImageNet", note, figures)


def measured_section(dataset: str, measurements: Sequence[Measured], families: Sequence[str]) -> Section:
    """Return the section of one data set: accuracy of the served weights against cost and time on this machine."""
    every = data.measured(measurements)
    records = [record for record in every if record["top1"] is not None]
    note = (
        f"Top-1 of the served weights on held-out images of {dataset}, against their cost at their own input and their"
        f" time on this machine. These accuracies cannot be compared with the published ones below."
    )
    if not records:
        return Section(f"Accuracy measured on {dataset}", note + " None of these weights has a measured accuracy.")
    prefix = re.sub(r"\W+", "_", dataset) + "_"
    figures = [
        ball(f"{prefix}macs", records, families, "gmacs", "mparams", ""),
        ball(f"{prefix}params", records, families, "mparams", "gmacs", ""),
        ball(f"{prefix}activations", records, families, "mactivations", "mparams", ""),
        ball(f"{prefix}p50", records, families, "p50_ms", "mparams", "One connection."),
        ball(f"{prefix}p99", records, families, "p99_ms", "mparams", "One connection."),
        ball(
            *(f"{prefix}throughput", records, families, "images_per_s", "gmacs"),
            "Offline. Canziani et al., Fig. 9; Bianco et al., Fig. 3.",
            more_is_better=True,
        ),
        ball(f"{prefix}rate", records, families, "max_rate", "gmacs", "Poisson arrivals.", more_is_better=True),
    ]
    return Section(f"Accuracy measured on {dataset}", note, figures, [full_table(every)], constraint_table(records))


def ball(
    name: str,
    records: Records,
    families: Sequence[str],
    x: str,
    area: str,
    caption: str,
    *,
    more_is_better: bool = False,
    front: bool = True,
) -> Figure:
    """Return the drawing of top-1 against `x`, with the names of the Pareto front in its caption."""
    best = data.front(records, x, more_is_better=more_is_better)
    names = [f"{number} {record['model']}" for number, record in enumerate(best, 1)]
    named = f" Pareto front: {', '.join(names)}." if front else ""
    chart = charts.balls(records, families, x, area, more_is_better=more_is_better, drawn_front=front)
    title = f"Top-1 against {charts.NAMES[x]}; area: {charts.NAMES[area]}"
    return Figure(name, title, f"{caption}{named}".strip(), chart)


def time_section(measurements: Sequence[Measured], records: Records, families: Sequence[str]) -> Section:
    """Return the section of times, rates and memory, without accuracy."""
    speeds, parts, rates = data.batches(measurements), data.stages(records), data.rates(measurements)
    figures = []
    for precision in sorted({record["precision"] for record in records}):
        of_one = [record for record in records if record["precision"] == precision]
        if line := data.fit(of_one):
            caption = (
                f"Time of one inference within a request, in {precision}, against multiply-accumulates: the"
                f" least-squares line is {line.fixed_ms:.2f} ms + {line.ms_per_gmac:.1f} ms for 10⁹ of them"
                f" (R² {line.r_squared:.2f}), or {1000 / line.ms_per_gmac:.0f}·10⁹ per second. Canziani et al.,"
                f" Fig. 7."
            )
            chart = charts.predicted(of_one, families, line)
            figures.append(Figure(f"predicted_{precision}", f"Predicted and measured, {precision}", caption, chart))
    if parts:
        caption = 'Means of the server\'s stages; "HTTP and client" is the rest of the p50 of one connection.'
        figures.append(Figure("stages", "Where a request's time goes", caption, charts.by_stage(parts)))
    if rates:
        caption = "At 10, 50 and 80 % of the highest rate whose p99 was within the bound."
        figures.append(Figure("rates", "p99 under load", caption, charts.at_rates(rates, families)))
    if speeds:
        alone = "The engine alone, without HTTP."
        figures += [
            Figure(
                "batch_latency",
                "Latency by batch size",
                f"{alone} Canziani et al., Fig. 3; Bianco et al., Table 1.",
                charts.by_batch(speeds, families, "p50_ms"),
            ),
            Figure(
                "batch_throughput",
                "Images per second by batch",
                alone,
                charts.by_batch(speeds, families, "images_per_s"),
            ),
            Figure("precision", "Images per second by precision", f"{alone} Batch 8.", charts.by_precision(speeds, 8)),
        ]
    if any(speed["intensity"] for speed in speeds):
        caption = (
            "Each engine's share of its precision's arithmetic peak on this machine, against its multiply-accumulates"
            " per byte moved, relative to the ridge: memory is the limit left of 1, arithmetic right of 1."
        )
        figures.append(Figure("roofline", "Roofline", caption, charts.roofline(speeds)))
    if any(record["engine_mb"] for record in records):
        caption = (
            "Memory that the engine and its largest timed batch add to a process. Canziani et al., Fig. 6; Bianco et"
            " al., Fig. 4."
        )
        figures.append(Figure("memory", "Memory", caption, charts.memory(records)))
    return Section("Time and memory", "Power is not measured: that needs a meter.", figures)


def constraint_table(records: Records) -> Table:
    """Return the table of the best model under bounds of latency and memory."""
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
    return Table("Best model under constraints of latency and memory", caption, head, lines)


def full_table(records: Records) -> Table:
    """Return the table of all engines, which can be sorted."""
    lines = [TableRow([shown(record[name]) for name in COLUMNS], record["family"]) for record in records]
    return Table("All models", "A click on a heading sorts by this column.", list(COLUMNS.values()), lines, sorts=True)


def shown(value: object) -> str:
    """Format a cell: numbers with four digits, None as a dash."""
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
    """Write one line per record, with the names of the fields above."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0] if records else [])
        writer.writeheader()
        writer.writerows(records)
