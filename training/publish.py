"""Publishing: export a checkpoint, verify and measure the graph, and add one entry to the model store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from engines.measured.verify import all_logits, logit_error
from engines.published import files, manifest, store
from engines.published.manifest import GRAPHS, Accuracy, File, Manifest, ManifestError
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.torch import FromPixels, torch_engine
from models.complexity import complexity
from models.zoo import ZOO
from training import checkpoint, evaluate
from training.checkpoint import Checkpoint
from training.data import DataSet, load, sample_pixels
from training.errors import CheckpointError
from training.export import export
from training.graphs import fold, halve
from training.precisions import CALIBRATION_IMAGES, export_int8
from training.significance import warnings

PRECISIONS = ("fp32", "fp16", "int8")  # of the graphs; bf16 runs the fp32 one
FOLDED = "folded.onnx"  # the fp32 graph that further precisions are made of; not published
VERIFICATION_IMAGES = 256
TOLERANCE = 1e-3  # of the largest logit, between the engine and torch, both in fp32


def publish(folder: Path, precisions: Sequence[str] | None = None, calibrate: str | None = None) -> str:
    """Publish the checkpoint in `folder` with graphs in fp32 and in `precisions`, and return the tag.

    Default are fp32, fp16 and, if training images to calibrate on are known, INT8. A complete published model keeps its
    graphs, and only missing ones are added; INT8 is calibrated anew if `calibrate` is named. INT8 is calibrated on the
    training images of the data set `calibrate`, by default of the checkpoint's own. Raises CheckpointError if the
    checkpoint is damaged, unfinished, of an unknown architecture, or imported and to be calibrated without `calibrate`;
    DataError if its data set is missing; EngineError if the exported graph's logits differ from torch's.
    """
    saved = checkpoint.load(folder)
    if not saved.done and saved.recipe:
        raise CheckpointError(f"{folder} has {len(saved.epochs)} of {saved.recipe.epochs} epochs: train with --resume")
    tag = manifest.tag(saved.architecture, saved.dataset, saved.weights.sha256)
    renewed = {"int8"} if calibrate else set()
    started = time.perf_counter()
    with store.staging() as stage:
        present = complete_entry(tag)
        requested = {"fp32", *(precisions or by_default(saved, calibrate, present))}
        missing = requested - ({*present.precisions} - renewed if present else set())
        if present and not missing:
            print(f"{tag} is published already; to export it again: bentoml models delete {tag}")
            return tag
        out = stage / "files"
        out.mkdir()
        data = data_of(saved) if missing & {"fp32", "int8"} else None
        if present:
            kept = {*present.precisions} - missing
            print(f"keeping {', '.join(precision for precision in PRECISIONS if precision in kept)}")
            copy_files(present, kept, out)
            published = present
        else:
            shutil.copyfile(folder / saved.weights.file, out / manifest.WEIGHTS)
            published = export_fp32(saved, checkpoint.network(folder, saved), data, out)
        if missing & {"fp16", "int8"}:
            fold(out / manifest.ONNX, out / FOLDED)
            if "fp16" in missing:
                with costs(out, "fp16", GRAPHS["fp16"]):
                    halve(out / FOLDED, out / GRAPHS["fp16"])
            if "int8" in missing:
                published = add_int8(saved, published, data, calibrate, out)
            (out / FOLDED).unlink()
        published = published.model_copy(update={"created": datetime.now(UTC), "files": files_in(out)})
        store.add(out, published, stage)
    report(published, data, time.perf_counter() - started)
    return tag


def by_default(saved: Checkpoint, calibrate: str | None, present: Manifest | None) -> Sequence[str]:
    """Return the precisions that are published by default; print a line if no INT8 graph is made or `present`."""
    if present and "int8" in present.precisions:
        return PRECISIONS
    if saved.imported and not calibrate:
        print(
            "no INT8 graph: the training images of imported weights are not known; "
            "--calibrate NAME[:PATH] names a data set to calibrate on"
        )
        return ("fp32", "fp16")
    return PRECISIONS


def copy_files(published: Manifest, precisions: set[str], out: Path) -> None:
    """Copy a published model's weights, verification set, and graphs in `precisions` to `out`."""
    graphs = {GRAPHS[precision] for precision in precisions}
    for name in published.files:
        if name in graphs or name not in GRAPHS.values():
            shutil.copyfile(store.folder_of(published.tag) / name, out / name)


def export_fp32(saved: Checkpoint, module: FromPixels, data: DataSet | None, out: Path) -> Manifest:
    """Write the fp32 graph and the verification set to `out`, beside the weights; return a manifest without files."""
    print(f"exporting {saved.architecture} to ONNX")
    with costs(out, "fp32", manifest.WEIGHTS, manifest.ONNX):
        export(module, saved.input.preprocess, out / manifest.ONNX, out / manifest.WEIGHTS)
        accuracy = check(saved, module, data, out)
    return describe(saved, {"fp32": accuracy} if accuracy else {})


def add_int8(
    saved: Checkpoint, published: Manifest, data: DataSet | None, calibrate: str | None, out: Path
) -> Manifest:
    """Write the INT8 graph to `out`, made of the folded fp32 graph there.

    Returns the manifest with the calibration and, if there is `data`, the held-out accuracy.
    """
    print("quantising to INT8")
    with costs(out, "int8", manifest.INT8):
        pixels = calibration_pixels(saved, data, calibrate)
        changes: dict[str, Any] = {"calibration": export_int8(out / FOLDED, out / manifest.INT8, pixels)}
        if data:
            engine = OpenVINOEngine(out / manifest.INT8, "int8")
            changes["accuracy"] = published.accuracy | {"int8": held_out_accuracy(saved, data, engine)}
    return published.model_copy(update=changes)


