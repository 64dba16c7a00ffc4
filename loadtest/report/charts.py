"""Drawings of the report in Vega-Lite: points with their names, and lines that end in theirs.

A drawing is made for a width in pixels: one for a page, one for a phone. Blue marks the Pareto front; shapes mark the
precisions, so that a drawing in grey says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt

from loadtest.report.data import Records, front, precision_name
from loadtest.report.labels import FONT, LETTER, LabelPlace, apart, place

BLUE, GREY, DARK, LIGHT = "#0072B2", "#a0a0a0", "#222222", "#e4e4e4"  # blue is the darker of the two in print
# Okabe and Ito's colours, which colour-blind people can distinguish; yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
SYMBOLS = {"fp32": "●", "bf16": "◆", "fp16": "▲", "int8": "○"}
SHAPES = {"fp32": "circle", "bf16": "diamond", "fp16": "triangle-up", "int8": "circle"}
TICKS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))  # of each power of ten, from sparse to dense
WIDE, NARROW = 1120, 360  # pixels: of a page, and of a phone
SIDE = 54  # pixels left of a drawing, for numbers

NAMES = {
    "top1": "top-1 accuracy, %",
    "gmacs": "multiply-accumulates per image",
    "mparams": "parameters",
    "mactivations": "activations",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "images_per_s": "images per second",
    "cpu_ms": "server's processor time per image, ms",
    "max_rate": "highest rate, requests per second",
    "inference_ms": "time of an inference, ms",
    "param_mb": "parameters, MB",
    "engine_mb": "memory of the engine, MB",
    "top1_per_mparams": "top-1 % per 10⁶ parameters",
    "intensity": "multiply-accumulates per byte, relative to the ridge",
    "of_compute": "share of the arithmetic peak",
    "rate": "requests per second",
    "batch": "batch",
}
UNITS = {"gmacs": 1e9, "mparams": 1e6, "mactivations": 1e6}  # of fields whose axes show k, M or G
UNIT_NAMES = {name: f", 10{'⁹' if unit == 1e9 else '⁶'}" for name, unit in UNITS.items()}
Path = list[tuple[float, float]]  # in values

ANCHORED = ("label", "front", "anchor_x", "anchor_y")  # fields of a name at its place
HIDDEN = {"order", "problem", "label", "architecture", "anchor_x", "anchor_y", "align", "front"}


@dataclass(frozen=True)
class Fitted:
    """Line through a drawing with its name: `value` maps x to y."""

    name: str
    value: Callable[[float], float]

    def path(self, across: PixelScale, up: PixelScale) -> Path:
        """Return the part of the line that lies within the drawing."""
        grid = [across.value(pixels) for pixels in range(0, round(across.pixels) + 1, 4)]
        low, high = up.domain
        return [(x, y) for x in grid if low <= (y := self.value(x)) <= high]


@dataclass(frozen=True)
class PixelScale:
    """Scale from values to pixels, with a margin of `margin` pixels at each end."""

    least: float
    most: float
    pixels: float
    log: bool
    margin: float = 24

    @property
    def domain(self) -> list[float]:
        """Values at the two ends of the axis."""
        return [self.value(0), self.value(self.pixels)]

    def place(self, value: float) -> float:
        """Return the pixels of a value, from the end of the axis with small values."""
        low, high = self.bend(self.least), self.bend(self.most)
        share = (self.bend(value) - low) / (high - low) if high > low else 0.5
        return self.margin + share * (self.pixels - 2 * self.margin)

    def value(self, pixels: float) -> float:
        """Return the value at some pixels."""
        low, high = self.bend(self.least), self.bend(self.most)
        if high == low:
            low, high = low - 0.5, high + 0.5
        bent = low + (pixels - self.margin) / (self.pixels - 2 * self.margin) * (high - low)
        return math.exp(bent) if self.log else bent

    def bend(self, value: float) -> float:
        """Return the value, or its logarithm."""
        return math.log(value) if self.log else value

    def ticks(self) -> list[float]:
        """Return the places of numbers on a logarithmic axis: round ones, at least four where there is room."""
        low, high = self.domain
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks: list[float] = []
        for steps in TICKS:
            ticks = [value for power in powers for step in steps if low <= (value := step * 10.0**power) <= high]
            if len(ticks) >= min(4, self.pixels / 60):
                break
        return ticks


def scale(values: Sequence[float], pixels: float, *, log: bool, margin: float = 24) -> PixelScale:
    """Return the scale on which these values fill an axis."""
    return PixelScale(min(values), max(values), pixels, log, margin)


def channel(name: str, axis: PixelScale, **more: Any) -> dict[str, Any]:
    """Return the encoding of a field on x or y."""
    kind = {"type": "log", "domain": axis.domain} if axis.log else {"domain": axis.domain}
    ticks = {"values": axis.ticks()} if axis.log else {"tickCount": max(3, round(axis.pixels / 70))}
    numbers = f"format(datum.value * {UNITS[name]}, '~s')" if name in UNITS else "format(datum.value, ',.4~r')"
    shown = {"labelExpr": numbers, "labelFlush": False} | ticks
    return {
        "field": name,
        "type": "quantitative",
        "scale": kind | {"nice": False, "zero": False},
        "axis": shown | {"title": NAMES.get(name, name)} | more,
    }


def scatter(
    records: Records,
    x: str,
    y: str = "top1",
    *,
    width: int,
    more_is_better: bool = False,
    log: tuple[bool, bool] = (True, False),
    drawn_front: bool = True,
    bound: float | None = None,
    fitted: Fitted | None = None,
) -> Any:
    """Draw `y` against `x`, with names beside the points and the Pareto front in blue.

    A thin line joins the precisions of one model, which has one name. `log` makes the axes of x and y logarithmic;
    `bound` is a vertical line with its value, `fitted` a dashed line with its name.
    """
    records = drawable(records, x, y)
    pixels, height = width - SIDE, min(460, round(0.42 * width) + 90)
    values = [record[x] for record in records] + ([bound] if bound else [])
    across = scale(values, pixels, log=log[0], margin=30 if width == WIDE else 20)
    up = scale([record[y] for record in records], height, log=log[1])
    best = front(records, x, y, more_is_better=more_is_better) if drawn_front else []
    records = [record | {"front": record in best} for record in records]
    places = {"x": channel(x, across), "y": channel(y, up, title=None)}
    threads = [rows for rows in by_label(records) if len(rows) > 1]
    paths = [[(record[x], record[y]) for record in rows] for rows in threads]
    paths.append(steps([(record[x], record[y]) for record in best], more_is_better=more_is_better))
    paths += [[(bound, up.domain[0]), (bound, up.domain[1])]] if bound else []
    layers = bound_layers(bound, places, up)
    marks: Records = []
    if fitted and (path := fitted.path(across, up)):
        paths.append(path)
        layers.append(path_layer(path, places, color=GREY, strokeDash=[5, 3], strokeWidth=1.3))
        middle = path[int(0.8 * len(path))]
        marks = [{x: middle[0], y: middle[1], "label": fitted.name, "front": False}]
    layers += [
        path_layer(path, places, color="#c4c4c4", strokeWidth=1.5) for path, _ in zip(paths, threads, strict=False)
    ]
    layers.append(path_layer(paths[len(threads)], places, color=BLUE, opacity=0.4, strokeWidth=1.5, strokeDash=[5, 3]))
    layers += points(records, places)
    layers += names(records, marks, paths, across, up, places)
    return finish(alt.layer(*layers), pixels, height, title=NAMES[y] + symbols(records))


def drawable(records: Records, x: str, y: str = "top1") -> Records:
    """Return the records that have both values, and an x above 0, as a logarithmic axis needs."""
    return [record for record in records if record[x] and record[y] is not None]


def by_label(records: Records) -> list[Records]:
    """Return the records of each label, by x as they come."""
    groups: dict[str, Records] = {}
    for record in records:
        groups.setdefault(record["label"], []).append(record)
    return list(groups.values())


def steps(corners: Path, *, more_is_better: bool) -> Path:
    """Return the staircase through the points of a front: what is reached at each cost."""
    path = corners[:1]
    for before, (x, y) in pairwise(corners):
        path += [(before[0], y) if more_is_better else (x, before[1]), (x, y)]
    return path


def path_layer(path: Path, places: dict[str, Any], **look: Any) -> Any:
    """Return a line through points in this order."""
    x, y = places["x"]["field"], places["y"]["field"]
    line = chart_of([{x: at, y: value, "order": order} for order, (at, value) in enumerate(path)]).mark_line(**look)
    return line.encode(**places, order="order:Q")


def symbols(records: Records) -> str:
    """Return the symbols of the precisions, if there are several."""
    present = list(dict.fromkeys(record["precision"] for record in records if "precision" in record))
    named = ", ".join(f"{SYMBOLS.get(name, '■')} {precision_name(name)}" for name in present)
    return f" ({named})" if len(present) > 1 else ""


def points(records: Records, places: dict[str, Any]) -> list[Any]:
    """Return a layer of points for each precision; the front is blue."""
    colour = alt.condition("datum.front", alt.value(BLUE), alt.value(GREY))
    layers = []
    for precision in dict.fromkeys(record.get("precision", "fp32") for record in records):
        those = [record for record in records if record.get("precision", "fp32") == precision]
        fill = alt.value("#ffffff") if precision == "int8" else colour
        mark = chart_of(those).mark_point(
            shape=SHAPES.get(precision, "square"), size=64, strokeWidth=1.8, opacity=1, filled=False
        )
        layers.append(mark.encode(**places, stroke=colour, fill=fill, tooltip=tooltip(those)))
    return layers


def names(
    records: Records,
    marks: Records,
    paths: Sequence[Path],
    across: PixelScale,
    up: PixelScale,
    places: dict[str, Any],
) -> list[Any]:
    """Return layers with one name for each label, where there is room: marks', then the front's, then the highest's."""
    x, y = places["x"]["field"], places["y"]["field"]
    chosen: dict[str, dict[str, Any]] = {}
    for record in [*marks, *sorted(records, key=lambda record: (not record["front"], -record[y]))]:
        chosen.setdefault(record["label"], record)
    found = place(
        [(*spot(record, x, y, across, up), label) for label, record in chosen.items()],
        [spot(record, x, y, across, up) for record in records],
        [[(across.place(at), up.pixels - up.place(value)) for at, value in path] for path in paths],
        across.pixels,
        up.pixels,
    )
    named = [
        record | anchor(where, across, up)
        for record, where in zip(chosen.values(), found, strict=True)
        if where is not None
    ]
    return text_layers(named, places)


