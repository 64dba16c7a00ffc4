"""Published models: `list` them; `build`, `inspect`, `verify`, `bench` their engines; tell what was found of them."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from importlib.util import find_spec
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter

from engines.measured import bench, peak, plans, records
from engines.measured.records import Speed
from engines.measured.table import table
from engines.measured.verify import verify, verify_scaled
from engines.published import store
from engines.published.manifest import ManifestError
from engines.published.store import PublishedModel
from engines.runtimes.engine import MAX_BATCH, EngineError
from engines.runtimes.registry import EngineSpec, Measured, preferred
from engines.runtimes.tensorrt.library import PRECISIONS, TensorRT


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser("python -m engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="tags of the published models")
    verify_parser = commands.add_parser("verify", help="compare engines with torch, and keep what was found")
    bench_parser = commands.add_parser("bench", help="latency, images a second and memory of engines, in turn")
    table_parser = commands.add_parser("table", help="what verify and bench found, as Markdown")
    build_parser = commands.add_parser("build", help="make TensorRT plans, for this machine's GPU or others")
    inspect_parser = commands.add_parser("inspect", help="what became of a network's layers in a TensorRT plan")
    for subparser in (verify_parser, bench_parser, table_parser, build_parser, inspect_parser):
        subparser.add_argument("names", nargs="*", metavar="NAME", help="tag or architecture (default: all)")
    for subparser in (verify_parser, bench_parser, build_parser, inspect_parser):
        subparser.add_argument("--precisions", default="all", help="by commas (default: all there are)")
    for subparser in (verify_parser, bench_parser):
        subparser.add_argument("--runtimes", type=runtimes, help="by commas (default: a CPU's, and the first on a GPU)")
    for subparser in (build_parser, inspect_parser):
        subparser.add_argument(
            "--runtime",
            choices=get_args(TensorRT),
            help="default: tensorrt if it is here, and no --capability",
        )
        subparser.add_argument("--capability", help="of GPUs, such as 8.9, by commas (default: this machine's GPU)")
        subparser.add_argument("--max-batch", type=positive, default=MAX_BATCH, help="images (default: %(default)s)")
    verify_parser.add_argument("--jpegs", type=jpegs, help="folder: also decode its .jpg scaled down, and compare")
    bench_parser.add_argument("--batches", type=positives, default="1,8,16,32", help="default: %(default)s")
    bench_parser.add_argument("--streams", type=positives, default="1", help="of OpenVINO (default: %(default)s)")
    bench_parser.add_argument("--threads", type=positives, help="of OpenVINO (default: as it chooses)")
    bench_parser.add_argument("--seconds", type=float, default=5, help="for each row (default: %(default)s)")
    bench_parser.add_argument("--json", action="store_true", help="rows as JSON")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("bentoml.convserve").setLevel(logging.INFO)
    models = store.published()
    if options.command == "list":
        for model in models:
            print(model.manifest.tag)
        return
    for name in options.names:
        if not any(name in names_of(model) for model in models):
            tags = ", ".join(model.manifest.tag for model in models)
            parser.error(f"{name} is not published; there are {tags or 'none'}")
    wanted = [model for model in models if not options.names or names_of(model) & set(options.names)]
    try:
        sys.exit(COMMANDS[options.command](wanted, options))
    except OSError as error:
        sys.exit(f"error: {error}")


def names_of(model: PublishedModel) -> set[str]:
    """What a model is called here."""
    return {model.manifest.tag, model.manifest.architecture}


def jpegs(folder: str) -> list[Path]:
    """Its JPEGs; ValueError, which the parser tells, if there are none."""
    if not (paths := sorted(Path(folder).rglob("*.jpg"))):
        raise ValueError(folder)
    return paths


def positive(text: str) -> int:
    """A positive number; ValueError, which argparse reports, if it is not."""
    (number,) = positives(text)
    return number


def positives(text: str) -> list[int]:
    """Positive numbers separated by commas; ValueError, which argparse reports, if they are not."""
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def runtimes(text: str) -> list[Measured]:
    """Runtimes separated by commas; ValueError, which argparse reports, if there is no such, or it computes nothing."""
    return TypeAdapter(list[Measured]).validate_python(text.split(","))


def runtimes_here(options: argparse.Namespace) -> list[Measured]:
    """Those that were asked for, else what a CPU has, and before them what runs on this machine's GPU."""
    return options.runtimes or list(dict.fromkeys([preferred("fp32"), "openvino", "onnxruntime"]))


def precisions(text: str, model: PublishedModel) -> tuple[str, ...]:
    """Precisions separated by commas, or all of the model's."""
    return model.manifest.precisions if text == "all" else tuple(text.split(","))


def lacks(model: PublishedModel, options: argparse.Namespace, opened: set[str]) -> bool:
    """Whether none of a model's precisions could be opened by any runtime, or not each that was asked for."""
    return not opened or (options.precisions != "all" and not opened.issuperset(precisions(options.precisions, model)))


