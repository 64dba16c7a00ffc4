"""From a checkpoint to a published model: export, check, measure, and one entry of the model store."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import nn

from engines import manifest, store
from engines.engine import EngineError
from engines.manifest import Accuracy, Complexity, File, Manifest, ManifestError
from engines.openvino import OpenVINOEngine
from models.complexity import complexity
from models.zoo import ZOO, build
from training import checkpoint, evaluate
from training.checkpoint import Checkpoint
from training.data import load
from training.errors import CheckpointError
from training.export import FromPixels, export
from training.train import Normalise

VERIFICATION_IMAGES = 256
TOLERANCE = 1e-3  # of the largest logit, between the engine and torch, both fp32


def publish(folder: Path) -> str:
    """Publish the checkpoint in `folder`; the tag. What is already published whole is left as it is.

    CheckpointError if it is damaged, unfinished or of a network that is not known; DataError if its data are not
    there; EngineError if the exported graph answers otherwise than torch does.
    """
    saved = checkpoint.load(folder)
    if not saved.done:
        raise CheckpointError(f"{folder} has {len(saved.epochs)} of {saved.recipe.epochs} epochs: train with --resume")
    if saved.architecture not in ZOO:
        raise CheckpointError(f"{folder}: {saved.architecture} is not known here")
    tag = manifest.tag(saved.architecture, saved.dataset, saved.weights.sha256)
    with store.staging() as stage:
        if is_whole(tag):
            print(f"{tag} is published already")
            return tag
        files = stage / "files"
        files.mkdir()
        shutil.copyfile(folder / saved.weights.file, files / manifest.WEIGHTS)
        accuracy = write_engine_files(folder, saved, files)
        store.add(files, describe(saved, accuracy, files), stage)
    print(f"published {tag}: top-1 {accuracy.top1:.2%} of {accuracy.images} held-out images")
    return tag


def is_whole(tag: str) -> bool:
    """Whether `tag` is in the store and every file of it is right."""
    folder = store.folder_of(tag)
    try:
        manifest.load(folder).check_files(folder)
    except ManifestError:
        return False
    return True


def write_engine_files(folder: Path, saved: Checkpoint, files: Path) -> Accuracy:
    """Write the ONNX and the verification set into `files`, checked; the accuracy of the fp32 engine."""
    net = build(saved.architecture, len(saved.labels))
    checkpoint.restore(folder, saved, net)
    module = FromPixels(net, Normalise(saved.input)).eval()
    print(f"exporting {saved.architecture} to ONNX")
    export(module, saved.input.preprocess, files / manifest.ONNX)

    print("checking the engine against torch, and measuring its accuracy")
    engine = OpenVINOEngine(files / manifest.ONNX, "fp32")
    held_out = load(saved.data).held_out
    sample = np.linspace(0, len(held_out) - 1, min(VERIFICATION_IMAGES, len(held_out)), dtype=np.int64)
    pixels = held_out.pixels(saved.input.preprocess, sample)
    expected = torch_logits(module, pixels)
    error = float(np.abs(evaluate.logits(engine, pixels) - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:  # NaN too
        raise EngineError(f"{saved.architecture}: the exported graph differs from torch by {error:.1e} of the logits")
    # enough to verify an engine anywhere
    tensors: dict[str, NDArray[Any]] = {"pixels": pixels, "targets": held_out.targets[sample], "logits": expected}
    (files / manifest.VERIFICATION).write_bytes(save(tensors))
    return evaluate.accuracy(evaluate.held_out_logits(engine, held_out, saved.input.preprocess), held_out.targets)


@torch.no_grad()
def torch_logits(module: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The module's own answers, (N, classes), in fp32."""
    batches = torch.from_numpy(pixels).split(evaluate.BATCH)
    outputs: NDArray[np.float32] = torch.cat([module(batch) for batch in batches]).numpy()
    return outputs


def describe(saved: Checkpoint, accuracy: Accuracy, files: Path) -> Manifest:
    """The manifest of the files, whose provenance is the checkpoint's own account."""
    height, width, channels = saved.input.preprocess.shape
    cost = complexity(ZOO[saved.architecture], (channels, height, width), len(saved.labels))
    return Manifest(
        architecture=saved.architecture,
        dataset=saved.dataset,
        labels=saved.labels,
        preprocess=saved.input.preprocess,
        accuracy={"fp32": accuracy},
        complexity=Complexity.model_validate(dataclasses.asdict(cost)),
        provenance=saved.model_dump(
            mode="json", include={"data", "split", "input", "recipe", "seed", "epochs", "versions"}
        ),
        created=datetime.now(UTC),
        files={
            path.name: File(sha256=manifest.sha256(path), bytes=path.stat().st_size) for path in sorted(files.iterdir())
        },
    )
