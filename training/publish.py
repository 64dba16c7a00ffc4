"""Publishing: export a checkpoint, verify and measure the graph, and add one entry to the model store."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from engines.measured.verify import all_logits, logit_error
from engines.published import files, manifest, store
from engines.published.manifest import GRAPHS, Accuracy, Calibration, File, Manifest, ManifestError
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.torch import FromPixels, TorchEngine
from models.complexity import complexity
from models.zoo import ZOO
from training import checkpoint, evaluate
from training.checkpoint import Checkpoint
from training.data import DataSet, load, sample_pixels
from training.errors import CheckpointError
from training.export import export
from training.precisions import CALIBRATION_IMAGES, export_half, export_int8
from training.significance import warnings

VERIFICATION_IMAGES = 256
TOLERANCE = 1e-3  # of the largest logit, between the engine and torch, both in fp32


def publish(folder: Path, precisions: Sequence[str] = ("fp32",), calibrate: str | None = None) -> str:
    """Publish the checkpoint in `folder` with graphs in fp32 and in `precisions`; return the tag.

    A complete published model is kept, or replaced if it lacks one of `precisions`; its INT8 graph stays unless
    `calibrate` is named. INT8 is calibrated on the training images of the data set `calibrate`, by default of the
    checkpoint's own. Raises CheckpointError if the checkpoint is damaged, unfinished, of an unknown architecture, or
    imported and to be calibrated without `calibrate`; DataError if its data set is missing; EngineError if the exported
    graph's logits differ from torch's.
    """
    saved = checkpoint.load(folder)
    if not saved.done and saved.recipe:
        raise CheckpointError(f"{folder} has {len(saved.epochs)} of {saved.recipe.epochs} epochs: train with --resume")
    tag = manifest.tag(saved.architecture, saved.dataset, saved.weights.sha256)
    with store.staging() as stage:
        present = complete_entry(tag)
        if present and set(precisions) <= set(present.precisions):
            print(f"{tag} is published already; to export it again: bentoml models delete {tag}")
            return tag
        out = stage / "files"
        out.mkdir()
        shutil.copyfile(folder / saved.weights.file, out / manifest.WEIGHTS)
        module = checkpoint.network(folder, saved)
        print(f"exporting {saved.architecture} to ONNX")
        export(module, saved.input.preprocess, out / manifest.ONNX)
        data = data_of(saved)
        accuracy = check(saved, module, data, out)
        accuracies = {"fp32": accuracy} if accuracy else {}
        requested = {*precisions, *(present.precisions if present else ())}
        if "fp16" in requested:
            print("exporting the fp16 graph")
            export_half(module, saved.input.preprocess, out / GRAPHS["fp16"])
        calibration = present.calibration if present and not calibrate else None
        if "int8" in requested:
            if calibration:  # its images may be of a data set that is named no more
                print("keeping the INT8 graph")
                shutil.copyfile(store.folder_of(tag) / manifest.INT8, out / manifest.INT8)
            else:
                print("quantising to INT8")
                pixels = calibration_pixels(saved, data, calibrate)
                calibration = export_int8(out / manifest.ONNX, out / manifest.INT8, pixels)
            if data:
                accuracies["int8"] = held_out_accuracy(saved, data, OpenVINOEngine(out / manifest.INT8, "int8"))
        store.add(out, describe(saved, accuracies, calibration, out), stage)
    measured = f"top-1 {accuracy.top1:.2%} of {accuracy.images} held-out images" if accuracy else "imported"
    print(f"published {tag}: {measured}")
    print("a running server serves the model within 10 s (CONVSERVE_SCAN_S), or when a request names the model")
    if accuracy and data:
        for warning in warnings(accuracy, data.held_out.targets):
            print(f"WARNING: {warning}")
    return tag


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
    """Load the checkpoint's data set. Returns None for weights imported for ImageNet, which need not be on the machine.

    Raises DataError if the data set's split differs from the one that the network was trained on.
    """
    if saved.imported and saved.data == "imagenet":
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
    images = (data if data and spec in (None, data.spec) else load(spec or saved.data)).train
    return images.pixels(saved.input.preprocess, images.evenly(CALIBRATION_IMAGES))


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
    expected = all_logits(TorchEngine(module), tensors["pixels"])
    error = logit_error(all_logits(engine, tensors["pixels"]), expected)
    if not error <= TOLERANCE:  # NaN too
        raise EngineError(f"{saved.architecture}: the exported graph differs from torch by {error:.1e} of the logits")
    files.write(out / manifest.VERIFICATION, save(tensors | {"logits": expected}))
    return held_out_accuracy(saved, data, engine) if data else None


def held_out_accuracy(saved: Checkpoint, data: DataSet, engine: Engine) -> Accuracy:
    """Return an engine's accuracy on all held-out images; INT8 can overflow on a processor without VNNI."""
    logits = evaluate.held_out_logits(engine, data.held_out, saved.input.preprocess)
    return evaluate.accuracy(logits, data.held_out.targets)


def describe(saved: Checkpoint, accuracy: dict[str, Accuracy], calibration: Calibration | None, out: Path) -> Manifest:
    """Return the manifest of the files in `out`, with the checkpoint's recipe, epochs and versions as provenance."""
    height, width, channels = saved.input.preprocess.shape
    return Manifest(
        architecture=saved.architecture,
        dataset=saved.dataset,
        labels=saved.labels,
        preprocess=saved.input.preprocess,
        accuracy=accuracy,
        calibration=calibration,
        complexity=complexity(ZOO[saved.architecture], (channels, height, width), len(saved.labels)),
        provenance=saved.model_dump(
            mode="json", include={"data", "split", "input", "recipe", "seed", "imported", "epochs", "versions"}
        ),
        created=datetime.now(UTC),
        files={
            path.name: File(sha256=manifest.sha256(path), bytes=path.stat().st_size) for path in sorted(out.iterdir())
        },
    )