def anchor(where: LabelPlace, across: PixelScale, up: PixelScale) -> dict[str, Any]:
    """Return the fields that put a name at its place."""
    return {"anchor_x": across.value(where.x), "anchor_y": up.value(up.pixels - where.y), "align": where.align}


def text_layers(records: Records, places: dict[str, Any], colour: Any = None) -> list[Any]:
    """Return the names at their anchors, on a white rim against lines. `places` are the channels x and y."""
    layers = []
    where = {"x": places["x"] | {"field": "anchor_x"}, "y": places["y"] | {"field": "anchor_y"}}
    shade = colour or alt.condition("datum.front", alt.value(DARK), alt.value("#555555"))
    for align in ("left", "center", "right"):
        if those := [record for record in records if record["align"] == align]:
            data = [{name: record.get(name) for name in ANCHORED} for record in those]
            base = chart_of(data).encode(**where, text="label:N")
            look: dict[str, Any] = {"align": align, "baseline": "middle", "fontSize": FONT}
            layers += [
                base.mark_text(**look, stroke="white", strokeWidth=3, strokeJoin="round"),
                base.mark_text(**look).encode(color=shade),
            ]
    return layers


def bound_layers(bound: float | None, places: dict[str, Any], up: PixelScale) -> list[Any]:
    """Return a vertical line with its value."""
    if bound is None:
        return []
    data = chart_of([{"bound": bound, "at": up.domain[0], "text": f"{bound:g} ms"}])
    x = places["x"] | {"field": "bound"}
    rule = data.mark_rule(color=DARK, strokeWidth=1.2).encode(x=x)
    text = data.mark_text(align="right", dx=-5, dy=-8, fontSize=FONT, color=DARK)
    return [rule, text.encode(x=x, y=places["y"] | {"field": "at"}, text="text:N")]


