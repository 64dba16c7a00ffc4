"""Drawings of the report in Vega-Lite, from which both the page and the pictures are made.

`families` is the order of the families at the server, which decides their colours and shapes in every drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from loadtest.report.data import ILSVRC, Fit, Records, front

# Okabe and Ito's colours, which colour-blind people can distinguish. With three shapes they mark 21 families.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SHAPES = ("circle", "square", "triangle-up")
PRECISIONS = {"fp32": "#0072B2", "bf16": "#009E73", "fp16": "#CC79A7", "int8": "#D55E00"}
WIDTH, HEIGHT = 660, 420
MAX_AREA = 1600
NAMED = 24  # models at most in a drawing with names; more names would hide each other
CHOSEN = "family == 'all' || datum.family == family"

NAMES = {
    "top1": "top-1 accuracy, %",
    "gmacs": "multiply-accumulates per image, 10⁹",
    "mparams": "parameters, 10⁶",
    "mactivations": "activations, 10⁶",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "images_per_s": "images/s",
    "cpu_ms": "server's processor time per image, ms",
    "max_rate": "highest rate, requests/s",
    "inference_ms": "inference, ms",
    "param_mb": "parameters, MB",
    "engine_mb": "memory of the engine, MB",
    "top1_per_mparams": "top-1 % per 10⁶ parameters",
    "top1_per_gmac": "top-1 % per 10⁹ multiply-accumulates",
}


def balls(
    records: Records,
    families: Sequence[str],
    x: str,
    area: str,
    *,
    y: str = "top1",
    more_is_better: bool = False,
    drawn_front: bool = True,
) -> Any:
    """Draw `y` against `x` with areas in proportion to `area`, and draw and number the Pareto front."""
    records = [record for record in records if record[x] and None not in (record[y], record[area])]
    base = chart_of(records).transform_filter(CHOSEN)
    places = {"x": axis(x, log=True), "y": axis(y)}
    ball = base.mark_point(filled=True, fillOpacity=0.45, strokeWidth=1).encode(
        **places,
        **by_family(records, families),
        size=alt.Size(
            f"{area}:Q",
            title=NAMES[area],
            legend=alt.Legend(titleLimit=300, symbolFillColor="#bbb"),
            scale=alt.Scale(range=[0, MAX_AREA], zero=True),
        ),
        tooltip=tooltip(records),
    )
    # The point at the centre shows models whose ball is too small to see.
    centre = base.mark_point(filled=True, size=22, opacity=1).encode(
        **places, **by_family(records, families), tooltip=tooltip(records)
    )
    layers = [ball, centre]
    if len(records) <= NAMED:
        layers.append(base.mark_text(dy=14, fontSize=9, color="#555").encode(**places, text="model:N"))
    if drawn_front:
        pareto = enumerate(front(records, x, y, more_is_better=more_is_better), 1)
        best = chart_of([record | {"number": number} for number, record in pareto])
        layers.insert(
            0,
            best.mark_line(
                interpolate="step-before" if more_is_better else "step-after", color="#777", strokeDash=[4, 3]
            ).encode(**places),
        )
        layers.append(best.mark_text(dx=-7, dy=-7, fontSize=11, fontWeight="bold").encode(**places, text="number:N"))
    return finish(alt.layer(*layers))


def bars(records: Records, families: Sequence[str], x: str) -> Any:
    """Draw one bar per model, the highest first."""
    chart = chart_of(records).transform_filter(CHOSEN).mark_bar()
    return finish(
        chart.encode(
            x=alt.X(f"{x}:Q", title=NAMES[x]),
            y=alt.Y("model:N", title=None, sort="-x"),
            color=by_family(records, families)["color"],
            tooltip=tooltip(records),
        ),
        height=15 * len(records),
    )


def history() -> Any:
    """Draw the lecture's bars: top-5 error of ILSVRC's winners, and of a human."""
    names = [winner["entry"] for winner in ILSVRC]
    base = chart_of(ILSVRC).encode(
        x=alt.X("entry:N", sort=names, title=None, axis=alt.Axis(labelAngle=-35)),
        y=alt.Y("error:Q", title="top-5 error, %"),
    )
    bar = base.mark_bar().encode(
        color=alt.condition("datum.layers == 'human'", alt.value("#E69F00"), alt.value("#0072B2"))
    )
    return finish(alt.layer(bar, base.mark_text(dy=-7).encode(text="error:Q")), filtered=False)


def by_batch(records: Records, families: Sequence[str], y: str) -> Any:
    """Draw one line per engine over the batch size."""
    x = alt.X("batch:Q", title="batch", scale=alt.Scale(type="log", base=2))
    return lines(records, families, x, y, strokeDash=alt.StrokeDash("precision:N", title="precision"))


def lines(records: Records, families: Sequence[str], x: Any, y: str, **more: Any) -> Any:
    """Draw one line per model, with the name at its end. `records` are in the order of x."""
    places = {"x": x, "y": axis(y, log=True)}
    line = chart_of(records).transform_filter(CHOSEN).mark_line(point=True)
    line = line.encode(**places, **by_family(records, families), **more, detail="model:N", tooltip=tooltip(records))
    ends = chart_of(list({record["model"]: record for record in records}.values())).transform_filter(CHOSEN)
    return finish(alt.layer(line, ends.mark_text(align="right", dx=-8, dy=-8).encode(**places, text="model:N")))


def by_precision(records: Records, batch: int) -> Any:
    """Draw the images per second of each architecture, one point per precision."""
    chosen = [record for record in records if record["batch"] == batch]
    order = sorted({record["architecture"] for record in chosen})
    points = chart_of(chosen).transform_filter(CHOSEN).mark_point(filled=True, size=70)
    return finish(
        points.encode(
            x=alt.X("images_per_s:Q", title=f"images/s, batch {batch}", scale=alt.Scale(type="log")),
            y=alt.Y("architecture:N", title=None, sort=order, axis=alt.Axis(grid=True)),
            **of_precision(chosen),
            tooltip=tooltip(chosen),
        ),
        height=18 * len(order),
    )


def predicted(records: Records, families: Sequence[str], line: Fit) -> Any:
    """Draw inference time against multiply-accumulates, with the fitted line."""
    records = [record for record in records if record["inference_ms"] is not None]
    points = chart_of(records).transform_filter(CHOSEN).mark_point(filled=True, size=70)
    places = {"x": axis("gmacs", log=True), "y": axis("inference_ms", log=True)}
    least, most = (pick(record["gmacs"] for record in records) for pick in (min, max))
    grid = [least * (most / least) ** (step / 40) for step in range(41)]
    fitted = [{"gmacs": x, "inference_ms": y} for x in grid if (y := line.fixed_ms + line.ms_per_gmac * x) > 0]
    curve = chart_of(fitted).mark_line(color="#777", strokeDash=[4, 3]).encode(**places)
    return finish(alt.layer(curve, points.encode(**places, **by_family(records, families), tooltip=tooltip(records))))


def roofline(records: Records) -> Any:
    """Draw the share of the arithmetic peak against intensity relative to the ridge: one roof for all precisions."""
    records = [record for record in records if record["intensity"]]
    least = min([record["intensity"] for record in records] + [0.1])
    most = max([record["intensity"] for record in records] + [10])
    roof = [{"intensity": x, "of_compute": min(1.0, x)} for x in (least, 1.0, most)]
    x = alt.X("intensity:Q", title="multiply-accumulates per byte, relative to the ridge", scale=alt.Scale(type="log"))
    y = alt.Y("of_compute:Q", title="share of the arithmetic peak", scale=alt.Scale(type="log"))
    line = chart_of(roof).mark_line(color="#333").encode(x=x, y=y)
    points = chart_of(records).transform_filter(CHOSEN).mark_point(filled=True, size=60)
    return finish(alt.layer(line, points.encode(x=x, y=y, **of_precision(records), tooltip=tooltip(records))))


def memory(records: Records) -> Any:
    """Draw the memory of each engine against the size of its parameters."""
    records = [record for record in records if record["engine_mb"]]
    points = chart_of(records).transform_filter(CHOSEN).mark_point(filled=True, size=70)
    places = {"x": axis("param_mb", log=True), "y": axis("engine_mb", log=True)}
    return finish(points.encode(**places, **of_precision(records), tooltip=tooltip(records)))


def by_stage(records: Records) -> Any:
    """Draw the mean time of each stage of one request, stacked per model."""
    order = ["decode", "queue", "inference", "HTTP and client"]
    return finish(
        chart_of(records)
        .transform_filter(CHOSEN)
        .mark_bar()
        .encode(
            x=alt.X("sum(ms):Q", title="ms"),
            y=alt.Y("model:N", title=None, sort="-x"),
            color=alt.Color("stage:N", title=None, sort=order, scale=alt.Scale(domain=order, range=list(COLOURS[:4]))),
            order="order:Q",
            tooltip=tooltip(records),
        ),
        height=15 * len({record["model"] for record in records}),
    )


def at_rates(records: Records, families: Sequence[str]) -> Any:
    """Draw the p99 at shares of the highest rate within the bound."""
    x = alt.X("rate:Q", title="requests/s offered", scale=alt.Scale(type="log", nice=False, padding=12))
    return lines(records, families, x, "p99_ms")


def chart_of(records: Records) -> alt.Chart:
    """Return an empty drawing with these records as its data."""
    return alt.Chart({"values": records})


def axis(name: str, *, log: bool = False) -> Any:
    """Return a channel of numbers for x or y. The axis need not begin at 0."""
    scale = {"type": "log", "nice": False, "padding": 12} if log else {"zero": False}
    return {"field": name, "type": "quantitative", "title": NAMES[name], "scale": scale}


def by_family(records: Records, families: Sequence[str]) -> dict[str, Any]:
    """Return the channels for colour and shape by family. A family has the same ones in every drawing."""
    present = {record["family"] for record in records}
    places = {name: place for place, name in enumerate(families) if name in present}
    names = list(places)
    colours = [COLOURS[place % len(COLOURS)] for place in places.values()]
    shapes = [SHAPES[place // len(COLOURS) % len(SHAPES)] for place in places.values()]
    return {
        "color": alt.Color("family:N", scale=alt.Scale(domain=names, range=colours)),
        "shape": alt.Shape("family:N", scale=alt.Scale(domain=names, range=shapes)),
    }


def of_precision(records: Records) -> dict[str, Any]:
    """Return the channels for colour and shape by precision."""
    names = [name for name in PRECISIONS if any(record["precision"] == name for record in records)]
    shapes = {"fp32": "circle", "bf16": "diamond", "fp16": "triangle-up", "int8": "square"}
    colours = [PRECISIONS[name] for name in names]
    return {
        "color": alt.Color("precision:N", scale=alt.Scale(domain=names, range=colours)),
        "shape": alt.Shape("precision:N", scale=alt.Scale(domain=names, range=[shapes[name] for name in names])),
    }


def tooltip(records: Records) -> list[alt.Tooltip]:
    """Return the channels that show every field of a record on hover."""
    names = [name for name in (records[0] if records else {}) if name not in {"order", "problem"}]
    numbers = {name for name in names if any(isinstance(record[name], float) for record in records)}
    titles = {name: NAMES.get(name, name.replace("_", " ")) for name in names}
    return [
        alt.Tooltip(f"{name}:Q", title=titles[name], format=".4~g")
        if name in numbers
        else alt.Tooltip(f"{name}:N", title=titles[name])
        for name in names
    ]


def finish(chart: Any, *, height: float = HEIGHT, filtered: bool = True) -> Any:
    """Set the size, and add the signal by which the page filters families."""
    chart = chart.properties(width=WIDTH, height=height)
    return chart.add_params(alt.param(name="family", value="all")) if filtered else chart
