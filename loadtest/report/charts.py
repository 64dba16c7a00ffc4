"""The drawings: Vega-Lite, of which the page and the pictures are made alike."""

from __future__ import annotations

from typing import Any

import altair as alt

from loadtest.report.data import ILSVRC, Fit, Records, front

# Okabe and Ito's colours, told apart by the colour-blind; with three shapes enough for every family
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SHAPES = ("circle", "square", "triangle-up")
FAMILIES = [
    *("lenet", "alexnet", "zfnet", "vgg", "nin", "googlenet", "inception", "inception_resnet"),
    *("resnet", "preact_resnet", "senet", "stochastic_depth", "wide_resnet", "densenet", "resnext"),
]
PRECISIONS = {"fp32": "#0072B2", "bf16": "#009E73", "fp16": "#CC79A7", "int8": "#D55E00"}
WIDTH, HEIGHT = 660, 420
MAX_AREA = 1600
NAMED = 24  # more names would hide each other
FAMILY = "family == 'all' || datum.family == family"

NAMES = {
    "top1": "top-1 accuracy, %",
    "gmacs": "multiply-accumulates an image, 10⁹",
    "mparams": "parameters, 10⁶",
    "mactivations": "activations, 10⁶",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "images_per_s": "images/s",
    "cpu_ms": "server's processor time an image, ms",
    "max_rate": "highest rate, requests/s",
    "inference_ms": "inference, ms",
    "param_mb": "parameters, MB",
    "engine_mb": "memory that the engine adds, MB",
    "top1_per_mparams": "top-1 % per 10⁶ parameters",
    "top1_per_gmac": "top-1 % per 10⁹ multiply-accumulates",
}


def balls(
    records: Records, x: str, area: str, *, y: str = "top1", more_is_better: bool = False, drawn_front: bool = True
) -> Any:
    """`y` against `x`, areas in proportion to `area`; the front that nothing else beats is drawn and named."""
    records = [record for record in records if record[x] and None not in (record[y], record[area])]
    base = chart_of(records).transform_filter(FAMILY)
    places = {"x": axis(x, log=True), "y": axis(y)}
    ball = base.mark_point(filled=True, fillOpacity=0.45, strokeWidth=1).encode(
        **places,
        **family(records),
        size=alt.Size(
            f"{area}:Q",
            title=NAMES[area],
            legend=alt.Legend(titleLimit=300, symbolFillColor="#bbb"),
            scale=alt.Scale(range=[0, MAX_AREA], zero=True),
        ),
        tooltip=tooltip(records),
    )
    # what has few parameters would be no more than a dot
    centre = base.mark_point(filled=True, size=22, opacity=1).encode(
        **places, **family(records), tooltip=tooltip(records)
    )
    layers = [ball, centre]
    if len(records) <= NAMED:
        layers.append(base.mark_text(dy=14, fontSize=9, color="#555").encode(**places, text="model:N"))
    if drawn_front:
        unbeaten = enumerate(front(records, x, y, more_is_better=more_is_better), 1)
        best = chart_of([record | {"number": number} for number, record in unbeaten])
        layers.insert(
            0,
            best.mark_line(
                interpolate="step-before" if more_is_better else "step-after", color="#777", strokeDash=[4, 3]
            ).encode(**places),
        )
        layers.append(best.mark_text(dx=-7, dy=-7, fontSize=11, fontWeight="bold").encode(**places, text="number:N"))
    return finish(alt.layer(*layers))


def bars(records: Records, x: str) -> Any:
    """A bar a model, the highest first."""
    chart = chart_of(records).transform_filter(FAMILY).mark_bar()
    return finish(
        chart.encode(
            x=alt.X(f"{x}:Q", title=NAMES[x]),
            y=alt.Y("model:N", title=None, sort="-x"),
            color=family(records)["color"],
            tooltip=tooltip(records),
        ),
        height=15 * len(records),
    )


def history() -> Any:
    """The lecture's bars: top-5 error of ILSVRC's winners, and a human's."""
    names = [entry["entry"] for entry in ILSVRC]
    base = chart_of(ILSVRC).encode(
        x=alt.X("entry:N", sort=names, title=None, axis=alt.Axis(labelAngle=-35)),
        y=alt.Y("error:Q", title="top-5 error, %"),
    )
    bar = base.mark_bar().encode(
        color=alt.condition("datum.layers == 'human'", alt.value("#E69F00"), alt.value("#0072B2"))
    )
    return finish(alt.layer(bar, base.mark_text(dy=-7).encode(text="error:Q")), filtered=False)


def by_batch(records: Records, y: str) -> Any:
    """A line an engine, over the batch size."""
    x = alt.X("batch:Q", title="batch", scale=alt.Scale(type="log", base=2))
    return lines(records, x, y, strokeDash=alt.StrokeDash("precision:N", title="precision"))


def lines(records: Records, x: Any, y: str, **more: Any) -> Any:
    """A line a model, which is named at its end; `records` are in the order of x."""
    places = {"x": x, "y": axis(y, log=True)}
    line = chart_of(records).transform_filter(FAMILY).mark_line(point=True)
    line = line.encode(**places, **family(records), **more, detail="model:N", tooltip=tooltip(records))
    ends = chart_of(list({record["model"]: record for record in records}.values())).transform_filter(FAMILY)
    return finish(alt.layer(line, ends.mark_text(align="right", dx=-8, dy=-8).encode(**places, text="model:N")))


