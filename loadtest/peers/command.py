"""Command line: `python -m loadtest peers`."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from engines.runtimes.machine import gpus
from loadtest.options import RESULTS, names, numbers
from loadtest.peers import AS_INSTALLED
from loadtest.peers.compare import PeerComparison, compare
from loadtest.peers.photos import FOLDER

MODELS, GPU_MODELS = "lenet5,resnet50", "resnet50"
CONNECTIONS, GPU_CONNECTIONS = "1,4,16,32", "1,16,64,256,512"
NO_GPU = (
    "error: --device gpu: there is no NVIDIA GPU that may be used here (no driver, or CUDA_VISIBLE_DEVICES hides all);"
    " --device cpu compares the servers on the processor"
)


def peers_command(arguments: list[str]) -> None:
    """Measure convserve and other servers of the same model, side by side on this machine."""
    parser = argparse.ArgumentParser("python -m loadtest peers", description=peers_command.__doc__)
    parser.add_argument("--models", type=names, help=f"separated by commas (default: {MODELS}, on a GPU {GPU_MODELS})")
    parser.add_argument(
        "--connections", type=numbers, help=f"separated by commas (default: {CONNECTIONS}, on a GPU {GPU_CONNECTIONS})"
    )
    parser.add_argument(
        "--device", choices=["cpu", "gpu"], default="cpu", help="gpu: torch on an NVIDIA GPU (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="over all servers in turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of each run (default: %(default)s)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--precision", help="default: fp32, on a GPU fp16")
    precision.add_argument(
        "--as-installed",
        action="store_const",
        dest="precision",
        const=AS_INSTALLED,
        help="each server as its README has it, in the precision that it chooses",
    )
    parser.add_argument(
        "--rest",
        type=float,
        default=300,
        help="as installed: seconds after the first start, in which convserve may tune itself (default: %(default)s)",
    )
    parser.add_argument("--images", type=Path, default=FOLDER, help="folder of JPEGs (default: scikit-image's photos)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "peers.jsonl", help="results; those there are kept (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    gpu = options.device == "gpu"
    if gpu and options.precision == AS_INSTALLED:
        parser.error("--as-installed compares servers on a CPU: leave out --device gpu")
    if gpu and not gpus():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, end)
    comparison = PeerComparison(
        models=options.models or names(GPU_MODELS if gpu else MODELS),
        connections=options.connections or numbers(GPU_CONNECTIONS if gpu else CONNECTIONS),
        rounds=options.rounds,
        seconds=options.seconds,
        precision=options.precision or ("fp16" if gpu else "fp32"),
        images=options.images,
        rest_s=options.rest,
        device="cuda" if gpu else None,
    )
    print(compare(comparison, options.out))


def end(signum: int, frame: FrameType | None) -> None:
    """Raise SystemExit, so that a server that this command started is stopped on the way out.

    A server that has started this moment, which the command does not know yet, is terminated here.
    """
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    sys.exit(128 + signum)
