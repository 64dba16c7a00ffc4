"""Weights that torchvision or timm publish, or of a file, as a checkpoint like any other."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor
from torchvision.models import get_model_weights

from engines.preprocess import Preprocess
from models.card import Architecture, Weights
from models.zoo import ZOO, build
from training import checkpoint
from training.checkpoint import Checkpoint, Imported
from training.errors import CheckpointError
from training.recipe import Input

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that a library offers: what they are, what they take, and how accurate their authors found them."""

    library: Literal["torchvision", "timm"]
    name: str
    licence: str
    source: str
    top1: float
    top5: float
    input: Input
    labels: tuple[str, ...]


def published(card: Architecture) -> Published:
    """The weights that the architecture's card names; CheckpointError where there are none."""
    if card.weights is None:
        having = ", ".join(name for name, other in ZOO.items() if other.weights)
        raise CheckpointError(f"neither torchvision nor timm has {card.name}; they have {having}")
    return of_torchvision(card.weights) if card.weights.library == "torchvision" else of_timm(card.weights)


def of_torchvision(weights: Weights) -> Published:
    """The first weights that torchvision published: those of the paper's recipe."""
    entry = next(iter(cast(Any, get_model_weights(weights.model))))
    transforms, accuracy = entry.transforms(), entry.meta["_metrics"]["ImageNet-1K"]
    # converted from TensorFlow, they undo ImageNet's statistics first (`transform_input`)
    half = weights.model in {"googlenet", "inception_v3"}
    return Published(
        library="torchvision",
        name=str(entry),
        licence="BSD-3-Clause; ImageNet's terms of access may bear on its use",
        source=entry.url,
        top1=accuracy["acc@1"],
        top5=accuracy["acc@5"],
        input=Input(
            preprocess=Preprocess(
                mode="RGB",
                resize_edge=transforms.resize_size[0],
                crop=transforms.crop_size[0],
                interpolation=transforms.interpolation.value,
            ),
            mean=HALF if half else tuple(transforms.mean),
            std=HALF if half else tuple(transforms.std),
        ),
        labels=tuple(entry.meta["categories"]),
    )


def of_timm(weights: Weights) -> Published:
    """The weights of a name and a tag in timm."""
    entry = timm.get_pretrained_cfg(weights.model)
    assert entry is not None
    names = ImageNetInfo("imagenet-1k")
    crop = entry.input_size[-1]
    assert weights.accuracy
    return Published(
        library="timm",
        name=f"{entry.architecture}.{entry.tag}",
        licence=f"{entry.license}; ImageNet's terms of access may bear on its use",
        source=f"https://huggingface.co/{entry.hf_hub_id}" if entry.hf_hub_id else str(entry.url),
        top1=weights.accuracy[0],
        top5=weights.accuracy[1],
        input=Input(
            preprocess=Preprocess(
                mode="RGB",
                resize_edge=int(crop / entry.crop_pct),
                crop=crop,
                interpolation=cast(Literal["bilinear", "bicubic"], entry.interpolation),
            ),
            mean=tuple(entry.mean),
            std=tuple(entry.std),
        ),
        labels=tuple(names.index_to_description(index) for index in range(1000)),
    )


def download(card: Architecture) -> dict[str, Tensor]:
    """The library's state dict, fetched and checked by it."""
    weights = card.weights
    assert weights
    if weights.library == "torchvision":
        entry = next(iter(cast(Any, get_model_weights(weights.model))))
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    return dict(timm.create_model(weights.model, pretrained=True).state_dict())


def read(path: Path) -> dict[str, Tensor]:
    """A state dict of a safetensors file, or of torch's own format, in which nothing but tensors is let in."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} holds more than weights, or none: it was not loaded") from error
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict")
    return state


def import_weights(name: str, file: Path | None, out: Path) -> Checkpoint:
    """Make a checkpoint of published weights, or of a file with them or with others of the same shapes.

    A file's pictures are taken to be prepared as the published weights' are. CheckpointError if the weights do not fit.
    """
    card = ZOO[name]
    offer = published(card)
    assert card.weights
    if (out / checkpoint.FILE).exists():
        raise CheckpointError(f"{out} holds a checkpoint: --out names another folder")
    print(f"{offer.name}: {offer.licence}\n{offer.source}")
    ours = build(name, len(offer.labels))
    try:
        state = read(file) if file else download(card)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{offer.name} could not be fetched: {error}; --file takes a file of it") from error
    try:
        ours.load_state_dict(card.weights.translate(state))
    except RuntimeError as error:
        raise CheckpointError(f"{file or offer.name} does not fit {name}: {error}") from error
    imported = Imported(
        library=offer.library,
        name=offer.name if file is None else file.name,
        licence=offer.licence if file is None else "that of the file",
        source=offer.source if file is None else str(file),
        top1=offer.top1 if file is None else None,
        top5=offer.top5 if file is None else None,
    )
    run = {
        "architecture": name,
        "dataset": "imagenet",
        "data": "imagenet",
        "split": "its authors' own",
        "labels": offer.labels,
        "input": offer.input,
        "imported": imported,
        "epochs": (),
    }
    return checkpoint.save(out, run, ours, None)


def offers() -> str:
    """Which weights there are, in Markdown."""
    lines = ["| model | weights | top-1 | top-5 | licence | source |", "| --- | --- | ---: | ---: | --- | --- |"]
    for name, card in ZOO.items():
        if card.weights:
            offer = published(card)
            licence = offer.licence.partition(";")[0]
            lines.append(f"| `{name}` | {offer.name} | {offer.top1} | {offer.top5} | {licence} | {offer.source} |")
    return "\n".join(lines) + "\n"