@contextmanager
def costs(folder: Path, precision: str, *names: str) -> Iterator[None]:
    """Print what making the files `names` of a precision costs: seconds, and bytes in the store."""
    started = time.perf_counter()
    yield
    sizes = " and ".join(f"{name} of {(folder / name).stat().st_size / 1e6:,.2f} MB" for name in names)
    print(f"{precision}: {time.perf_counter() - started:.1f} s, {sizes}", flush=True)


def report(published: Manifest, data: DataSet | None, seconds: float) -> None:
    """Print the tag, the accuracy and the costs of a published model, and warnings about the accuracy."""
    accuracy, authors = published.accuracy.get("fp32"), published.published
    measured = f"imported, top-1 {authors.top1:.2%} by its authors" if authors else "imported"
    if accuracy:
        measured = f"top-1 {accuracy.top1:.2%} of {accuracy.images} held-out images"
    size = sum(file.bytes for file in published.files.values()) / 1e6
    print(f"published {published.tag}: {measured}; {', '.join(published.precisions)}, {size:,.1f} MB, {seconds:.1f} s")
    print("a running server serves the model within 10 s (CONVSERVE_SCAN_S), or when a request names the model")
    if accuracy and data:
        for warning in warnings(accuracy, data.held_out.targets):
            print(f"WARNING: {warning}")


def complete_entry(tag: str) -> Manifest | None:
    """Return the manifest of `tag` if the store has the entry and all its files are intact, else None."""
    folder = store.folder_of(tag)
    try:
        published = manifest.load(folder)
        published.check_files(folder)
    except ManifestError:
        return None
    return published


def data_of(saved: Checkpoint) -> DataSet | None:
    """Load the checkpoint's data set. Returns None for published weights, whose data need not be on the machine.

    Raises DataError if the data set's split differs from the one that the network was trained on.
    """
    if saved.imported and saved.data in manifest.PROTOCOLS:
        return None
    data = load(saved.data)
    if saved.recipe:
        data.check_split(saved.split)
    return data


def calibration_pixels(saved: Checkpoint, data: DataSet | None, spec: str | None) -> NDArray[np.uint8]:
    """Return the network's input for some training images of `spec`, by default of `data`; never for held-out ones.

    Raises CheckpointError for imported weights without `spec`.
    """
    if spec is None and saved.imported:
        raise CheckpointError(
            "the training images of imported weights are not known: name a data set to calibrate on with --calibrate"
        )
    source = data if data and spec in (None, data.spec) else load(spec or saved.data)
    source.check_train()
    return source.train.pixels(saved.input.preprocess, source.train.evenly(CALIBRATION_IMAGES))


def check(saved: Checkpoint, module: FromPixels, data: DataSet | None, out: Path) -> Accuracy | None:
    """Check the fp32 graph in `out` against torch, write the verification set, and measure held-out accuracy.

    The verification set suffices to verify an engine on any machine. Without `data` it holds sample pictures, and no
    accuracy is returned. Raises EngineError if the logits differ.
    """
    print("checking the engine against torch" + (", and measuring its accuracy" if data else ""))
    engine = OpenVINOEngine(out / manifest.ONNX, "fp32")
    tensors: dict[str, NDArray[Any]] = {}
    if data:
        sample = data.held_out.evenly(VERIFICATION_IMAGES)
        tensors["pixels"] = data.held_out.pixels(saved.input.preprocess, sample)
        tensors["targets"] = data.held_out.targets[sample]
    else:
        tensors["pixels"] = sample_pixels(saved.input.preprocess)
    expected = all_logits(torch_engine(module), tensors["pixels"])
    error = logit_error(all_logits(engine, tensors["pixels"]), expected)
    if not error <= TOLERANCE:  # NaN too
        raise EngineError(f"{saved.architecture}: the exported graph differs from torch by {error:.1e} of the logits")
    files.write(out / manifest.VERIFICATION, save(tensors | {"logits": expected}))
    return held_out_accuracy(saved, data, engine) if data else None


def held_out_accuracy(saved: Checkpoint, data: DataSet, engine: Engine) -> Accuracy:
    """Return an engine's accuracy on all held-out images; INT8 can overflow on a processor without VNNI."""
    logits = evaluate.held_out_logits(engine, data.held_out, saved.input.preprocess)
    return evaluate.accuracy(logits, data.held_out.targets)


def describe(saved: Checkpoint, accuracy: dict[str, Accuracy]) -> Manifest:
    """Return a manifest, without files yet, with the checkpoint's recipe, epochs and versions as provenance."""
    height, width, channels = saved.input.preprocess.shape
    provenance = {"data", "split", "input", "recipe", "seed", "imported", "epochs", "versions"}
    provenance |= {name for name in ("start", "teacher") if getattr(saved, name)}
    return Manifest(
        architecture=saved.architecture,
        dataset=saved.dataset,
        labels=saved.labels,
        preprocess=saved.input.preprocess,
        accuracy=accuracy,
        complexity=complexity(ZOO[saved.architecture], (channels, height, width), len(saved.labels)),
        provenance=saved.model_dump(mode="json", include=provenance),
        created=datetime.now(UTC),
        files={},
    )


def files_in(folder: Path) -> dict[str, File]:
    """Return the identity of each file in a folder, by name."""
    return {
        path.name: File(sha256=manifest.sha256(path), bytes=path.stat().st_size) for path in sorted(folder.iterdir())
    }
