"""Answer of the report to "which should I serve?", in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from loadtest.landscape.rows import LandscapeRow
from loadtest.report.data import Records, lower_bound, measured, precision_name, rate_within
from loadtest.rows import Measured

OTHER_BOUND = (
    "This sweep searched for the highest rate within {searched:g} ms; python -m loadtest sweep --p99-ms {bound:g}, into"
    " another file, finds the highest within {bound:g} ms."
)


def answer(measurements: Sequence[Measured], p99_ms: float | None) -> list[str]:
    """Return sentences on the engines of one data set: the most accurate within a bound of the p99, and the fastest.

    The bound is of the p99 of one connection; None is no bound. The first sentence answers, the others say how fast the
    engine is, how sure the answer, and what else to consider.
    """
    searched = measurements[0].engine.load.p99_ms
    bound = p99_ms or searched  # of the rates
    every = [
        record | {"rate_within": rate_within(measurement, bound), "bound": bound}
        for measurement, record in zip(measurements, measured(measurements), strict=True)
    ]
    have = [record for record in every if record["top1"] is not None and record["p99_ms"] is not None]
    if not have:
        return ["None of the measured engines has a known accuracy, so none can be recommended."]
    within = [record for record in have if p99_ms is None or record["p99_ms"] <= p99_ms]
    if not within:
        fastest = min(have, key=lambda record: record["p99_ms"])
        return [
            f"None of the {len(have)} measured engines has a p99 within {p99_ms:g} ms:"
            f" the fastest is {named(fastest)}, with {fastest['p99_ms']:.3g} ms."
        ]
    best = max(within, key=lambda record: (record["top1"], -record["p99_ms"]))
    than = f"the most accurate of {len(within)}" + ("" if p99_ms is None else f" with a p99 within {p99_ms:g} ms")
    return [
        f"Serve {named(best)}: {best['top1']:.1f} % right on {best['dataset']}, {than}.",
        f"{speed(best)[0].upper()}{speed(best)[1:]}.",
        *alternatives(have, within, best),
        *([] if bound == searched else [OTHER_BOUND.format(searched=searched, bound=bound)]),
    ]


def landscape_answer(rows: Sequence[LandscapeRow], p99_ms: float | None) -> list[str]:
    """Return sentences on ImageNet: the network with the highest published accuracy within a bound of the p99.

    `rows` have rounds and a published accuracy. The bound is of the p99 of one connection; None is no bound.
    """
    waits = {row.key: median(each.p99_ms for each in row.rounds) for row in rows}
    within = [row for row in rows if p99_ms is None or waits[row.key] <= p99_ms]
    if not within:
        fastest = min(rows, key=lambda row: waits[row.key])
        return [
            f"For ImageNet, none of {len(rows)} engines has a p99 within {p99_ms:g} ms here:"
            f" the fastest is {fastest.name} in {precision_name(fastest.precision)}, with {waits[fastest.key]:.3g} ms."
        ]
    best = max(within, key=lambda row: (row.published_top1 or 0, -waits[row.key]))
    than = f"the most accurate of {len(within)}" + ("" if p99_ms is None else f" with a p99 within {p99_ms:g} ms")
    single = median(each.p50_ms for each in best.rounds)
    return [
        f"For ImageNet, serve {best.name} in {precision_name(best.precision)}:"
        f" {100 * (best.published_top1 or 0):.1f} % as published, {than}.",
        f"One connection has a p50 of {single:.3g} ms and a p99 of {waits[best.key]:.3g} ms, measured here with"
        f" {best.weights} weights; the accuracy is from {best.published_source}.",
    ]


def alternatives(have: Records, within: Records, best: dict[str, Any]) -> list[str]:
    """Return sentences on an engine as accurate but for chance and faster, and on one too slow and more accurate."""
    sentences = []
    equal = [record for record in within if record["top1"] >= lower_bound(best["top1"], best["images"])]
    fastest = min(equal, key=lambda record: record["p99_ms"])
    if fastest is not best:
        sentences.append(
            f"{named(fastest)} is faster, and {best['images']:,} images cannot tell its {fastest['top1']:.1f} % from"
            f" {best['top1']:.1f} %: {speed(fastest)}."
        )
    top = max(have, key=lambda record: (record["top1"], -record["p99_ms"]))
    if top["top1"] > best["top1"]:
        sentences.append(
            f"More accurate, but slower: {named(top)}, {top['top1']:.1f} % with a p99 of {top['p99_ms']:.3g} ms."
        )
    return sentences


def speed(record: dict[str, Any]) -> str:
    """Return the engine's times as a clause."""
    alone = f"one connection has a p50 of {record['p50_ms']:.3g} ms and a p99 of {record['p99_ms']:.3g} ms"
    if not record["rate_within"]:
        return f"{alone}; no tried rate of requests kept the p99 within {record['bound']:g} ms"
    return f"{alone}; at {record['rate_within']:.0f} requests a second the p99 was within {record['bound']:g} ms"


def named(record: dict[str, Any]) -> str:
    """Return the name of an engine, with its precision."""
    return f"{record['label']} in {precision_name(record['precision'])}"
