"""Command `python -m engines`: list the published models; build, inspect, verify and benchmark their engines."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from engines.measured import commands, jpegs, plans
from engines.measured.table import table
from engines.published import store
from engines.published.store import PublishedModel
from engines.runtimes.engine import GPU_MAX_BATCH
from engines.runtimes.registry import NO_PRECISION, RUNTIMES, Measured, preferred
from engines.runtimes.tensorrt.library import TensorRT


def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser("python -m engines", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    subparsers.add_parser("list", help="print the tags of the published models")
    verify_parser = subparsers.add_parser("verify", help="compare engines with torch and record the result")
    bench_parser = subparsers.add_parser("bench", help="measure latency, throughput and memory of engines")
    table_parser = subparsers.add_parser("table", help="print the records of verify and bench as a Markdown table")
    build_parser = subparsers.add_parser("build", help="build TensorRT plans for this machine's GPU or for others")
    inspect_parser = subparsers.add_parser("inspect", help="print the layers of TensorRT plans and their precisions")
    for subparser in (verify_parser, bench_parser, table_parser, build_parser, inspect_parser):
        subparser.add_argument("names", nargs="*", metavar="NAME", help="tag, architecture[@dataset] (default: all)")
    for subparser in (verify_parser, bench_parser, build_parser, inspect_parser):
        subparser.add_argument("--precisions", default="all", help="separated by commas (default: all published)")
    for subparser in (verify_parser, bench_parser):
        subparser.add_argument(
            "--runtimes",
            type=runtimes,
            help="separated by commas (default: openvino, onnxruntime and, with a GPU, its preferred runtime)",
        )
    for subparser in (build_parser, inspect_parser):
        subparser.add_argument(
            "--runtime",
            choices=get_args(TensorRT),
            help="default: tensorrt if installed and without --capability, else tensorrt_rtx",
        )
        subparser.add_argument(
            "--capability",
            help="compute capabilities such as 8.9, separated by commas (default: this machine's GPU)",
        )
        subparser.add_argument(
            "--max-batch", type=positive, default=GPU_MAX_BATCH, help="in images (default: %(default)s)"
        )
    verify_parser.add_argument(
        "--jpegs",
        type=jpegs_in,
        metavar="FOLDER",
        help="also compare the answers on the folder's JPEGs, 8 or more, decoded at reduced size"
        " (CONVSERVE_SCALED_JPEG), and the GPU's pixels of them (CONVSERVE_GPU_JPEG), with full decoding by Pillow",
    )
    bench_parser.add_argument("--batches", type=positives, default="1,8,16,32", help="in images (default: %(default)s)")
    bench_parser.add_argument("--streams", type=positives, default="1", help="OpenVINO streams (default: %(default)s)")
    bench_parser.add_argument("--threads", type=positives, help="OpenVINO threads (default: chosen by OpenVINO)")
    bench_parser.add_argument("--seconds", type=float, default=5, help="seconds per row (default: %(default)s)")
    bench_parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("bentoml.convserve").setLevel(logging.INFO)
    try:
        models = store.published()
    except OSError as error:  # BentoML makes folders in its home
        sys.exit(f"error: BENTOML_HOME cannot be used: {error}")
    if options.command == "list":
        for model in models:
            print(model.manifest.tag)
        return
    if not models and options.command != "table":
        sys.exit("error: no model is published: python -m training publish CHECKPOINT")
    for name in options.names:
        if not any(name in names_of(model) for model in models):
            tags = ", ".join(model.manifest.tag for model in models)
            parser.error(f"{name} is not published; there are {tags or 'none'}")
    selected = [model for model in models if not options.names or names_of(model) & set(options.names)]
    try:
        sys.exit(run(options.command, selected, options))
    except OSError as error:
        sys.exit(f"error: {error}")


def names_of(model: PublishedModel) -> set[str]:
    """Return the names that select a model on the command line: tag, architecture, and `architecture@dataset`."""
    manifest = model.manifest
    return {manifest.tag, manifest.architecture, f"{manifest.architecture}@{manifest.dataset}"}


def jpegs_in(folder: str) -> list[Path]:
    """Return the JPEGs in a folder. Raises ArgumentTypeError with a message if there are none."""
    try:
        return jpegs.find(Path(folder))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Return a positive number. Raises ValueError, which argparse reports, for other text."""
    (number,) = positives(text)
    return number


def positives(text: str) -> list[int]:
    """Return positive numbers separated by commas. Raises ValueError, which argparse reports, for other text."""
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def runtimes(text: str) -> list[Measured]:
    """Return runtimes separated by commas. Raises ArgumentTypeError with the known ones for an unknown one."""
    try:
        return TypeAdapter(list[Measured]).validate_python(text.split(","))
    except ValidationError as error:
        known = [name for name, info in RUNTIMES.items() if info.precisions != NO_PRECISION]
        unknown = error.errors()[0]["input"]
        raise argparse.ArgumentTypeError(f"{unknown!r} is none of {', '.join(known)}") from None


def runtimes_here() -> list[Measured]:
    """Return the default runtimes: the preferred runtime of this machine, then the CPU runtimes."""
    return list(dict.fromkeys([preferred("fp32"), "openvino", "onnxruntime"]))


def target_of(runtime: TensorRT | None, capability: str | None, max_batch: int) -> plans.Target:
    """Return the target of TensorRT plans; `max_batch` is rounded up to a power of two."""
    capabilities = capability.split(",") if capability else []
    default: TensorRT = "tensorrt" if find_spec("tensorrt") and not capabilities else "tensorrt_rtx"
    return plans.Target(runtime or default, 1 << (max_batch - 1).bit_length(), capabilities)


def run(command: str, models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Call the function of a command with the values of its options, and return the exit status."""
    if command == "table":
        print(table(models))
        return 0
    if command == "verify":
        return commands.verify_models(
            models, options.runtimes or runtimes_here(), options.precisions, options.jpegs or []
        )
    if command == "bench":
        settings = commands.BenchSettings(options.batches, options.streams, options.threads or [None], options.seconds)
        return commands.bench_models(
            models, options.runtimes or runtimes_here(), options.precisions, settings, options.json
        )
    target = target_of(options.runtime, options.capability, options.max_batch)
    if command == "build":
        return commands.build_models(models, options.precisions, target)
    return commands.inspect_models(models, options.precisions, target)


if __name__ == "__main__":
    main()
