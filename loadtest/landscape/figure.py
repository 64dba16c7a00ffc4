"""Picture of the landscape: published accuracy against time on this machine, and against three costs.

Accuracy is drawn on a logarithmic scale of the error, so that networks of 76 to 81 % do not lie on top of each other.
Shapes and dashes say what colours say, so that a picture in grey says the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import altair as alt

from loadtest.landscape.placement import PlacedName, Point, Surroundings, place_names, text_width
from loadtest.landscape.rows import LandscapeRow
from loadtest.report.charts import PixelScale, chart_of, scale
from loadtest.traffic import ScenarioError

Records = list[dict[str, Any]]

BUDGET_MS = 20.0  # of README's model=auto
COSTS = {
    "gmacs": "multiply-accumulates, billions",
    "mparams": "parameters, millions",
    "mactivations": "activations, millions",
}
FACE = "Helvetica, Arial, 'Liberation Sans', sans-serif"  # equally wide, so that names fit everywhere
BLUE, ORANGE, GREY, DARK = "#0072B2", "#D55E00", "#767676", "#222222"  # Okabe and Ito's
HALO: dict[str, Any] = {"stroke": "white", "strokeWidth": 2.5, "strokeJoin": "round", "color": "white"}  # behind names
NARROW = 600  # pixels, up to which panels stand one above the other
LEFT, GAP = 40, 30  # pixels: numbers of an axis, and room between panels
ACCURACIES = (50, 55, 60, 65, 70, 75, 78, 80, 82, 84, 86)  # percent, to write at the axis
HEIGHT = "height"  # field: the accuracy on the picture's scale


def landscape_figure(rows: Sequence[LandscapeRow], width: int = 880) -> Any:
    """Return an Altair chart of published top-1 against the time of one request, MACs, parameters and activations.

    The first panel is of the precision that most networks were measured in, and has the Pareto front of a second
    precision too. Names stand where there is room, first the front's. Rows without a published accuracy are left out.
    """
    (records, *others), wide = by_precision(rows), width > NARROW
    others = others[:1] if wide else []
    drawn = [*records, *(record for group in others for record in front(group, "ms"))]
    heights, font = [record[HEIGHT] for record in records], 11.5 if wide else 10.5
    first = Panel(
        scale([record["ms"] for record in drawn] + [BUDGET_MS], width - LEFT, log=True, margin=28),
        scale(heights, round(width * 0.6) if wide else 420, log=False, margin=24),
        *("ms", time_title(rows), font, math.inf) if wide else ("ms", "time of one request, ms", font, 24),
    )
    each = (width - LEFT - 2 * GAP) // 3 if wide else width - LEFT
    small = [
        Panel(
            scale([record[cost] for record in records], each, log=True, margin=16),
            scale(heights, 290, log=False, margin=18),
            *(cost, title, 10.5, 18),
        )
        for cost, title in COSTS.items()
    ]
    panels = [panel.draw(records) for panel in small]
    below = [
        titled(layers, panel, letter, numbers=not wide or letter == "b")
        for layers, panel, letter in zip(panels, small, "bcd", strict=True)
    ]
    return styled(
        alt.vconcat(
            titled(first.draw(records, others), first, "a", numbers=True),
            alt.concat(*below, columns=3 if wide else 1, spacing=GAP),
            spacing=18,
        )
    )


def time_title(rows: Sequence[LandscapeRow]) -> str:
    """Return the title of the axis of time, with machine and weights, so that the picture says both by itself."""
    machine = rows[0].machine
    weights = " or ".join(sorted({row.weights for row in rows}, reverse=True))
    where = machine.get("processor", "this machine")
    return f"time of one request, ms (p50 of one connection; {where}; {weights} weights)"


def by_precision(rows: Sequence[LandscapeRow]) -> list[Records]:
    """Return a record for each measured network with a published accuracy, a list a precision, the longest first.

    Raises ScenarioError if there is no such network.
    """
    groups: dict[str, Records] = {}
    for row in rows:
        if row.published_top1 is not None and row.rounds:
            groups.setdefault(row.precision, []).append(record_of(row, 100 * row.published_top1))
    if not groups:
        raise ScenarioError("no measured network of the landscape has a published accuracy, so nothing can be drawn")
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]["precision"] != "fp32"))


def record_of(row: LandscapeRow, top1: float) -> dict[str, Any]:
    """Return what is drawn of a network: costs, accuracy in percent, and its median time with the rounds' range."""
    times = [each.p50_ms for each in row.rounds]
    return {
        "name": row.name,
        "top1": top1,
        HEIGHT: height(top1),
        "source": row.published_source,
        "one_crop": is_one_crop(row),
        "ms": median(times),
        "least_ms": min(times),
        "most_ms": max(times),
        "gmacs": row.macs / 1e9,
        "mparams": row.params / 1e6,
        "mactivations": row.activations / 1e6,
        "precision": row.precision,
        "weights": row.weights,
        "input": row.input,
    }