def line_panels(records: Records, x: str, y: str, *, width: int) -> Any:
    """Draw the lines of each precision, side by side on a page, one above the other on a phone.

    A line has its name at its right end. `records` are in the order of x.
    """
    precisions = list(dict.fromkeys(record["precision"] for record in records))
    columns = 1 if width == NARROW else len(precisions)
    panels = [
        line_panel(
            [record for record in records if record["precision"] == precision],
            *(records, x, y),
            width=width // columns - 12,
            title=f"{precision_name(precision)}: {NAMES[y]}",
        )
        for precision in precisions
    ]
    return finish(alt.concat(*panels, columns=columns))


def line_panel(records: Records, every: Records, x: str, y: str, *, width: int, title: str) -> Any:
    """Return a line per label on the scales of `every` record, with the names at the right ends."""
    room = max(len(record["label"]) for record in every) * LETTER + 16
    pixels, height = width - SIDE, 340
    across = scale([record[x] for record in every], pixels - room, log=True, margin=8)
    across = PixelScale(across.least, across.value(pixels - 8), pixels, log=True, margin=8)  # with room for names
    up = scale([record[y] for record in every], height, log=True)
    places = {"x": channel(x, across), "y": channel(y, up, title=None)}
    most = max(record[x] for record in every)
    batches = sorted({record[x] for record in every})
    places["x"]["axis"]["values"] = batches if x == "batch" else [tick for tick in across.ticks() if tick <= most]
    labels = list(dict.fromkeys(record["label"] for record in every))
    colours = alt.Color("label:N", legend=None, scale=alt.Scale(domain=labels, range=shades(labels)))
    line = chart_of(records).mark_line(point={"size": 36}, strokeWidth=1.8)
    pixel_paths = [[spot(record, x, y, across, up) for record in rows] for rows in by_label(records)]
    ends = [path[-1] for path in pixel_paths]
    found: Sequence[LabelPlace | None]
    if len({at for at, _ in ends}) == 1:  # the names form a column
        heights = apart([high for _, high in ends], FONT + 2)
        found = [LabelPlace(at + 8, high, "left") for (at, _), high in zip(ends, heights, strict=True)]
    else:
        wanted = [(*end, rows[-1]["label"]) for end, rows in zip(ends, by_label(records), strict=True)]
        found = place(wanted, [corner for path in pixel_paths for corner in path], pixel_paths, pixels, height)
    named = [
        rows[-1] | anchor(where, across, up) for rows, where in zip(by_label(records), found, strict=True) if where
    ]
    layers = [
        line.encode(**places, color=colours, detail="model:N", tooltip=tooltip(records)),
        *text_layers(named, places, colours),
    ]
    heading = alt.TitleParams(title, anchor="start", frame="bounds", offset=10)
    return alt.layer(*layers).properties(width=pixels, height=height, title=heading)


