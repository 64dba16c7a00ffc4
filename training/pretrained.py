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

from engines import markdown
from engines.published.preprocess import Preprocess
from models.card import Architecture, Weights
from models.zoo import ZOO
from training import checkpoint
from training.checkpoint import Checkpoint, Imported
from training.data import DataSet
from training.errors import CheckpointError
from training.input import Input, input_of
from training.recipes import paper

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights that a library offers: what they are, what they take, and how accurate their authors found them."""

    library: Literal["torchvision", "timm"]
    name: str
    licence: str
    source: str
    top1: float
    top5: float
    input: Input
    labels: tuple[str, ...]


def published(card: Architecture) -> PublishedWeights:
    """The weights that the architecture's card names; CheckpointError where there are none."""
    if card.weights is None:
        having = ", ".join(name for name, other in ZOO.items() if other.weights)
        raise CheckpointError(
            f"neither torchvision nor timm has {card.name}; they have {having}. --file and --data take your own"
        )
    return of_torchvision(card.weights) if card.weights.library == "torchvision" else of_timm(card.weights)


def of_torchvision(weights: Weights) -> PublishedWeights:
    """The first weights that torchvision published: those of the paper's recipe."""
    entry = next(iter(cast(Any, get_model_weights(weights.model))))
    transforms, accuracy = entry.transforms(), entry.meta["_metrics"]["ImageNet-1K"]
    # converted from TensorFlow, they undo ImageNet's statistics first (`transform_input`)
    half = weights.model in {"googlenet", "inception_v3"}
    return PublishedWeights(
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


def of_timm(weights: Weights) -> PublishedWeights:
    """The weights of a name and a tag in timm."""
    entry = timm.get_pretrained_cfg(weights.model)
    assert entry is not None
    names = ImageNetInfo("imagenet-1k")
    crop = entry.input_size[-1]
    assert weights.accuracy
    return PublishedWeights(
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
    """The library's state dict, fetched and checked by it; CheckpointError if it cannot be."""
    weights = card.weights
    assert weights
    try:
        if weights.library == "torchvision":
            entry = next(iter(cast(Any, get_model_weights(weights.model))))
            return dict(entry.get_state_dict(progress=True, check_hash=True))
        return dict(timm.create_model(weights.model, pretrained=True).state_dict())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{weights.model} could not be fetched: {error}; --file takes a file of its weights"
        ) from error


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


def import_weights(name: str, file: Path | None, data: DataSet | None, out: Path) -> Checkpoint:
    """Make a checkpoint of published weights, or of a file with them or with others of the same shapes.

    A file's keys may be ours or the library's. Its classes and pictures are taken to be the published weights'; or,
    with `data`, those of that data set, at the paper's size. CheckpointError if the weights do not fit.
    """
    card = ZOO[name]
    if (out / checkpoint.FILE).exists():
        raise CheckpointError(f"{out} holds a checkpoint: --out names another folder")
    if file and data:
        entry, labels, name_of_data, spec = input_of(card, paper(card, data), data), data.labels, data.name, data.spec
        imported = of_file(file)
    else:
        offer = published(card)
        print(f"{offer.name}: {offer.licence}\n{offer.source}")
        entry, labels, name_of_data, spec = offer.input, offer.labels, "imagenet", "imagenet"
        imported = of_file(file) if file else of_offer(offer)
    state = read(file) if file else download(card)
    ours = ZOO[name].build(len(labels))
    if card.weights and not state.keys() <= ours.state_dict().keys():
        state = card.weights.translate(state)
    try:
        ours.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{file or imported.name} does not fit {name}: {error}") from error
    run = {
        "architecture": name,
        "dataset": name_of_data,
        "data": spec,
        "split": "its authors' own",
        "labels": labels,
        "input": entry,
        "imported": imported,
        "epochs": (),
    }
    return checkpoint.save(out, run, ours, None)


def of_file(file: Path) -> Imported:
    """Whose weights a file holds is not known."""
    return Imported(library="file", name=file.name, licence="that of the file", source=str(file), top1=None, top5=None)


def of_offer(offer: PublishedWeights) -> Imported:
    """Whose weights a library's are."""
    return Imported(
        library=offer.library,
        name=offer.name,
        licence=offer.licence,
        source=offer.source,
        top1=offer.top1,
        top5=offer.top5,
    )


def offers() -> str:
    """Which weights there are, in Markdown."""
    rows = []
    for name, card in ZOO.items():
        if card.weights:
            offer = published(card)
            licence = offer.licence.partition(";")[0]
            rows.append((f"`{name}`", offer.name, str(offer.top1), str(offer.top5), licence, offer.source))
    head = "model", "weights", "top-1", "top-5", "licence", "source"
    return markdown.table(head, rows, right=(2, 3)) + "\n"