def by_precision(records: Records, batch: int) -> Any:
    """Images a second of each precision beside each other."""
    chosen = [record for record in records if record["batch"] == batch]
    order = sorted({record["architecture"] for record in chosen})
    points = chart_of(chosen).transform_filter(FAMILY).mark_point(filled=True, size=70)
    return finish(
        points.encode(
            x=alt.X("images_per_s:Q", title=f"images/s, batch {batch}", scale=alt.Scale(type="log")),
            y=alt.Y("architecture:N", title=None, sort=order, axis=alt.Axis(grid=True)),
            **precision(chosen),
            tooltip=tooltip(chosen),
        ),
        height=18 * len(order),
    )


def predicted(records: Records, line: Fit) -> Any:
    """Time against multiply-accumulates, with the line fitted through them."""
    records = [record for record in records if record["inference_ms"] is not None]
    points = chart_of(records).transform_filter(FAMILY).mark_point(filled=True, size=70)
    places = {"x": axis("gmacs", log=True), "y": axis("inference_ms", log=True)}
    least, most = (pick(record["gmacs"] for record in records) for pick in (min, max))
    grid = [least * (most / least) ** (step / 40) for step in range(41)]
    fitted = [{"gmacs": x, "inference_ms": y} for x in grid if (y := line.fixed_ms + line.ms_per_gmac * x) > 0]
    curve = chart_of(fitted).mark_line(color="#777", strokeDash=[4, 3]).encode(**places)
    return finish(alt.layer(curve, points.encode(**places, **family(records), tooltip=tooltip(records))))


def roofline(records: Records) -> Any:
    """Share of the arithmetic peak against intensity over the ridge's: one roof for all precisions and machines."""
    records = [record for record in records if record["intensity"]]
    least = min([record["intensity"] for record in records] + [0.1])
    most = max([record["intensity"] for record in records] + [10])
    roof = [{"intensity": x, "of_compute": min(1.0, x)} for x in (least, 1.0, most)]
    x = alt.X("intensity:Q", title="multiply-accumulates a byte, over those at the ridge", scale=alt.Scale(type="log"))
    y = alt.Y("of_compute:Q", title="share of the arithmetic peak", scale=alt.Scale(type="log"))
    line = chart_of(roof).mark_line(color="#333").encode(x=x, y=y)
    points = chart_of(records).transform_filter(FAMILY).mark_point(filled=True, size=60)
    return finish(alt.layer(line, points.encode(x=x, y=y, **precision(records), tooltip=tooltip(records))))


def memory(records: Records) -> Any:
    """What the engine takes, against its parameters."""
    records = [record for record in records if record["engine_mb"]]
    points = chart_of(records).transform_filter(FAMILY).mark_point(filled=True, size=70)
    places = {"x": axis("param_mb", log=True), "y": axis("engine_mb", log=True)}
    return finish(points.encode(**places, **precision(records), tooltip=tooltip(records)))


def by_stage(records: Records) -> Any:
    """Where one request's time goes."""
    order = ["decode", "queue", "inference", "HTTP and client"]
    return finish(
        chart_of(records)
        .transform_filter(FAMILY)
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


def at_rates(records: Records) -> Any:
    """p99 at shares of the highest rate that the p99's bound allows."""
    x = alt.X("rate:Q", title="requests/s that come", scale=alt.Scale(type="log", nice=False, padding=12))
    return lines(records, x, "p99_ms")


def chart_of(records: Records) -> alt.Chart:
    """A drawing of these, with nothing in it yet."""
    return alt.Chart({"values": records})


def axis(name: str, *, log: bool = False) -> Any:
    """A channel of numbers, whose axis need not begin at 0; altair takes it for x as for y."""
    scale = {"type": "log", "nice": False, "padding": 12} if log else {"zero": False}
    return {"field": name, "type": "quantitative", "title": NAMES[name], "scale": scale}


def family(records: Records) -> dict[str, Any]:
    """Colour and shape, by family, the same in every drawing."""
    place = {name: number for number, name in enumerate(FAMILIES)}
    names = sorted({record["family"] for record in records}, key=lambda name: place.get(name, len(FAMILIES)))
    places = [place.get(name, len(FAMILIES)) for name in names]
    colours = [COLOURS[place % len(COLOURS)] for place in places]
    shapes = [SHAPES[place // len(COLOURS)] for place in places]
    return {
        "color": alt.Color("family:N", scale=alt.Scale(domain=names, range=colours)),
        "shape": alt.Shape("family:N", scale=alt.Scale(domain=names, range=shapes)),
    }


def precision(records: Records) -> dict[str, Any]:
    """Colour and shape, by precision."""
    names = [name for name in PRECISIONS if any(record["precision"] == name for record in records)]
    shapes = {"fp32": "circle", "bf16": "diamond", "fp16": "triangle-up", "int8": "square"}
    colours = [PRECISIONS[name] for name in names]
    return {
        "color": alt.Color("precision:N", scale=alt.Scale(domain=names, range=colours)),
        "shape": alt.Shape("precision:N", scale=alt.Scale(domain=names, range=[shapes[name] for name in names])),
    }


def tooltip(records: Records) -> list[alt.Tooltip]:
    """All that is known of a mark."""
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
    """The size, and the signal by which the page filters families."""
    chart = chart.properties(width=WIDTH, height=height)
    return chart.add_params(alt.param(name="family", value="all")) if filtered else chart