def is_one_crop(row: LandscapeRow) -> bool:
    """Return True if the published accuracy is of one crop of the input that is timed, on all validation images."""
    return (row.published_source or "").endswith(f": validation, one {row.input} crop")


def front(records: Records, cost: str) -> Records:
    """Return the networks that no other beats at the same or less cost, cheapest first."""
    best: Records = []
    for record in sorted(comparable(records), key=lambda record: (record[cost], -record["top1"])):
        if not best or record["top1"] > best[-1]["top1"]:
            best.append(record)
    return best


def comparable(records: Records) -> Records:
    """Return the networks whose accuracies are of one crop, or all if there are none."""
    return [record for record in records if record["one_crop"]] or records


@dataclass(frozen=True)
class PanelText:
    """Text at a place in pixels, y downwards; the place is the text's middle in height, and aligned to."""

    x: float
    y: float
    text: str
    align: Literal["center", "right"]
    font: float
    colour: str = DARK
    weight: Literal["normal", "bold"] = "normal"

    def points(self) -> list[Point]:
        """Return points, at most 8 pixels apart, along the text."""
        width = text_width(self.text, self.font) * (1.1 if self.weight == "bold" else 1)
        left = self.x - {"center": 0.5, "right": 1}[self.align] * width
        return [(left + step, self.y) for step in range(0, round(width) + 8, 8)]


