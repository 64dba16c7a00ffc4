"""Published models: `list` them, `verify` engines against torch, `bench` one without HTTP."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product

from pydantic import TypeAdapter

from engines import bench, records, store
from engines.engine import EngineError
from engines.manifest import ManifestError
from engines.runtime import Measured
from engines.store import PublishedModel
from engines.verify import verify


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser("python -m engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="tags of the published models")
    verify_parser = commands.add_parser("verify", help="compare engines with torch, and keep what was found")
    verify_parser.add_argument("tags", nargs="*", metavar="TAG", help="default: every published model")
    verify_parser.add_argument("--runtimes", type=runtimes, default="openvino", help="by commas (default: %(default)s)")
    verify_parser.add_argument("--precisions", help="by commas (default: every one that the model has)")
    bench_parser = commands.add_parser("bench", help="latency and images a second of one model's engine")
    bench_parser.add_argument("tag", help="as `python -m engines list` shows it")
    bench_parser.add_argument(
        "--runtimes", type=runtimes, default="openvino", help="by commas, in turn (default: %(default)s)"
    )
    bench_parser.add_argument("--precisions", default="fp32", help="by commas, or all (default: %(default)s)")
    bench_parser.add_argument("--batches", type=batch_sizes, default="1,8,16,32", help="default: %(default)s")
    bench_parser.add_argument("--seconds", type=float, default=5, help="for each row (default: %(default)s)")
    bench_parser.add_argument("--json", action="store_true", help="rows as JSON")
    options = parser.parse_args()
    models = {model.manifest.tag: model for model in store.published()}
    if options.command == "list":
        print(*models, sep="\n")
        return
    tags = (options.tags or list(models)) if options.command == "verify" else [options.tag]
    for tag in tags:
        if tag not in models:
            parser.error(f"{tag} is not published; there are {', '.join(models) or 'none'}")
    if options.command == "verify":
        precisions = options.precisions.split(",") if options.precisions else None
        sys.exit(verify_command([models[tag] for tag in tags], options.runtimes, precisions))
    else:
        bench_command(models[options.tag], options)


def batch_sizes(text: str) -> list[int]:
    """Positive numbers separated by commas; ValueError, which argparse reports, if they are not."""
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise ValueError(text)
    return sizes


def runtimes(text: str) -> list[Measured]:
    """Runtimes separated by commas; ValueError, which argparse reports, if there is no such, or it computes nothing."""
    return TypeAdapter(list[Measured]).validate_python(text.split(","))


def verify_command(wanted: list[PublishedModel], runtimes: list[Measured], precisions: list[str] | None) -> int:
    """Print a line an engine; 1 if one that was asked for could not be opened."""
    failed = 0
    width = max((len(model.manifest.tag) for model in wanted), default=0)
    for model in wanted:
        for runtime, precision in product(runtimes, precisions or model.manifest.precisions):
            name = f"{model.manifest.tag:{width}}  {runtime} {precision:4}"
            try:
                fidelity = verify(model, runtime, precision)
            except (EngineError, ManifestError) as error:
                failed = int(precisions is not None)  # asked for
                print(f"{name}  cannot be opened: {error}")
                continue
            records.keep(model, runtime, precision, fidelity=fidelity)
            of = "" if fidelity.top1 is None else f"top-1 {fidelity.top1:7.2%} (torch {fidelity.torch_top1:7.2%}), "
            print(
                f"{name}  {of}agrees on {fidelity.agreement:7.2%} of {fidelity.images}, logits within "
                f"{fidelity.logit_error:.1e}: {fidelity.problem or 'faithful'}"
            )
    return failed


def bench_command(model: PublishedModel, options: argparse.Namespace) -> None:
    """Print a table, or JSON, a row an engine and batch size; and keep what was found."""
    precisions = model.manifest.precisions if options.precisions == "all" else options.precisions.split(",")
    try:
        speeds = bench.bench(
            model,
            list(product(options.runtimes, precisions)),
            options.batches,
            options.seconds,
        )
    except (EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    for runtime, precision in product(options.runtimes, precisions):
        of_engine = tuple(speed for speed in speeds if (speed.runtime, speed.precision) == (runtime, precision))
        if of_engine:
            records.keep(model, runtime, precision, speeds=of_engine)
    if options.json:
        print(json.dumps([speed.model_dump() for speed in speeds], indent=1))
        return
    print(f"{'runtime':12} {'precision':9} batch  images/s   p50 ms   p99 ms  GMAC/s     MB")
    for speed in speeds:
        print(
            f"{speed.runtime:12} {speed.precision:9} {speed.batch:5} {speed.images_per_s:9.1f} {speed.p50_ms:8.2f}"
            f" {speed.p99_ms:8.2f} {speed.gmacs_per_s:7.2f} {speed.memory_mb:6.0f}"
        )


if __name__ == "__main__":
    main()