def spot(record: dict[str, Any], x: str, y: str, across: PixelScale, up: PixelScale) -> tuple[float, float]:
    """Return the pixels of a record, from the left and from the top."""
    return across.place(record[x]), up.pixels - up.place(record[y])


def shades(labels: Sequence[str]) -> list[str]:
    """Return a colour for each label; names at the lines tell those of one colour apart."""
    return [COLOURS[place % len(COLOURS)] for place, _ in enumerate(labels)]


def chart_of(records: Records) -> alt.Chart:
    """Return an empty drawing with these records as its data."""
    return alt.Chart({"values": records})


def tooltip(records: Records) -> list[alt.Tooltip]:
    """Return the channels that show every field of a record on hover."""
    fields = [name for name in (records[0] if records else {}) if name not in HIDDEN]
    numbers = {name for name in fields if any(isinstance(record[name], float) for record in records)}
    titles = {name: NAMES.get(name, name.replace("_", " ")) for name in fields}
    return [
        alt.Tooltip(f"{name}:Q", title=titles[name] + UNIT_NAMES.get(name, ""), format=".4~g")
        if name in numbers
        else alt.Tooltip(f"{name}:N", title=titles[name])
        for name in fields
    ]


def finish(chart: Any, width: float | None = None, height: float | None = None, title: str = "") -> Any:
    """Return a drawing with its size, the name of its vertical axis above, and the style of all drawings."""
    if width is not None:
        chart = chart.properties(width=width, height=height)
    if title:
        chart = chart.properties(title=alt.TitleParams(title, anchor="start", frame="bounds", offset=10))
    return (
        chart.configure(font="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", padding=4)
        .configure_view(stroke=None)
        .configure_title(fontSize=FONT, fontWeight="normal", color="#555")
        .configure_axis(
            gridColor=LIGHT,
            domain=False,
            ticks=False,
            labelColor="#555",
            titleColor="#555",
            labelFontSize=FONT,
            titleFontSize=FONT,
            titleFontWeight="normal",
            labelPadding=6,
            titlePadding=10,
        )
    )
