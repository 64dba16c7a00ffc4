"""Text tables of the command `python -m models`: aligned columns, Markdown, comma-separated values."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Sequence
from typing import Any

Row = dict[str, Any]


def aligned(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the rows as columns of equal width under a header, numbers to the right."""
    cells = [list(columns)] + [[cell(column, row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [any(isinstance(row[column], int | float) for row in rows) for column in columns]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def cell(column: str, value: object) -> str:
    """Return a value as text: a dash for None, thousands separated in counts, years as they are."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and column != "year" else str(value)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with the keys of the first row as header."""
    header = list(rows[0]) if rows else []
    lines = [header, ["---"] * len(header), *([str(row[column]) for column in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(rows: Sequence[Row], columns: Collection[str]) -> None:
    """Print the rows as comma-separated values under a header."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def shape(sizes: Sequence[int]) -> str:
    """Return sizes as text, such as 3x224x224."""
    return "x".join(map(str, sizes))


def megabytes(size: int) -> str:
    """Return a number of bytes in megabytes of 10^6 bytes."""
    return f"{size / 1e6:.2f} MB"


def rounded(count: int) -> str:
    """Return a count with three significant digits, such as 60.0 K, 25.6 M or 4.09 G."""
    for unit, factor in (("G", 1e9), ("M", 1e6)):
        if count >= 0.9995 * factor:  # rounds to 1.00
            return f"{count / factor:#.3g} {unit}".replace(". ", " ")
    return f"{count / 1e3:#.3g} K".replace(". ", " ")
