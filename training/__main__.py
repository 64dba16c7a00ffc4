"""Command `python -m training`: train architectures, or run one of COMMANDS."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from engines.published.manifest import ManifestError
from engines.runtimes.engine import EngineError
from models.closed_pipe import may_be_closed
from models.zoo import ZOO
from training.errors import TrainingError
from training.machine import check_writable, machine_errors
from training.train_command import check_names, compare_command, train_command


def claims_command(arguments: list[str]) -> None:
    """Train the networks of the lecture's claims, and print the tables."""
    parser = argparse.ArgumentParser(
        "python -m training claims", description="Try the lecture's claims: train what is missing, print the tables."
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to train (default: all)")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/claims"), help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/claims.jsonl"), metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)

    from training import claims, data, results
    from training.campaign import campaign
    from training.processes import joined
    from training.train import TrainingOptions

    digits = data.load("mnist5k")
    with joined() as processes:
        runs = claims.runs(digits.name, options.seeds or claims.SEEDS, options.out)
        campaign(runs, digits, processes, TrainingOptions(resume=True), options.results)
    known = results.read(options.results)
    claims.write_pictures(known, options.results.parent)
    for claim in claims.CLAIMS:
        print(f"\n{claim.statement}\n\n{claims.table(claim, known)}", end="")


def publish_command(arguments: list[str]) -> None:
    """Publish a checkpoint in the model store."""
    parser = argparse.ArgumentParser("python -m training publish", description="Publish a checkpoint for serving.")
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument(
        "--precisions",
        metavar="LIST",
        help="fp32, fp16, int8, separated by commas (default: all; of imported weights without --calibrate fp32,fp16)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="NAME[:PATH]",
        help="data set whose training images calibrate int8 (default: the checkpoint's own)",
    )
    options = parser.parse_args(arguments)
    precisions = options.precisions.split(",") if options.precisions is not None else None
    if precisions is not None and not {*precisions} <= {"fp32", "fp16", "int8"}:
        parser.error(f"--precisions are of fp32, fp16, int8, not {options.precisions}")

    home = Path(os.environ.get("BENTOML_HOME", "~/bentoml")).expanduser()
    with machine_errors(home, "BENTOML_HOME names another folder, TMPDIR another for temporary files"):
        from engines.published import store
        from training.publish import publish

        check_writable(store.root())
        publish(options.checkpoint, precisions, options.calibrate)


def evaluate_command(arguments: list[str]) -> None:
    """Print the accuracy and calibration of a checkpoint or a published model."""
    parser = argparse.ArgumentParser("python -m training evaluate", description="Accuracy, by class, and calibration.")
    parser.add_argument(
        "model", help="folder of a checkpoint, run by torch; or tag of a published model, run by its engine"
    )
    parser.add_argument(
        "--data", metavar="NAME[:PATH]", help="data set (default: the one that the model was trained on)"
    )
    parser.add_argument(
        "--precision", default="fp32", help="precision of a published model's engine (default: %(default)s)"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="HTML page with the confusion matrix, the calibration, and the worst pictures with maps of their classes",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="PNG of the confusion matrix (default: CHECKPOINT/confusion.png, or results/confusion-TAG.png)",
    )
    options = parser.parse_args(arguments)

    from training.report import report

    print(report(options.model, options.data, options.precision, options.picture, options.page))


def import_command(arguments: list[str]) -> None:
    """Make a checkpoint of published weights."""
    parser = argparse.ArgumentParser(
        "python -m training import", description="Make a checkpoint of published weights; without NAME, list them."
    )
    parser.add_argument("name", nargs="?", help="architecture")
    parser.add_argument("--file", type=Path, help="local safetensors or .pth file, instead of a download")
    parser.add_argument(
        "--data",
        metavar="NAME[:PATH]",
        help="data set whose classes and statistics the file has (default: the published weights')",
    )
    parser.add_argument("--random", action="store_true", help="random weights, to time a network without any")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: checkpoints/NAME-DATA)")
    options = parser.parse_args(arguments)
    check_names(parser, [options.name] if options.name else [])
    if options.data and not options.file:
        parser.error("--data is of a --file")
    if options.random and (options.file or not options.name):
        parser.error("--random is of a NAME, without --file")

    from training.data import load
    from training.pretrained import import_weights, offers
    from training.random_weights import DATA, random_checkpoint

    if not options.name:
        print(offers(), end="")
        return
    data = load(options.data) if options.data else None
    weights = ZOO[options.name].weights
    named = data.name if data else DATA if options.random or not weights else weights.data
    folder = options.out or Path("checkpoints") / f"{options.name}-{named}"
    check_writable(folder)
    if options.random:
        random_checkpoint(options.name, folder)
    else:
        import_weights(options.name, options.file, data, folder)
    print(f"now: python -m training publish {folder}")


