"""Drawings of the report with a row or a bar for each model: no axis where a number can stand."""

from __future__ import annotations

from typing import Any

import altair as alt

from loadtest.report.charts import BLUE, DARK, GREY, NARROW, chart_of, finish, scale, tooltip
from loadtest.report.data import ILSVRC, Records
from loadtest.report.labels import FONT, LETTER

STAGES = ("decode", "queue", "inference", "HTTP and client")
SHORT = dict(zip(STAGES, ("decode", "queue", "infer", "HTTP"), strict=True))
ROW = 19  # pixels


def history(*, width: int) -> Any:
    """Draw the lecture's bars: top-5 error of ILSVRC's winners, and of a human."""
    names = [winner["entry"] for winner in ILSVRC]
    base = chart_of(ILSVRC).encode(x=alt.X("error:Q", axis=None), y=rows(names, "entry"))
    colour = alt.condition("datum.layers == 'human'", alt.value(GREY), alt.value(BLUE))
    bar = base.mark_bar(height={"band": 0.7}).encode(color=colour)
    text = base.mark_text(align="left", dx=5, fontSize=FONT, color=DARK)
    room = max(map(len, names)) * LETTER
    return finish(alt.layer(bar, text.encode(text="error:Q")), width - room - 50, ROW * len(names))


def bars(records: Records, x: str, *, width: int) -> Any:
    """Draw one bar per model with its number, the highest first."""
    ordered = sorted(records, key=lambda record: -record[x])
    base = chart_of(ordered).encode(x=alt.X(f"{x}:Q", axis=None), y=rows([record["model"] for record in ordered]))
    bar = base.mark_bar(height={"band": 0.7}, color=BLUE).encode(tooltip=tooltip(ordered))
    text = base.mark_text(align="left", dx=5, fontSize=FONT, color=DARK).encode(text=alt.Text(f"{x}:Q", format=".3~g"))
    room = max(len(record["model"]) for record in records) * LETTER
    return finish(alt.layer(bar, text), width - room - 50, ROW * len(records))


def stages(records: Records, *, width: int) -> Any:
    """Draw the mean time of each stage of one request: a column per stage, a row per model, the fastest first.

    A millisecond is as long in each column.
    """
    total: dict[str, float] = {}
    for record in records:
        total[record["model"]] = total.get(record["model"], 0) + record["ms"]
    names = sorted(total, key=total.__getitem__)
    columns = [stage for stage in STAGES if any(record["stage"] == stage for record in records)]
    most = {stage: max(record["ms"] for record in records if record["stage"] == stage) for stage in columns}
    room, number = max(map(len, names)) * LETTER + 12, 42 if width == NARROW else 104
    free = width - room - (number + 8) * len(columns)
    charts: list[Any] = []
    for stage in columns:
        pixels = most[stage] / sum(most.values()) * free + number
        base = chart_of([record for record in records if record["stage"] == stage]).encode(
            x=alt.X("ms:Q", axis=None, scale=alt.Scale(domain=[0, pixels / free * sum(most.values())])),
            y=alt.Y("model:N", sort=names, axis=None) if charts else rows(names),
        )
        bar = base.mark_bar(height={"band": 0.7}, color=BLUE if stage == "inference" else GREY)
        text = base.mark_text(align="left", dx=4, fontSize=FONT, color=DARK).encode(text=alt.Text("ms:Q", format=".2f"))
        title = alt.TitleParams(SHORT[stage] if width == NARROW else stage, anchor="start", frame="group")
        charts.append(alt.layer(bar, text).properties(width=pixels, height=ROW * len(names), title=title))
    return finish(alt.hconcat(*charts, spacing=8))


def precisions(records: Records, x: str, *, width: int) -> Any:
    """Draw two precisions of each model on a row: fp32 filled, the other open, and what the other gains and loses.

    `records` have `label`, `precision`, `top1` and `x`, and two precisions each.
    """
    pairs = [
        (first, second)
        for first in records
        for second in records
        if first["precision"] == "fp32" and second["precision"] != "fp32" and second["label"] == first["label"]
    ]
    pairs.sort(key=lambda pair: pair[0][x] / pair[1][x])
    names = [first["label"] for first, _ in pairs]
    said = [{"label": first["label"], "text": gain(first, second, x, short=width == NARROW)} for first, second in pairs]
    left, right = max(map(len, names)) * LETTER + 12, max(len(row["text"]) for row in said) * LETTER + 8
    pixels = width - left - right
    across = scale([record[x] for pair in pairs for record in pair], pixels, log=True, margin=12)
    ends = [record for pair in pairs for record in pair]
    where: dict[str, Any] = {
        "x": alt.X(
            f"{x}:Q",
            title="images per second, batch 8, engine alone",
            scale=alt.Scale(type="log", domain=across.domain, nice=False),
            axis=alt.Axis(values=across.ticks(), format="~g"),
        ),
        "y": rows(names, "label"),
    }
    thread = chart_of(ends).mark_line(color="#c4c4c4", strokeWidth=2).encode(**where, detail="label:N")
    dots = [
        chart_of([pair[place] for pair in pairs])
        .mark_point(size=80, filled=False, stroke=BLUE, fill=fill, strokeWidth=1.8, opacity=1)
        .encode(**where, tooltip=tooltip(ends))
        for place, fill in enumerate((BLUE, "#ffffff"))
    ]
    text = chart_of(said).mark_text(align="left", fontSize=FONT, color=DARK)
    words = text.encode(x=alt.value(pixels + 8), y=rows(names, "label"), text="text:N")
    return finish(alt.layer(thread, *dots, words), pixels, 26 * len(names))


def gain(first: dict[str, Any], second: dict[str, Any], x: str, *, short: bool) -> str:
    """Return how many times as fast the second precision is, and unless short the points of accuracy between them."""
    times = f"{second[x] / first[x]:.1f} times"
    if short or None in (first["top1"], second["top1"]):
        return times
    points = round(second["top1"] - first["top1"], 1) + 0.0  # no negative zero
    return f"{times}, {points:+.1f} points" if points else f"{times}, same accuracy"


def rows(names: list[str], field: str = "model") -> Any:
    """Return the vertical channel with a row for each name, in this order."""
    axis = alt.Axis(title=None, grid=False, labelLimit=300, labelColor=DARK)
    return alt.Y(f"{field}:N", sort=names, axis=axis)
