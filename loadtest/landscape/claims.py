"""Lecture's statements on its slides "Comparing complexity", each checked with the figures of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.landscape.rows import LandscapeRow

SLIDE = {"alexnet", "vgg", "nin", "googlenet", "inception", "resnet"}  # families that the slides' picture shows
Measure = Callable[[LandscapeRow], float]
Rows = Sequence[LandscapeRow]


@dataclass(frozen=True)
class Claim:
    """Statement of a slide, its verdict, and the figures for the verdict."""

    statement: str
    verdict: str
    evidence: str


def claims(rows: Rows) -> Iterator[Claim]:
    """Yield each statement that can be checked with these rows, which are of one precision.

    "Families of the slides" below are SLIDE's. A statement on networks that are not measured is left out.
    """
    checks = {"vgg": vgg, "googlenet": googlenet, "alexnet": alexnet, "resnet": resnet}
    known = [row for row in rows if row.rounds and row.memory_mb is not None and row.published_top1 is not None]
    for family, check in checks.items():
        if any(row.family == family for row in known) and any(row.family != family for row in known):
            yield check(known)


def vgg(rows: Rows) -> Claim:
    """Check "highest memory, most operations"."""
    on_slide = slide(rows)
    memory, operations = (max(on_slide, key=measure) for measure in (memory_mb, macs))
    every_memory, every_operations = (max(rows, key=measure) for measure in (memory_mb, macs))
    return Claim(
        "VGG: highest memory, most operations",
        verdict(memory.family == "vgg", operations.family == "vgg"),
        f"Of the slides' families, `{memory.name}` adds most memory to the process, {memory.memory_mb:,.0f} MB, and"
        f" `{operations.name}` has most operations, {gmacs(operations)}. Of all, `{every_memory.name}`"
        f" ({every_memory.memory_mb:,.0f} MB) and `{every_operations.name}` ({gmacs(every_operations)}).",
    )


def googlenet(rows: Rows) -> Claim:
    """Check "most efficient": nothing as accurate for fewer operations or parameters, or in less time."""
    best = max((row for row in slide(rows) if row.family == "googlenet"), key=accuracy)
    rivals = [row for row in slide(rows) if accuracy(row) >= accuracy(best)]
    fewest, smallest, fastest = (min(rivals, key=measure) for measure in (macs, params, ms))
    faster = [row for row in rows if accuracy(row) >= accuracy(best) and ms(row) < ms(best)]
    return Claim(
        "GoogLeNet: most efficient",
        verdict(*(row.family == "googlenet" for row in (fewest, smallest, fastest))),
        f"`{best.name}` has {percent(best)} for {gmacs(best)}, {params(best) / 1e6:.1f} million parameters and"
        f" {ms(best):.1f} ms. Of the slides' families at least as accurate, `{fewest.name}` has the fewest operations,"
        f" `{smallest.name}` the fewest parameters, and `{fastest.name}` is the fastest, {ms(fastest):.1f} ms. Of all"
        f" networks, as accurate and faster: {count(faster)}.",
    )


def alexnet(rows: Rows) -> Claim:
    """Check "smaller compute, still memory heavy, lower accuracy"."""
    net = min((row for row in rows if row.family == "alexnet"), key=lambda row: (row.year, row.name))
    fewer, less, worse = (
        [row for row in rows if row.family != "alexnet" and measure(row) < measure(net)]
        for measure in (macs, memory_mb, accuracy)
    )
    usual = median(memory_mb(row) for row in rows)
    small, heavy, low = not fewer, memory_mb(net) > usual, not worse
    return Claim(
        "AlexNet: smaller compute, still memory heavy, lower accuracy",
        verdict(small, heavy, low),
        f"{gmacs(net)}. Of the {sum(row.family != net.family for row in rows)} networks of other families"
        f" {count(fewer)} need fewer operations, {count(less)} need less memory, and {count(worse)} are less accurate"
        f" than {percent(net)}."
        f" The engine adds {memory_mb(net):,.0f} MB, with {4 * net.params / 1e6:,.0f} MB of weights; the median"
        f" network's {usual:,.0f} MB. The time is not small in proportion: {ms(net):.1f} ms,"
        f" {1e9 * ms(net) / net.macs:.1f} for each billion MACs, the median"
        f" {median(1e9 * ms(row) / row.macs for row in rows):.1f}.",
    )


def resnet(rows: Rows) -> Claim:
    """Check "moderate efficiency depending on model, highest accuracy"."""
    nets = sorted((row for row in rows if row.family == "resnet"), key=macs)
    first, last = nets[0], nets[-1]
    best, on_slide, of_all = max(nets, key=accuracy), max(slide(rows), key=accuracy), max(rows, key=accuracy)
    fewer, more = (
        [row for row in rows if sign * macs(row) < sign * macs(end)] for sign, end in ((1, first), (-1, last))
    )
    return Claim(
        "ResNet: moderate efficiency depending on model, highest accuracy",
        verdict(bool(fewer) and bool(more), on_slide.family == "resnet"),
        f"From `{first.name}` ({gmacs(first)}, {ms(first):.1f} ms, {percent(first)}) to `{last.name}` ({gmacs(last)},"
        f" {ms(last):.1f} ms, {percent(last)}); {count(fewer)} of {len(rows)} networks need fewer operations than the"
        f" first, {count(more)} more than the last. The most accurate ResNet is `{best.name}` with {percent(best)}; of"
        f" the slides' families `{on_slide.name}` with {percent(on_slide)}, of all `{of_all.name}` with"
        f" {percent(of_all)}.",
    )


def slide(rows: Rows) -> Rows:
    """Return the rows of the families that the slides' picture shows."""
    return [row for row in rows if row.family in SLIDE]


def verdict(*true: bool) -> str:
    """Return what is to be said of a statement with these parts."""
    return "holds" if all(true) else "holds in part" if any(true) else "does not hold"


def macs(row: LandscapeRow) -> float:
    """Return the multiply-accumulates of an image."""
    return row.macs


def params(row: LandscapeRow) -> float:
    """Return the number of parameters."""
    return row.params


def memory_mb(row: LandscapeRow) -> float:
    """Return the memory that the engine adds to a process, in MB."""
    return row.memory_mb or 0.0


def accuracy(row: LandscapeRow) -> float:
    """Return the published top-1, a fraction."""
    return row.published_top1 or 0.0


def ms(row: LandscapeRow) -> float:
    """Return the median time of one request, in milliseconds."""
    return median(each.p50_ms for each in row.rounds)


def gmacs(row: LandscapeRow) -> str:
    """Return the multiply-accumulates as text."""
    return f"{row.macs / 1e9:.1f} GMACs"


def percent(row: LandscapeRow) -> str:
    """Return the published top-1 as text."""
    return f"{100 * accuracy(row):.1f} %"


def count(rows: Rows) -> str:
    """Return the number of rows as text, with the names of up to four."""
    names = f" ({', '.join(f'`{row.name}`' for row in rows)})" if 0 < len(rows) <= 4 else ""
    return f"{len(rows) or 'none'}{names}"
