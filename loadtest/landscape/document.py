"""Document of the landscape: the picture, and a page with the fits, the lecture's statements and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from loadtest.landscape.claims import claims
from loadtest.landscape.figure import BUDGET_MS, is_one_crop, landscape_figure
from loadtest.landscape.fit import DEVIATES, by_family, deviations, fits, timed
from loadtest.landscape.rows import LandscapeRound, LandscapeRow, read_landscape
from loadtest.markdown import table
from loadtest.report.png import write_png
from loadtest.traffic import ScenarioError

Rows = Sequence[LandscapeRow]

KEY = (  # of the tables of fits
    "Values moved are the weights, inputs and outputs of convolutions and linear layers, each once. `of predicted`:"
    " time as a multiple of what MACs predict; `with values`: of what MACs and values moved together predict."
    " `weights`: their share in the values moved. `8 at once`: images a second at batch 8 over batch 1."
)


def write_document(results: Path) -> list[Path]:
    """Write the picture (.png) and the page (.md) beside a landscape's file, and return their paths.

    Raises ScenarioError if the file is not a landscape, or has nothing to draw.
    """
    rows = [row for row in read_landscape(results) if row.rounds]
    spec = landscape_figure(rows).to_dict()
    picture, page = results.with_suffix(".png"), results.with_suffix(".md")
    try:
        write_png(spec, picture)
        page.write_text(document(rows, results, picture))
    except OSError as error:
        raise ScenarioError(f"{error.filename}: {error.strerror}") from error
    return [picture, page]


def document(rows: Rows, results: Path, picture: Path) -> str:
    """Return the page in Markdown."""
    groups = by_precision(rows)
    first = next(iter(groups))
    fits_of_all = [paragraph for precision, those in groups.items() for paragraph in fitted(those, precision)]
    statements = [f"- **{each.statement}**: {each.verdict}. {each.evidence}" for each in claims(groups[first])]
    paragraphs = [
        "# Landscape",
        f"Generated from [{results.name}]({results.name}) by `python -m loadtest landscape --figure --out {results}`."
        " Without `--figure` the command measures what the file lacks.",
        f"![Published accuracy against measured time, and against three costs]({picture.name})",
        caption(rows),
        machine(rows),
        *(["## How well multiply-accumulates predict time", KEY, *fits_of_all] if fits_of_all else []),
    ]
    if statements:
        paragraphs += [
            "## The lecture's comparison",
            f'The slides "Comparing complexity" say this of four networks. Figures are in {first}; memory is what the'
            " engine adds to a process; the slides' families are AlexNet, VGG, NiN, GoogLeNet, Inception and ResNet.",
            "\n".join(statements),
        ]
    paragraphs += [
        "## All networks",
        "`p50`, `p99`: one connection through the server, ms. `rate`: requests a second within the bound of the p99,"
        f" {rows[0].settings['p99_ms']:g} ms. `offline`: images a second, many requests in flight. `batch 1`, `batch"
        " 8`: the engine alone, ms. Medians of the rounds; `spread`: the largest p50 of the rounds over the least.",
        *(f"In {precision}:\n\n{figures(those)}" for precision, those in groups.items()),
    ]
    return "\n\n".join(paragraphs) + "\n"


def by_precision(rows: Rows) -> dict[str, Rows]:
    """Return the rows of each precision, the most rows first."""
    names = sorted({row.precision for row in rows}, key=lambda name: (name != "fp32", name))
    groups = {name: [row for row in rows if row.precision == name] for name in names}
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def caption(rows: Rows) -> str:
    """Return the picture's caption, which says where accuracies and times come from."""
    random = len({row.name for row in rows if row.weights == "random"})
    names = len({row.name for row in rows})
    weights = {0: "imported", names: "random"}.get(random, f"random for {random} of {names} networks, else imported")
    return (
        "**Published top-1 on ImageNet against time measured here (a), multiply-accumulates (b), parameters (c) and"
        f" activations (d).** Accuracies are published ones, of papers and libraries; the weights timed were {weights}:"
        f" time does not depend on weights, and no accuracy was measured. {reading(rows)}"
    )


def reading(rows: Rows) -> str:
    """Return how the picture is read: lines, points, scale, and which networks are apart or not drawn."""
    unknown = sorted({row.name for row in rows if row.published_top1 is None})
    otherwise = {row.name: row.published_source for row in rows if row.published_top1 and not is_one_crop(row)}
    sources = ", ".join(f"{name} ({source})" for name, source in otherwise.items())
    return (
        "Each network at its paper's input. Solid: the networks that no other beats at the same cost or less (Pareto"
        " front; filled points). Dashed: the front in the second precision. Dotted:"
        f" model=auto&max_latency_ms={BUDGET_MS:g}, with its choice, by the p50. Bars: from the least of the rounds to"
        " the largest. Equal distances upwards are equal ratios of the error."
        + (f" Squares, not by one crop of every validation image and so not compared: {sources}." if otherwise else "")
        + (f" Without a published accuracy, and not drawn: {', '.join(unknown)}." if unknown else "")
    )