@dataclass(frozen=True)
class Panel:
    """Drawing of accuracy against one cost: scales in pixels, the cost's field and title.

    Networks' names have this font size, and are at most `reach` pixels from their points.
    """

    across: PixelScale
    up: PixelScale
    cost: str
    title: str
    font: float
    reach: float

    def pixels(self, record: dict[str, Any]) -> Point:
        """Return the place of a record, y downwards."""
        return self.across.place(record[self.cost]), self.up.pixels - self.up.place(record[HEIGHT])

    def channels(self, x: str = "", y: str = HEIGHT) -> dict[str, Any]:
        """Return the encodings of fields on x and y."""
        fields = (x or self.cost, self.across, "log"), (y, self.up, "linear")
        return {
            name: {
                "field": field,
                "type": "quantitative",
                "scale": {"type": kind, "domain": axis.domain, "nice": False, "zero": False},
            }
            for name, (field, axis, kind) in zip("xy", fields, strict=True)
        }

    def draw(self, records: Records, others: Sequence[Records] = ()) -> list[Any]:
        """Return layers: budget, fronts, the spread of times, leaders, points, and names where there is room."""
        best = front(records, self.cost)
        fronts = [best, *(front(other, self.cost) for other in others)]
        records = [record | {"best": record in best} for record in records]
        layers, covered = [self.step(best, BLUE, [])], []
        for second in fronts[1:]:
            layers += [self.step(second, ORANGE, [5, 3]), self.diamonds(second)]
            covered += [self.pixels(record) for record in second]
        if self.cost == "ms":
            rule = chart_of(records).mark_rule(color=GREY, strokeWidth=1, clip=True)
            texts = [*self.budget([records, *others]), *(self.titles(fronts) if others else [])]
            layers = [self.budget_line(), *layers, rule.encode(**self.channels("least_ms"), x2="most_ms:Q")]
            layers += [self.write(text) for text in texts]
            covered += [point for text in texts for point in text.points()]
        lines = [point for each in fronts for point in steps([self.pixels(record) for record in each])]
        if self.cost == "ms":
            lines += [(self.across.place(BUDGET_MS), float(y)) for y in range(0, round(self.up.pixels), 8)]
            lines += [point for record in records for point in self.bar(record)]
        return [*layers, *self.names(records, covered, lines), *self.points(records)]

    def bar(self, record: dict[str, Any]) -> list[Point]:
        """Return points, at most 8 pixels apart, along the bar from the least time to the largest, within the panel."""
        left, right = (self.across.place(record[end]) for end in ("least_ms", "most_ms"))
        right, y = min(right, self.across.pixels), self.pixels(record)[1]
        return [(left + step, y) for step in range(0, round(right - left), 8)]

    def write(self, text: PanelText) -> Any:
        """Return a text at its place."""
        data = {"x": self.across.value(text.x), "y": self.y_value(text.y), "text": text.text}
        mark = chart_of([data]).mark_text(
            align=text.align, baseline="middle", fontSize=text.font, color=text.colour, fontWeight=text.weight
        )
        return mark.encode(**self.channels("x", "y"), text="text:N")

    def step(self, best: Records, colour: str, dash: Sequence[float]) -> Any:
        """Return the line of a Pareto front."""
        mark = chart_of(best).mark_line(
            interpolate="step-after", color=colour, opacity=0.55, strokeWidth=1.5, strokeDash=list(dash)
        )
        return mark.encode(**self.channels())

    def diamonds(self, best: Records) -> Any:
        """Return the points of a second front."""
        mark = chart_of(best).mark_point(
            shape="diamond", size=30, color=ORANGE, fill="white", strokeWidth=1.3, opacity=1
        )
        return mark.encode(**self.channels(), tooltip=hover())

    def titles(self, fronts: Sequence[Records]) -> list[PanelText]:
        """Return the precisions' names above the upper ends of their fronts."""
        texts = []
        for best, colour in zip(fronts, (BLUE, ORANGE), strict=True):
            (x, y), text = self.pixels(best[-1]), f"front in {best[-1]['precision']}"
            inside = min(x, self.across.pixels - 0.55 * text_width(text, self.font))
            texts.append(PanelText(inside, y - 13, text, "center", self.font, colour, "bold"))
        return texts

    def budget_line(self) -> Any:
        """Return the line of model=auto's budget."""
        rule = chart_of([{"x": BUDGET_MS}]).mark_rule(color=DARK, strokeWidth=1.1, strokeDash=[2, 2])
        return rule.encode(x=self.channels("x")["x"])

    def budget(self, groups: Sequence[Records]) -> list[PanelText]:
        """Return the budget's name and the choice in each precision, left of the line above the fronts, or the name."""
        lines = [f"model=auto, max_latency_ms={BUDGET_MS:g}"]
        for group in groups:
            if within := [record for record in comparable(group) if record[self.cost] <= BUDGET_MS]:
                chosen = max(within, key=lambda record: record["top1"])
                lines.append(f"{chosen['precision']}: {chosen['name']}, {chosen['top1']:.1f} %")
        x = self.across.place(BUDGET_MS) - 6
        if max(text_width(line, self.font) for line in lines) > x:
            lines = [f"{BUDGET_MS:g} ms"]
        return [
            PanelText(x, 16 + 1.35 * self.font * place, line, "right", self.font) for place, line in enumerate(lines)
        ]

    def points(self, records: Records) -> list[Any]:
        """Return a layer of points: filled on the front, hollow elsewhere; squares if not by one crop."""
        mark = chart_of(records).mark_point(size=44, strokeWidth=1.4, opacity=1, filled=False)
        on_front = alt.condition("datum.best", alt.value(BLUE), alt.value(GREY))
        fill = alt.condition("datum.best", alt.value(BLUE), alt.value("white"))
        shape = alt.condition("datum.one_crop", alt.value("circle"), alt.value("square"))
        return [mark.encode(**self.channels(), stroke=on_front, fill=fill, shape=shape, tooltip=hover())]

    def names(self, records: Records, covered: Sequence[Point], lines: Sequence[Point]) -> list[Any]:
        """Return layers of names and leaders, off what is `covered` and rather off `lines`.

        The front's names are left out last.
        """
        ordered = sorted(records, key=lambda record: (not record["best"], -record["top1"]))
        found = place_names(
            [(self.pixels(record), record["name"]) for record in ordered],
            Surroundings(
                points=[*(self.pixels(record) for record in records), *covered],
                lines=lines,
                size=(self.across.pixels, self.up.pixels),
                font=self.font,
                reach=self.reach,
            ),
        )
        named = [record | self.anchor(where) for record, where in zip(ordered, found, strict=True) if where is not None]
        leaders = [record for record in named if "end_x" in record]
        layers = [
            chart_of(leaders)
            .mark_rule(color="#9a9a9a", strokeWidth=0.7)
            .encode(**self.channels(), x2="end_x:Q", y2="end_y:Q")
        ]
        shade = alt.condition("datum.best", alt.value(DARK), alt.value("#4a4a4a"))
        for align in ("left", "center", "right"):
            those = [record for record in named if record["align"] == align]
            style: dict[str, Any] = {"align": align, "baseline": "middle", "fontSize": self.font}
            halo = chart_of(those).mark_text(**style, **HALO)
            places = self.channels("name_x", "name_y")
            layers.append(halo.encode(**places, text="name:N"))
            layers.append(chart_of(those).mark_text(**style).encode(**places, text="name:N", color=shade))
        return layers

    def anchor(self, where: PlacedName) -> dict[str, Any]:
        """Return the fields that put a name at its place."""
        fields = {"align": where.align, "name_x": self.across.value(where.x), "name_y": self.y_value(where.y)}
        if where.leader:
            fields |= {"end_x": self.across.value(where.leader[0]), "end_y": self.y_value(where.leader[1])}
        return fields

    def y_value(self, pixels: float) -> float:
        """Return the value at some pixels from the top."""
        return self.up.value(self.up.pixels - pixels)


