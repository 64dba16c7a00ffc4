"""Commands on the engines of published models: verify, bench, build and inspect, with their printed output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from engines.measured import bench, gpu_jpegs, peak, plans, records
from engines.measured.jpegs import readable
from engines.measured.records import Speed
from engines.measured.verify import verify, verify_scaled
from engines.published.manifest import ManifestError
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.gpu_jpeg.jpegs import can_preprocess
from engines.runtimes.machine import accelerator
from engines.runtimes.registry import EngineSpec, Measured, open_engine
from engines.runtimes.tensorrt.library import PRECISIONS


class BenchSettings(NamedTuple):
    """Settings of a benchmark: batch sizes, OpenVINO's streams and threads, and seconds for each row."""

    batches: Sequence[int]
    streams: Sequence[int]
    threads: Sequence[int | None]  # None: OpenVINO chooses
    seconds: float


def precisions_of(text: str, model: PublishedModel) -> tuple[str, ...]:
    """Return the precisions in `text`, separated by commas, or all precisions of the model for "all"."""
    return model.manifest.precisions if text == "all" else tuple(text.split(","))


def lacks(model: PublishedModel, precisions: str, opened: set[str]) -> bool:
    """Return True if no precision of a model was opened by any runtime, or not every requested one."""
    return not opened or (precisions != "all" and not opened.issuperset(precisions_of(precisions, model)))


def verify_models(
    models: Sequence[PublishedModel], runtimes: Sequence[Measured], precisions: str, jpegs: Sequence[Path]
) -> int:
    """Print and record the fidelity of each engine.

    Return 1 if a requested precision of a model cannot run, or if there are JPEGs and none can be decoded.
    """
    found, jpegs = len(jpegs), readable(jpegs)
    skipped = found - len(jpegs)
    failed = found > 0 and not jpegs
    if jpegs:
        verify_gpu_jpegs(models, jpegs)
    width = max((len(model.manifest.tag) for model in models), default=0)
    for model in models:
        opened: set[str] = set()
        for runtime, precision in product(runtimes, precisions_of(precisions, model)):
            name = f"{model.manifest.tag:{width}}  {runtime} {precision:4}"
            try:
                engine = open_engine(model, EngineSpec(runtime, precision))
                fidelity = verify(model, engine)
                scaled = verify_scaled(model, engine, jpegs) if jpegs else None
            except (EngineError, ManifestError, RuntimeError) as error:
                print(f"{name}  cannot run: {error}")
                continue
            opened.add(precision)
            top1 = "" if fidelity.top1 is None else f"top-1 {fidelity.top1:7.2%} (torch {fidelity.torch_top1:7.2%}), "
            print(
                f"{name}  {top1}agrees on {fidelity.agreement:7.2%} of {fidelity.images}, logits within "
                f"{fidelity.logit_error:.1e}: {fidelity.problem or 'faithful'}",
                flush=True,
            )
            records.keep(model, runtime, precision, fidelity=fidelity)
            if scaled:
                print(
                    f"{name}  JPEGs scaled down: same answers on {scaled.agreement:7.2%} of {scaled.images}, logits "
                    f"within {scaled.logit_error:.1e}: {scaled.problem or 'faithful'}",
                    flush=True,
                )
                records.keep(model, runtime, precision, scaled_jpeg=scaled)
        failed |= lacks(model, precisions, opened)
    if skipped:
        print(f"{skipped} of {found} JPEGs were skipped{'' if jpegs else ': none was left to compare'}")
    return int(failed)


def verify_gpu_jpegs(models: Sequence[PublishedModel], jpegs: Sequence[Path]) -> None:
    """Print and record how this machine's GPU decodes JPEGs beside Pillow."""
    if accelerator() is None:
        print("GPU decoding: not compared, there is no NVIDIA GPU")
        return
    try:
        decode, kind = gpu_jpegs.gpu_decoder()
        decoder = gpu_jpegs.key()
    except EngineError as error:
        print(f"JPEGs on the GPU  cannot run: {error}")
        return
    if decoder is None:
        print("JPEGs on the GPU  cannot be recorded: a library was installed otherwise: pip install '.[gpu-jpeg]'")
        return
    preprocesses = {model.manifest.preprocess for model in models if can_preprocess(model.manifest.preprocess)}
    samplings = gpu_jpegs.compare(decode, (path.read_bytes() for path in jpegs), list(preprocesses))
    gpu_jpegs.keep(decoder, kind, samplings)
    print(f"JPEGs on {decoder.gpu} by its {kind} decoder, beside Pillow\n{gpu_jpegs.table(samplings)}", flush=True)


