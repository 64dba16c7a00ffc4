"""Rounds of a sweep: which engines are due, and those whose rounds contradict each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from loadtest.rows import EngineRow, Measured, by_engine

AGAIN = 2  # further rounds at most, of an engine whose rounds contradict each other


def due(
    rounds: int, engines: Sequence[EngineRow], done: Mapping[tuple[str, str, int], EngineRow]
) -> Iterator[EngineRow]:
    """Yield the rows to measure: what `done` lacks of the rounds, then again those whose rounds contradict each other.

    The caller adds each row to `done` before it asks for the next.
    """
    for number, engine in itertools.product(range(rounds + AGAIN if rounds > 1 else 1), engines):
        row = engine.model_copy(update={"round": number})
        if number >= rounds and not rounds_of(engine, done.values()).contradicted():
            continue
        if row.key not in done or done[row.key].problem:
            yield row


def rounds_of(engine: EngineRow, done: Iterable[EngineRow]) -> Measured:
    """Return the rounds of one engine that were measured so far."""
    return Measured(engine.tag, [row for row in done if row.key[:2] == engine.key[:2]] or [engine])


def contradictions(done: Iterable[EngineRow]) -> Iterator[str]:
    """Yield a line for each figure on which the rounds of an engine still do not agree."""
    for measured in by_engine(list(done)):
        for figure in measured.contradicted():
            values = ", ".join(f"{value:.4g}" for value in measured.values(figure))
            yield f"{measured.name}: rounds contradict each other in {figure}: {values}; the spread is in the report"
