"""Command `python -m engines`: list, push and pull published models; build, inspect, verify, time and use engines."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from engines import transfer
from engines.measured import commands, jpegs, plans
from engines.measured.table import table
from engines.published import store
from engines.published.manifest import GRAPHS, ManifestError
from engines.published.store import PublishedModel
from engines.published.urls import BucketError
from engines.runtimes.engine import GPU_MAX_BATCH, EngineError
from engines.runtimes.registry import NO_PRECISION, RUNTIMES, Measured, preferred
from engines.runtimes.tensorrt.library import TensorRT
from engines.scoring.command import score
from engines.transfer import names_of
from models.closed_pipe import may_be_closed


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser("python -m engines", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    subparsers.add_parser("list", help="print the tags of the published models")
    verify_parser = subparsers.add_parser("verify", help="compare engines with torch and record the result")
    bench_parser = subparsers.add_parser("bench", help="measure latency, throughput and memory of engines")
    table_parser = subparsers.add_parser("table", help="print the records of verify and bench as a Markdown table")
    build_parser = subparsers.add_parser("build", help="build TensorRT plans for this machine's GPU or for others")
    inspect_parser = subparsers.add_parser("inspect", help="print the layers of TensorRT plans and their precisions")
    push_parser = subparsers.add_parser("push", help="upload published models to a bucket")
    pull_parser = subparsers.add_parser("pull", help="download models from a bucket into the model store")
    add_score(subparsers.add_parser("score", help="answer all pictures of a folder, a bucket or a list, as Parquet"))
    named = (verify_parser, bench_parser, table_parser, build_parser, inspect_parser, push_parser, pull_parser)
    for subparser in named:
        subparser.add_argument("names", nargs="*", metavar="NAME", help="tag, architecture[@dataset] (default: all)")
    for subparser in (push_parser, pull_parser):
        subparser.add_argument(
            "--models",
            metavar="URL",
            default=os.environ.get("CONVSERVE_MODELS"),
            help="bucket, such as s3://bucket/folder (default: $CONVSERVE_MODELS)",
        )
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
    return parser


def main() -> None:
    """Parse the command line and run one command."""
    parser = make_parser()
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
    if not models and options.command not in {"table", "pull"}:
        sys.exit("error: no model is published: python -m training publish CHECKPOINT")
    names = options.names if options.command != "score" else [options.model]
    for name in names if options.command != "pull" else ():
        if not any(name in names_of(model.manifest) for model in models):
            tags = ", ".join(model.manifest.tag for model in models)
            parser.error(f"{name} is not published; there are {tags or 'none'}")
    selected = [model for model in models if not names or names_of(model.manifest) & set(names)]
    try:
        sys.exit(run(options.command, selected, options))
    except BrokenPipeError:
        raise
    except (OSError, BucketError, ManifestError) as error:
        sys.exit(f"error: {error}")


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score` to its parser."""
    parser.add_argument("input", metavar="INPUT", help="folder, bucket such as s3://bucket/photos, or file of paths")
    parser.add_argument("--model", required=True, metavar="NAME", help="tag, architecture[@dataset]")
    parser.add_argument(
        "--out",
        default="answers.parquet",
        metavar="FOLDER",
        help="folder or bucket of Parquet files, which another call of the command completes (default: %(default)s)",
    )
    parser.add_argument("--top-k", type=positive, default=5, help="classes of an answer (default: %(default)s)")
    parser.add_argument("--precision", choices=["auto", *GRAPHS], default="auto", help="default: %(default)s")
    parser.add_argument("--embeddings", action="store_true", help="add the input of the last linear layer")
    parser.add_argument("--ray", metavar="ADDRESS", help="score on a Ray cluster; `local` starts one on this machine")


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
    if command in {"table", "push", "pull", "score"}:
        return run_other(command, models, options)
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


def run_other(command: str, models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Call the function of a command that measures no engine, and return the exit status."""
    if command == "push":
        return transfer.push(models, options.models)
    if command == "pull":
        return transfer.pull(options.names, options.models)
    if command == "score":
        return score_one(models, options)
    print(table(models))
    return 0


def score_one(models: list[PublishedModel], options: argparse.Namespace) -> int:
    """Score with the only model that was selected. Raises SystemExit with one line for what goes wrong."""
    if len(models) > 1:
        tags = ", ".join(model.manifest.tag for model in models)
        by_data = list(dict.fromkeys(f"{options.model}@{model.manifest.dataset}" for model in models))
        names = f"its data set, {' or '.join(by_data)}, or by " if len(by_data) > 1 else ""
        sys.exit(f"error: {options.model} is the name of several models, {tags}: name one by {names}its tag")
    try:
        return score(
            options.input,
            models[0],
            options.out,
            top_k=options.top_k,
            precision=options.precision,
            embeddings=options.embeddings,
            ray=options.ray,
        )
    except (EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    except (RuntimeError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"error: {error}"
        sys.exit(f"{reason}; the same command goes on where this one stopped")


if __name__ == "__main__":
    with may_be_closed():
        main()
