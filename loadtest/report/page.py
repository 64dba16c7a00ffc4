"""Files of the report: index.html, which needs no network, one picture per drawing, and CSV files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import vl_convert
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from loadtest import rows
from loadtest.landscape.rows import read_landscape
from loadtest.report import data
from loadtest.report.answer import answer, landscape_answer
from loadtest.report.charts import NARROW, WIDE
from loadtest.report.data import Records
from loadtest.report.png import write_png
from loadtest.report.sections import (
    Section,
    details_section,
    landscape_section,
    measured_section,
    published_section,
)
from loadtest.rows import EngineRow, Measured, by_engine
from loadtest.traffic import ScenarioError

LANDSCAPE = "landscape.jsonl"  # beside the sweep's file


def write_report(results: Path, folder: Path, p99_ms: float | None = None) -> list[str]:
    """Write the report of a sweep's file, with the landscape from the file beside it if there is one.

    `p99_ms` is the reader's bound of the p99. Returns the answers, a sentence for each data set. Raises ScenarioError
    if the file is not a sweep's, or holds no engine.
    """
    if p99_ms is not None and not (p99_ms > 0 and math.isfinite(p99_ms)):
        raise ScenarioError(f"--p99-ms {p99_ms:g}: a bound is a number of milliseconds above 0, such as 20")
    architectures, engines = rows.read(results)
    if not engines:
        raise ScenarioError(f"{results} holds no measured engine")
    landscape = results.with_name(LANDSCAPE)
    known = read_landscape(landscape) if landscape.exists() else []
    landscape_rows = [row for row in known if row.rounds and row.published_top1 is not None]
    by_dataset: dict[str, list[Measured]] = {}
    for measurement in by_engine(engines):
        by_dataset.setdefault(measurement.engine.dataset, []).append(measurement)
    measurements = [measurement for name in sorted(by_dataset) for measurement in by_dataset[name]]
    answers = [landscape_answer(landscape_rows, p99_ms)] if landscape_rows else []
    answers += [answer(by_dataset[name], p99_ms) for name in sorted(by_dataset)]
    sections = [
        *([landscape_section(landscape_rows)] if landscape_rows else []),
        *(measured_section(name, by_dataset[name], p99_ms) for name in sorted(by_dataset)),
        details_section(measurements, data.measured(measurements)),
        published_section(architectures, {row.name for row in landscape_rows}),
    ]
    drawn = {figure.name: figure.draw for section in sections for figure in section.figures}
    specs = {
        name: {place: draw(width=width).to_dict() for place, width in (("wide", WIDE), ("narrow", NARROW))}
        for name, draw in drawn.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in specs.items():
        write_png(spec["wide"], folder / f"{name}.png")
    write_csv(folder / "measured.csv", data.measured(measurements))
    write_csv(folder / "published.csv", data.published(architectures))
    (folder / "index.html").write_text(html(answers, sections, specs, engines))
    return [sentences[0] for sentences in answers]


def html(
    answers: Sequence[Sequence[str]],
    sections: Sequence[Section],
    specs: dict[str, dict[str, object]],
    engines: Sequence[EngineRow],
) -> str:
    """Return the page, with its drawings and the library that draws them."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("page.html").render(
        answers=answers,
        about=about(engines),
        problems=[
            f"{row.tag} in {row.precision}, round {row.round + 1}: {row.problem}" for row in engines if row.problem
        ],
        sections=sections,
        specs=Markup(json.dumps(specs).replace("<", "\\u003c")),  # noqa: S704 (JSON from this module)
        library=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")),  # noqa: S704 (Vega)
    )


def about(engines: Sequence[EngineRow]) -> list[str]:
    """Return the paragraphs on how the figures were measured."""
    load, last = engines[0].load, engines[-1]
    versions = ", ".join(
        f"{name} {value}"
        for name, value in {**last.server, **last.client}.items()
        if name not in {"processor", "cores"}
    )
    behind = sum(point.fell_behind is not None for row in engines for point in (*row.search, *row.at_percent.values()))
    dates = list(dict.fromkeys((min(row.date for row in engines), max(row.date for row in engines))))
    count = 1 + max(row.round for row in engines)
    return [
        f"Server: {last.server.get('processor', 'unknown processor')}; {versions}. Measured {' to '.join(dates)},"
        f" {f'{count} rounds, of which figures are medians' if count > 1 else 'one round'}, {load.seconds:g} s per run"
        f" after a warm-up of 2 s. All requests went over HTTP, from a load generator on {last.client['cores']} cores,"
        f" which fell behind in {behind} open loops.",
        f"One connection: one request after another. Images per second: {load.in_flight} requests always in flight."
        f" Highest rate: the most requests per second, arriving by a Poisson process, whose p99 since the due time"
        f" stays within {load.p99_ms:g} ms, searched in {load.steps} halvings. Power is not measured.",
    ]


def write_csv(path: Path, records: Records) -> None:
    """Write one line per record, with the names of the fields above."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0] if records else [])
        writer.writeheader()
        writer.writerows(records)