def download_command(arguments: list[str]) -> None:
    """Download a data set from its authors."""
    parser = argparse.ArgumentParser(
        "python -m training download", description="Fetch a data set into data/NAME or PATH."
    )
    parser.add_argument("data", metavar="NAME[:PATH]", help="mnist, fashion_mnist, cifar10 or cifar100")
    options = parser.parse_args(arguments)

    from training.data import download

    download(options.data)


def images_command(arguments: list[str]) -> None:
    """Write a data set's held-out pictures as PNG files, for load tests."""
    parser = argparse.ArgumentParser("python -m training images", description="Write held-out pictures as PNG files.")
    parser.add_argument("data", metavar="NAME[:PATH]", help="data set")
    parser.add_argument("--out", type=Path, help="new folder, with a sub-folder per label (default: images/NAME)")
    options = parser.parse_args(arguments)

    from training.data import load, write_images

    data = load(options.data)
    folder = options.out or Path("images") / data.name
    if folder.exists():
        parser.error(f"{folder} exists already")
    write_images(data, folder)


def bench_command(arguments: list[str]) -> None:
    """Benchmark this training loop beside torchvision's reference loop."""
    parser = argparse.ArgumentParser(
        "python -m training bench", description="Images/s of this loop and of torchvision's reference loop, in turn."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        default=["resnet18", "resnet20_cifar", "vgg11", "densenet121"],
        help="architectures (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=25, help="steps of each loop in a round (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_names(parser, options.names)
    if min(options.rounds, options.steps) < 1:
        parser.error("--rounds and --steps must be at least 1")

    from training.bench import bench

    print(bench(options.names, options.rounds, options.steps))


def plans_command(arguments: list[str]) -> None:
    """Build TensorRT plans of architectures with random weights, and print their table."""
    parser = argparse.ArgumentParser(
        "python -m training plans",
        description="Build TensorRT-RTX plans of architectures with random weights, at their paper's input, in fp32, "
        "fp16 and INT8; print a table.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="architecture (default: every one)")
    parser.add_argument(
        "--capability",
        default="8.6,8.9,12.0",
        help="compute capabilities of GPUs, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("docs/plans.jsonl"), metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    check_names(parser, options.names)

    from engines.measured.plans import Target
    from engines.runtimes.engine import MAX_BATCH
    from training import plans

    target = Target("tensorrt_rtx", MAX_BATCH, options.capability.split(","))
    try:
        plans.sweep(options.names or list(ZOO), target, options.results)
    finally:
        rows = plans.read(options.results, target)
        print(f"{target}\n\n{plans.table(rows)}\n\n{plans.bytes_table(rows)}")


COMMANDS = {
    "bench": bench_command,
    "compare": compare_command,
    "claims": claims_command,
    "publish": publish_command,
    "evaluate": evaluate_command,
    "import": import_command,
    "download": download_command,
    "images": images_command,
    "plans": plans_command,
}


def main(arguments: list[str]) -> None:
    """Run one command. An error that the user can resolve is printed in one line, with exit status 1."""
    try:
        with machine_errors():
            if arguments and arguments[0] in COMMANDS:
                COMMANDS[arguments[0]](arguments[1:])
            else:
                train_command(arguments)
    except (TrainingError, EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        hint = "" if arguments[0] in COMMANDS else "; --resume goes on from the last whole epoch"
        print(f"\nstopped{hint}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    with may_be_closed():
        main(sys.argv[1:])