def hover() -> list[alt.Tooltip]:
    """Return what is shown of a network on hover."""
    return [
        alt.Tooltip("name:N", title="network"),
        alt.Tooltip("top1:Q", title="published top-1, %", format=".2f"),
        alt.Tooltip("source:N"),
        alt.Tooltip("ms:Q", title="p50 measured here, ms", format=".3~g"),
        *(alt.Tooltip(f"{cost}:Q", title=title, format=".3~g") for cost, title in COSTS.items()),
        *(alt.Tooltip(f"{name}:N") for name in ("input", "precision", "weights")),
    ]


def steps(points: Sequence[Point]) -> list[Point]:
    """Return points, 8 pixels apart, on the stairs that go right and then up from each point to the next."""
    stairs: list[Point] = []
    for (left, low), (right, high) in pairwise(points):
        stairs += [(left + step, low) for step in range(0, round(right - left), 8)]
        stairs += [(right, low - step) for step in range(0, round(low - high), 8)]
    return stairs


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Return the places of numbers on the axis of accuracy: round ones, or if these are too few, finer ones."""
    for choice in (ACCURACIES, range(100), [tenth / 10 for tenth in range(1000)]):
        ticks = [tick for top1 in choice if low <= (tick := height(top1)) <= high]
        if len(ticks) > 2:
            break
    return ticks


def height(top1: float) -> float:
    """Return an accuracy in percent on the picture's scale."""
    return -math.log10(100 - top1)


def titled(layers: list[Any], panel: Panel, letter: str, *, numbers: bool) -> Any:
    """Return a panel with its axes, and the letter by which a text refers to the panel."""
    x = alt.Axis(title=panel.title, values=panel.across.ticks(), format="~g", labelFlush=False)
    y = alt.Axis(
        title=None,
        values=accuracy_ticks(*panel.up.domain),
        labelExpr="format(100 - pow(10, -datum.value), '.3~r')",
        labels=numbers,
    )
    places = panel.channels()
    blank = chart_of([{}]).mark_point(opacity=0).encode(x=places["x"] | {"axis": x}, y=places["y"] | {"axis": y})
    title = f"({letter})" + ("  published top-1 on ImageNet, %" if numbers else "")
    return alt.layer(blank, *layers).properties(
        width=panel.across.pixels,
        height=panel.up.pixels,
        title=alt.TitleParams(title, anchor="start", frame="bounds", offset=8),
    )


def styled(chart: alt.VConcatChart) -> Any:
    """Return the picture with its fonts, axes and grid."""
    return (
        chart.configure(font=FACE, padding=6)
        .configure_view(stroke="#bdbdbd", strokeWidth=0.8)
        .configure_title(fontSize=12, fontWeight="normal", color=DARK)
        .configure_axis(
            gridColor="#ececec",
            domain=False,
            tickColor="#bdbdbd",
            tickSize=4,
            labelColor=DARK,
            titleColor=DARK,
            labelFontSize=11.5,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=6,
        )
    )