def machine(rows: Rows) -> str:
    """Return when and on which machine the rows were measured."""
    days = sorted(each.at[:10] for row in rows for each in row.rounds)
    counts = sorted({len(row.rounds) for row in rows})
    others = [each.others for row in rows for each in row.rounds]
    about = ", ".join(f"{name} {value}" for name, value in rows[0].machine.items())
    return (
        f"{about}; {' to '.join(dict.fromkeys((days[0], days[-1])))}, rounds: {' or '.join(map(str, counts))},"
        f" runs of {rows[0].settings['seconds']:g} s. Other processes kept {median(others):.1f} cores busy in the"
        f" median round, at most {max(others):.1f}."
    )


def fitted(rows: Rows, precision: str) -> Iterator[str]:
    """Yield the paragraphs on the fits of one precision; none with too few networks."""
    networks = timed(rows, precision)
    if not (found := fits(networks)):
        return
    macs = found[0]
    yield (
        f"In {precision}, the engine alone, batch 1, over {len(networks)} networks: time grows as"
        f" MACs^{macs.powers[0]:.2f}, R² {macs.r_squared:.2f} on logarithmic scales; the usual prediction is wrong by a"
        f" factor of {macs.factor:.2f}."
    )
    yield table(
        ["time from", "power", "R²", "usual factor"],
        [
            [fit.costs, ", ".join(f"{power:.2f}" for power in fit.powers), f"{fit.r_squared:.2f}", f"{fit.factor:.2f}"]
            for fit in found
        ],
        {"power", "R²", "usual factor"},
    )
    if far := deviations(networks):
        yield (
            f"Networks that take at least {DEVIATES:g} times as long as their MACs predict, or at most 1/{DEVIATES:g}"
            " of that time:"
        )
        yield table(
            ["network", "ms", "of predicted", "with values", "weights", "8 at once", "why"],
            [
                [
                    f"`{each.network.name}`",
                    f"{each.network.batch1_ms:.1f}",
                    f"{each.ratio:.2f}",
                    f"{each.rest:.2f}",
                    f"{each.network.weights_share:.0%}",
                    f"{each.network.gain:.1f}",
                    each.reason,
                ]
                for each in far
            ],
            {"ms", "of predicted", "with values", "weights", "8 at once"},
        )
    yield "By family, from the least to the largest of its networks:"
    yield table(
        ["family", "networks", "of predicted", "with values"],
        [
            [each.family, str(each.networks), *(f"{low:.2f} to {high:.2f}" for low, high in (each.ratios, each.rests))]
            for each in by_family(networks)
        ],
        {"networks", "of predicted", "with values"},
    )


HEADINGS = [
    "network",
    "top-1",
    "GMACs",
    "params, M",
    "activations, M",
    "input",
    "p50",
    "spread",
    "p99",
    "rate",
    "offline",
]
HEADINGS += ["batch 1", "batch 8", "memory, MB", "J an image"]


def figures(rows: Rows) -> str:
    """Return the table of all networks at one precision, the most accurate last."""
    ordered = sorted(rows, key=lambda row: (row.published_top1 or 0, row.name))
    return table(HEADINGS, [cells(row) for row in ordered], {*HEADINGS} - {"network"})


def cells(row: LandscapeRow) -> list[str]:
    """Return the cells of one network."""
    times = [each.p50_ms for each in row.rounds]
    joules = [each.joules for each in row.rounds if each.joules is not None]

    def middle(read: Callable[[LandscapeRound], float]) -> float:
        """Return the median of a figure over the rounds."""
        return median(read(each) for each in row.rounds)

    return [
        f"`{row.name}`",
        "" if row.published_top1 is None else f"{row.published_top1:.1%}",
        f"{row.macs / 1e9:.2f}",
        f"{row.params / 1e6:.1f}",
        f"{row.activations / 1e6:.1f}",
        str(row.input),
        f"{median(times):.1f}",
        f"{max(times) / min(times):.2f}",
        f"{middle(lambda each: each.p99_ms):.1f}",
        f"{middle(lambda each: each.rate):.1f}",
        f"{middle(lambda each: each.offline):.1f}",
        f"{row.batch1_ms:.1f}",
        f"{row.batch8_ms:.1f}",
        "" if row.memory_mb is None else f"{row.memory_mb:,.0f}",
        f"{median(joules):.2f}" if joules else "",
    ]