def verify_command(models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Print a line an engine, and keep what was found; 1 if a model lacks what was asked for."""
    failed = False
    width = max((len(model.manifest.tag) for model in models), default=0)
    for model in models:
        opened = set()
        for runtime, precision in product(runtimes_here(options), precisions(options.precisions, model)):
            name = f"{model.manifest.tag:{width}}  {runtime} {precision:4}"
            try:
                fidelity = verify(model, EngineSpec(runtime, precision))
            except (EngineError, ManifestError) as error:
                print(f"{name}  cannot be opened: {error}")
                continue
            opened.add(precision)
            of = "" if fidelity.top1 is None else f"top-1 {fidelity.top1:7.2%} (torch {fidelity.torch_top1:7.2%}), "
            print(
                f"{name}  {of}agrees on {fidelity.agreement:7.2%} of {fidelity.images}, logits within "
                f"{fidelity.logit_error:.1e}: {fidelity.problem or 'faithful'}",
                flush=True,
            )
            records.keep(model, runtime, precision, fidelity=fidelity)
            if options.jpegs:
                scaled = verify_scaled(model, EngineSpec(runtime, precision), options.jpegs)
                print(
                    f"{name}  JPEGs scaled down: same answers on {scaled.agreement:7.2%} of {scaled.images}, logits "
                    f"within {scaled.logit_error:.1e}: {'too few' if scaled.problem else 'faithful'}",
                    flush=True,
                )
                records.keep(model, runtime, precision, scaled_jpeg=scaled)
        failed |= lacks(model, options, opened)
    return int(failed)


def bench_command(models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Print a table a model, or JSON, a row an engine and batch size, and keep it; 1 if a model lacks a precision."""
    failed = False
    rows: list[Speed] = []
    highest = peak.measure()
    try:
        for model in models:
            speeds = bench_model(model, options, highest)
            failed |= lacks(model, options, {speed.precision for speed in speeds})
            rows += speeds
            if speeds and not options.json:
                print_table(model.manifest.tag, speeds)
            for engine, of_engine in groupby(speeds, attrgetter("runtime", "precision")):
                records.keep(model, *engine, speeds=list(of_engine))
    finally:  # what was measured is told, whatever became of its record
        if options.json:
            print(json.dumps([speed.model_dump() for speed in rows], indent=1))
    return int(failed)


def bench_model(model: PublishedModel, options: argparse.Namespace, highest: peak.Peak) -> list[Speed]:
    """The rows of one model, an engine's one after another; none, and an error on stderr, if it cannot be opened."""
    modes = list(product(options.streams, options.threads or [None]))
    specs = [
        EngineSpec(runtime, precision, *mode)
        for runtime, precision in product(runtimes_here(options), precisions(options.precisions, model))
        for mode in (modes if runtime == "openvino" else [(1, None)])
    ]
    try:
        return bench.bench(model, specs, options.batches, options.seconds, highest)
    except (EngineError, ManifestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return []


def print_table(title: str, speeds: list[Speed]) -> None:
    """Shares are of this machine's peaks: of multiply-accumulates a second, and of memory's bandwidth."""
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


def build_command(models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Print a table of the plans that are built; 1 if one cannot be."""
    asked = PRECISIONS if options.precisions == "all" else options.precisions.split(",")
    failed = False
    print(f"{target_of(options)}\n\n{plans.head(asked)}", flush=True)
    for model in models:
        figures: dict[str, plans.Figures] = {}
        for precision in asked:
            if precision in model.manifest.precisions or options.precisions != "all":
                try:
                    figures[precision] = plans.build_model(model, precision, target_of(options)).figures
                except (EngineError, ManifestError) as error:
                    failed = True
                    print(f"error: {model.manifest.tag} in {precision}: {error}", file=sys.stderr)
        entry = model.manifest
        print(plans.line(entry.architecture, entry.complexity.input_shape, list(map(figures.get, asked))), flush=True)
    return int(failed)


def inspect_command(models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Print the layers of each plan; 1 if one cannot be built, or is not what its file asks for."""
    failed = False
    for model in models:
        for precision in precisions(options.precisions, model):
            if precision in PRECISIONS or options.precisions != "all":
                try:
                    for line in plans.inspect(model, precision, target_of(options)):
                        print(line)
                except (EngineError, ManifestError) as error:
                    failed = True
                    print(f"error: {model.manifest.tag} in {precision}: {error}", file=sys.stderr)
    return int(failed)


def target_of(options: argparse.Namespace) -> plans.Target:
    """What plans are to be built for."""
    capabilities = options.capability.split(",") if options.capability else []
    usual: TensorRT = "tensorrt" if find_spec("tensorrt") and not capabilities else "tensorrt_rtx"
    return plans.Target(options.runtime or usual, 1 << (options.max_batch - 1).bit_length(), capabilities)


def table_command(models: list[PublishedModel], _: argparse.Namespace) -> int:
    """Print the table."""
    print(table(models))
    return 0


COMMANDS = {
    "build": build_command,
    "inspect": inspect_command,
    "verify": verify_command,
    "bench": bench_command,
    "table": table_command,
}

if __name__ == "__main__":
    main()