def bench_models(
    models: Sequence[PublishedModel],
    runtimes: Sequence[Measured],
    precisions: str,
    settings: BenchSettings,
    as_json: bool,
) -> int:
    """Print and record the speed of each engine. Return 1 if a requested precision of a model cannot be opened."""
    failed = False
    rows: list[Speed] = []
    peaks = peak.measure(runtimes)
    try:
        for model in models:
            speeds = bench_model(model, specs_of(model, runtimes, precisions, settings), settings, peaks)
            failed |= lacks(model, precisions, {speed.precision for speed in speeds})
            rows += speeds
            if speeds and not as_json:
                print_table(model.manifest.tag, speeds)
            for engine, of_engine in groupby(speeds, attrgetter("runtime", "precision")):
                records.keep(model, *engine, speeds=list(of_engine))
    finally:  # print the rows even if a record cannot be written
        if as_json:
            print(json.dumps([speed.model_dump() for speed in rows], indent=1))
    return int(failed)


def specs_of(
    model: PublishedModel, runtimes: Sequence[Measured], precisions: str, settings: BenchSettings
) -> list[EngineSpec]:
    """Return the engines of a model to time. Only OpenVINO has several streams and threads."""
    modes = list(product(settings.streams, settings.threads))
    return [
        EngineSpec(runtime, precision, *mode)
        for runtime, precision in product(runtimes, precisions_of(precisions, model))
        for mode in (modes if runtime == "openvino" else [(1, None)])
    ]


def bench_model(
    model: PublishedModel, specs: Sequence[EngineSpec], settings: BenchSettings, peaks: Mapping[str | None, peak.Peak]
) -> list[Speed]:
    """Return the rows of one model, engine by engine. If none can be opened, print the error and return no row."""
    try:
        return bench.bench(model, specs, settings.batches, settings.seconds, peaks)
    except (EngineError, ManifestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return []


def print_table(title: str, speeds: Sequence[Speed]) -> None:
    """Print the rows of one model; the shares are fractions of the device's peak arithmetic and peak bandwidth."""
    print(f"\n{title}")
    print(
        "runtime       precision streams threads batch images/s   p50 ms   p99 ms  runs  GMAC/s  share  memory's     MB"
        "  bound"
    )
    for speed in speeds:
        compute, bandwidth = (
            "-" if share is None else f"{share:.0%}" for share in (speed.of_compute, speed.of_bandwidth)
        )
        memory = "-" if speed.memory_mb is None else f"{speed.memory_mb:.0f}"
        print(
            f"{speed.runtime:13} {speed.precision:9} {speed.streams:7} {speed.threads or 'auto':>7} {speed.batch:5}"
            f" {speed.images_per_s:8.1f} {speed.p50_ms:8.2f} {speed.p99_ms:8.2f} {speed.runs:5}"
            f" {speed.gmacs_per_s:7.1f} {compute:>6} {bandwidth:>9} {memory:>6}  {speed.bound or '-'}",
            flush=True,
        )


def build_models(models: Sequence[PublishedModel], precisions: str, target: plans.Target) -> int:
    """Build TensorRT plans and print a table of them. Return 1 if a plan cannot be built."""
    requested = PRECISIONS if precisions == "all" else precisions.split(",")
    failed = False
    print(f"{target}\n\n{plans.head(requested)}", flush=True)
    for model in models:
        figures: dict[str, plans.Figures] = {}
        for precision in requested:
            if precision in model.manifest.precisions or precisions != "all":
                try:
                    figures[precision] = plans.build_model(model, precision, target).figures
                except (EngineError, ManifestError) as error:
                    failed = True
                    print(f"error: {model.manifest.tag} in {precision}: {error}", file=sys.stderr)
        manifest = model.manifest
        print(
            plans.line(manifest.architecture, manifest.complexity.input_shape, list(map(figures.get, requested))),
            flush=True,
        )
    return int(failed)


def inspect_models(models: Sequence[PublishedModel], precisions: str, target: plans.Target) -> int:
    """Print the layers of each plan. Return 1 if a plan cannot be built, or differs from its file in precision."""
    failed = False
    for model in models:
        for precision in precisions_of(precisions, model):
            if precision in PRECISIONS or precisions != "all":
                try:
                    for line in plans.inspect(model, precision, target):
                        print(line)
                except (EngineError, ManifestError) as error:
                    failed = True
                    print(f"error: {model.manifest.tag} in {precision}: {error}", file=sys.stderr)
    return int(failed)
