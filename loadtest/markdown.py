"""Tables in Markdown, as a whole or line by line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str]) -> str:
    """Return a table; the columns whose heading is in `numbers` are right-aligned."""
    return "\n".join([head(headings, numbers), *map(line, rows)])


def head(headings: Sequence[str], numbers: Collection[str]) -> str:
    """Return the two lines above a table's rows, for a table that is printed line by line."""
    return f"{line(headings)}\n{line(['---:' if heading in numbers else '---' for heading in headings])}"


def line(cells: Sequence[str]) -> str:
    """Return one line of a table, without a line break."""
    return f"| {' | '.join(cells)} |"
