"""`python -m engines list` lists the published models, `bench TAG` measures an engine without HTTP."""

from __future__ import annotations

import argparse
import sys

from engines import bench, store
from engines.engine import EngineError
from engines.manifest import ManifestError
from engines.runtime import open_engine
from engines.store import PublishedModel


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser("python -m engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="tags of the published models")
    bench_parser = commands.add_parser("bench", help="latency and images a second of one model's engine")
    bench_parser.add_argument("tag", help="as `python -m engines list` shows it")
    bench_parser.add_argument("--precision", default="fp32", help="default: %(default)s")
    bench_parser.add_argument("--batches", type=batch_sizes, default="1,8,16,32", help="default: %(default)s")
    bench_parser.add_argument("--seconds", type=float, default=5, help="for each batch size (default: %(default)s)")
    options = parser.parse_args()
    models = {model.manifest.tag: model for model in store.published()}
    if options.command == "list":
        print(*models, sep="\n")
    elif options.tag not in models:
        parser.error(f"{options.tag} is not published; there are {', '.join(models) or 'none'}")
    else:
        bench_command(models[options.tag], options.precision, options.batches, options.seconds)


def batch_sizes(text: str) -> list[int]:
    """Positive numbers separated by commas; ValueError, which argparse reports, if they are not."""
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise ValueError(text)
    return sizes


def bench_command(model: PublishedModel, precision: str, batches: list[int], seconds: float) -> None:
    """Print a line a batch size."""
    try:
        engine = open_engine(model, "openvino", precision)
    except (EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    print(f"{model.manifest.tag} on {engine.runtime}, {engine.precision}")
    for batch in batches:
        speed = bench.measure(engine, model.manifest.preprocess.shape, batch, seconds)
        print(
            f"batch {batch:>3}: {speed.images_per_s:8.1f} images/s, p50 {speed.p50_ms:.2f} ms,"
            f" p99 {speed.p99_ms:.2f} ms, {speed.runs} runs"
        )


if __name__ == "__main__":
    main()
