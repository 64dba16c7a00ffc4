"""From a checkpoint to a published model: export, check, measure, and one entry of the model store."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save
from sklearn.datasets import load_sample_images

from engines.measured.verify import all_logits, logit_error
from engines.published import manifest, store
from engines.published.manifest import GRAPHS, Accuracy, Calibration, Complexity, File, Manifest, ManifestError
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.torch import FromPixels, Normalise, TorchEngine
from models.complexity import complexity
from models.zoo import ZOO
from training import checkpoint, evaluate
from training.checkpoint import Checkpoint
from training.data import load
from training.errors import CheckpointError
from training.export import export
from training.precisions import CALIBRATION_IMAGES, export_half, export_int8

VERIFICATION_IMAGES = 256
TOLERANCE = 1e-3  # of the largest logit, between the engine and torch, both fp32


def publish(folder: Path, precisions: Sequence[str] = ("fp32",), calibrate: str | None = None) -> str:
    """Publish the checkpoint in `folder`, with graphs in `precisions` besides fp32; the tag.

    What is already published whole is left as it is, or made anew with the precisions that it lacks. INT8 is calibrated
    on the training images of `calibrate`, else of what it was trained on. CheckpointError if it is damaged, unfinished
    or of a network that is not known; DataError if its data are not there; EngineError if the exported graph answers
    otherwise than torch does.
    """
    saved = checkpoint.load(folder)
    if not saved.done and saved.recipe:
        raise CheckpointError(f"{folder} has {len(saved.epochs)} of {saved.recipe.epochs} epochs: train with --resume")
    tag = manifest.tag(saved.architecture, saved.dataset, saved.weights.sha256)
    with store.staging() as stage:
        there = whole(tag)
        if there and set(precisions) <= set(there.precisions):
            print(f"{tag} is published already; to export it anew: bentoml models delete {tag}")
            return tag
        files = stage / "files"
        files.mkdir()
        shutil.copyfile(folder / saved.weights.file, files / manifest.WEIGHTS)
        module = restored(folder, saved)
        print(f"exporting {saved.architecture} to ONNX")
        export(module, saved.input.preprocess, files / manifest.ONNX)
        accuracy = check(saved, module, files)
        accuracies = {"fp32": accuracy} if accuracy else {}
        wanted = {*precisions, *(there.precisions if there else ())}
        if "fp16" in wanted:
            print("exporting it in half precision")
            export_half(module, saved.input.preprocess, files / GRAPHS["fp16"])
        calibration = None
        if "int8" in wanted:
            print("quantising it")
            pixels = calibration_pixels(saved, calibrate)
            calibration = export_int8(files / manifest.ONNX, files / manifest.INT8, pixels)
            if accuracy:
                accuracies["int8"] = held_out_accuracy(saved, OpenVINOEngine(files / manifest.INT8, "int8"))
        store.add(files, describe(saved, accuracies, calibration, files), stage)
    measured = f"top-1 {accuracy.top1:.2%} of {accuracy.images} held-out images" if accuracy else "imported"
    print(f"published {tag}: {measured}")
    return tag


def whole(tag: str) -> Manifest | None:
    """The manifest of `tag`, if it is in the store and every file of it is right."""
    folder = store.folder_of(tag)
    try:
        found = manifest.load(folder)
        found.check_files(folder)
    except ManifestError:
        return None
    return found


def calibration_pixels(saved: Checkpoint, spec: str | None) -> NDArray[np.uint8]:
    """What the network takes of some training images of the data set `spec`, or of its own; never of held-out ones."""
    if spec is None and saved.imported:
        raise CheckpointError("the training images of imported weights are not known: --calibrate names a data set")
    images = load(spec or saved.data).train
    sample = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images)), dtype=np.int64)
    return images.pixels(saved.input.preprocess, sample)


def restored(folder: Path, saved: Checkpoint) -> FromPixels:
    """The checkpoint's network, from pixels to logits; CheckpointError if it is none of the lecture's."""
    if saved.architecture not in ZOO:
        raise CheckpointError(f"{folder}: there is no architecture {saved.architecture}")
    net = ZOO[saved.architecture].build(len(saved.labels))
    checkpoint.restore(folder, saved, net)
    return FromPixels(net, Normalise(saved.input.mean, saved.input.std)).eval()


def check(saved: Checkpoint, module: FromPixels, files: Path) -> Accuracy | None:
    """Write the verification set, enough to verify an engine anywhere; the accuracy of the fp32 engine on all images.

    Of weights imported for ImageNet, which need not be here, sample pictures are checked, and no accuracy is known.
    EngineError if the engine answers otherwise than torch.
    """
    unlabelled = saved.imported and saved.data == "imagenet"
    print("checking the engine against torch" + ("" if unlabelled else ", and measuring its accuracy"))
    engine = OpenVINOEngine(files / manifest.ONNX, "fp32")
    tensors: dict[str, NDArray[Any]] = {}
    if unlabelled:
        tensors["pixels"] = sample_pixels(saved.input.preprocess)
    else:
        data = load(saved.data)
        if saved.recipe:
            data.check_split(saved.split)
        held_out = data.held_out
        sample = np.linspace(0, len(held_out) - 1, min(VERIFICATION_IMAGES, len(held_out)), dtype=np.int64)
        tensors |= {"pixels": held_out.pixels(saved.input.preprocess, sample), "targets": held_out.targets[sample]}
    expected = all_logits(TorchEngine(module), tensors["pixels"])
    error = logit_error(all_logits(engine, tensors["pixels"]), expected)
    if not error <= TOLERANCE:  # NaN too
        raise EngineError(f"{saved.architecture}: the exported graph differs from torch by {error:.1e} of the logits")
    (files / manifest.VERIFICATION).write_bytes(save(tensors | {"logits": expected}))
    if unlabelled:
        return None
    return held_out_accuracy(saved, engine)


def held_out_accuracy(saved: Checkpoint, engine: Engine) -> Accuracy:
    """Of an engine, on all held-out images; of INT8 what this processor gives, which without VNNI may overflow."""
    held_out = load(saved.data).held_out
    return evaluate.accuracy(evaluate.held_out_logits(engine, held_out, saved.input.preprocess), held_out.targets)


def sample_pixels(preprocess: Preprocess) -> NDArray[np.uint8]:
    """Sixteen parts of scikit-learn's two photos, (16, height, width, channels)."""
    pictures = [Image.fromarray(photo) for photo in load_sample_images().images]
    parts = [
        picture.crop((left, top, left + 320, top + 210))
        for picture in pictures
        for top in (0, 110, 217)
        for left in (0, 160, 320)
    ]
    return np.stack([preprocess(part) for part in parts[:16]])


def describe(
    saved: Checkpoint, accuracy: dict[str, Accuracy], calibration: Calibration | None, files: Path
) -> Manifest:
    """The manifest of the files, whose provenance is the checkpoint's own account."""
    height, width, channels = saved.input.preprocess.shape
    cost = complexity(ZOO[saved.architecture], (channels, height, width), len(saved.labels))
    return Manifest(
        architecture=saved.architecture,
        dataset=saved.dataset,
        labels=saved.labels,
        preprocess=saved.input.preprocess,
        accuracy=accuracy,
        calibration=calibration,
        complexity=Complexity.model_validate(dataclasses.asdict(cost)),
        provenance=saved.model_dump(
            mode="json", include={"data", "split", "input", "recipe", "seed", "imported", "epochs", "versions"}
        ),
        created=datetime.now(UTC),
        files={
            path.name: File(sha256=manifest.sha256(path), bytes=path.stat().st_size) for path in sorted(files.iterdir())
        },
    )
