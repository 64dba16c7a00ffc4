"""Two or more architectures side by side: a row per figure, a column per architecture."""

from __future__ import annotations

from collections.abc import Sequence

from models.tables import Row, megabytes, shape

COUNTS = {
    "depth": "depth: weight layers on the longest path",
    "params": "parameters",
    "macs": "multiply-accumulates",
    "activations": "activations",
    "param_bytes": "parameters in float32",
    "peak_bytes": "peak memory of tensors, without parameters",
    "intensity": "operations per byte, batch of one",
}


def side_by_side(rows: Sequence[Row]) -> list[Row]:
    """Return the figures of descriptions that have a `depth`; between two, with the second as a multiple of the first.

    Accuracies are the published ones that are first on the cards, each with its source.
    """
    first, *others = rows
    lines = [
        line("family, year", [f"{row['family']}, {row['year']}" for row in rows], rows),
        line("input, classes", [f"{shape(row['input_shape'])}, {row['classes']:,}" for row in rows], rows),
    ]
    for key, title in COUNTS.items():
        compared = line(title, [count(key, row[key]) for row in rows], rows)
        if len(others) == 1:
            compared["second / first"] = f"{others[0][key] / first[key]:.3g}" if first[key] else "-"
        lines.append(compared)
    results = [row["published"][0] if row["published"] else {} for row in rows]
    for key, title in (("top1", "published top-1"), ("top5", "published top-5")):
        lines.append(line(title, [percent(result.get(key)) for result in results], rows))
    for key, title in (("data", "  on"), ("protocol", "  how"), ("source", "  source")):
        lines.append(line(title, [result.get(key) or "-" for result in results], rows))
    return [dict.fromkeys(lines[2], "") | row for row in lines]


def line(title: str, cells: Sequence[str], rows: Sequence[Row]) -> Row:
    """Return a row of the table: the title of a figure, and its value of each architecture."""
    return {"": title} | {row["name"]: cell for row, cell in zip(rows, cells, strict=True)}


def count(key: str, value: float) -> str:
    """Return a count with separated thousands; bytes in megabytes."""
    return megabytes(int(value)) if key.endswith("_bytes") else f"{value:,}"


def percent(value: float | None) -> str:
    """Return an accuracy with its unit, or a dash."""
    return "-" if value is None else f"{value:g} %"
