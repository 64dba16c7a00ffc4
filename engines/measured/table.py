"""Table of the recorded fidelity and speed of every model's engines on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from engines import markdown
from engines.measured import records
from engines.measured.records import COMPARED_AT_BATCH, EngineRecord
from engines.measured.select_engine import choose
from engines.published.store import PublishedModel
from engines.runtimes.machine import processor
from engines.runtimes.registry import EngineSpec

BASE = "onnxruntime fp32"  # the baseline that users have without this project
LOWER = ("openvino bf16", "openvino int8")
TIMED = (BASE, "openvino fp32", *LOWER)
HEAD = (
    *("model", "data", "input", "top-1 of torch fp32"),
    *(f"{engine}: {column}" for engine in LOWER for column in ("top-1", "agrees")),
    *(f"{engine}: images/s" for engine in TIMED),
    *("`auto` chooses", "its images/s", f"times {BASE}"),
)
RIGHT = {*range(3, len(HEAD) - 3), len(HEAD) - 2, len(HEAD) - 1}  # columns of numbers, aligned to the right


def table(models: Sequence[PublishedModel]) -> str:
    """Return a Markdown table with a row per model: accuracy and agreement by precision, images a second by engine."""
    title = f"Images a second at batch {COMPARED_AT_BATCH}, as each engine was last timed. {processor()}."
    return f"{title}\n\n{markdown.table(HEAD, map(row, models), RIGHT)}"


def row(model: PublishedModel) -> tuple[str, ...]:
    """Return the cells of one model, with a dash for each missing record."""
    by_engine = {f"{record.runtime} {record.precision}": record for record in records.find_all(model)}
    fidelities = [by_engine[engine].fidelity if engine in by_engine else None for engine in LOWER]
    reference = next((record.fidelity.torch_top1 for record in by_engine.values() if record.fidelity), None)
    chosen = choose(list(by_engine.values()), "auto", "auto")
    name = f"{chosen.runtime} {chosen.precision}"
    best, base = images_per_s(by_engine.get(name), chosen), images_per_s(by_engine.get(BASE))
    return (
        f"`{model.manifest.architecture}`",
        model.manifest.dataset,
        "x".join(map(str, model.manifest.complexity.input_shape)),
        percent(reference),
        *(
            percent(share)
            for fidelity in fidelities
            for share in ((fidelity.top1, fidelity.agreement) if fidelity else (None, None))
        ),
        *(number(images_per_s(by_engine.get(engine))) for engine in TIMED),
        name if chosen.streams == 1 else f"{name}, {chosen.streams} streams",
        number(best),
        f"{best / base:.2f}" if best and base else "-",
    )


def images_per_s(record: EngineRecord | None, spec: EngineSpec | None = None) -> float | None:
    """Return the speed at the streams and threads of `spec`, else at one stream and all threads; None if not timed."""
    mode = (spec.streams, spec.threads) if spec else (1, None)
    speeds = record.decisive if record else ()
    return next((speed.images_per_s for speed in speeds if (speed.streams, speed.threads) == mode), None)


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal, or a dash."""
    return "-" if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """Return a number with at least three digits, or a dash."""
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
