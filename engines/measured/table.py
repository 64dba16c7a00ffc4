"""What was found of every model's engines on this machine, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from engines.measured import records
from engines.measured.records import BATCH, EngineRecord
from engines.measured.select_engine import choose
from engines.published.store import PublishedModel
from engines.runtimes.machine import processor
from engines.runtimes.registry import EngineSpec

BASE = "onnxruntime fp32"  # what one would have without us
LOWER = ("openvino bf16", "openvino int8")
TIMED = (BASE, "openvino fp32", *LOWER)
HEAD = (
    *("model", "data", "input", "top-1 of torch fp32"),
    *(f"{engine}: {what}" for engine in LOWER for what in ("top-1", "agrees")),
    *(f"{engine}: images/s" for engine in TIMED),
    *("`auto` takes", "its images/s", f"times {BASE}"),
)


def table(models: Sequence[PublishedModel]) -> str:
    """A row a model: accuracy and agreement by precision, images a second by engine, and which one `auto` takes."""
    lines = [HEAD, ("---", "---", "---", *["---:"] * (len(HEAD) - 6), "---", "---:", "---:"), *map(row, models)]
    title = f"Images a second at batch {BATCH}, as each engine was last timed. {processor()}."
    return "\n".join([title, "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def row(model: PublishedModel) -> tuple[str, ...]:
    """One model's cells; what was not found is a dash."""
    found = {f"{record.runtime} {record.precision}": record for record in records.find_all(model)}
    fidelities = [found[engine].fidelity if engine in found else None for engine in LOWER]
    reference = next((record.fidelity.torch_top1 for record in found.values() if record.fidelity), None)
    chosen = choose(list(found.values()), "auto", "auto")
    name = f"{chosen.runtime} {chosen.precision}"
    best, base = images_per_s(found.get(name), chosen), images_per_s(found.get(BASE))
    return (
        f"`{model.manifest.architecture}`",
        model.manifest.dataset,
        "x".join(map(str, model.manifest.complexity.input_shape)),
        percent(reference),
        *(
            percent(share)
            for entry in fidelities
            for share in ((entry.top1, entry.agreement) if entry else (None, None))
        ),
        *(number(images_per_s(found.get(engine))) for engine in TIMED),
        name if chosen.streams == 1 else f"{name}, {chosen.streams} streams",
        number(best),
        f"{best / base:.2f}" if best and base else "-",
    )


def images_per_s(record: EngineRecord | None, spec: EngineSpec | None = None) -> float | None:
    """Of one engine, if it was timed: with these streams and threads, or with one stream and all threads."""
    wanted = (spec.streams, spec.threads) if spec else (1, None)
    speeds = record.decisive if record else ()
    return next((speed.images_per_s for speed in speeds if (speed.streams, speed.threads) == wanted), None)


def percent(share: float | None) -> str:
    """With one decimal."""
    return "-" if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """Three digits or more."""
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
