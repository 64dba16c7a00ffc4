"""Import of weights that a library publishes, or that a file holds, as a checkpoint."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torchvision.models import get_model_weights

from engines import markdown
from engines.published.manifest import sha256
from engines.published.preprocess import Preprocess
from models.card import Architecture, Weights
from models.zoo import ZOO
from training import checkpoint
from training.checkpoint import Checkpoint, Imported
from training.data import DataSet
from training.errors import CheckpointError
from training.input import Input, input_of
from training.recipes import paper
from training.state_dict import fit, read, tensors_of, unwrapped

HALF = (0.5, 0.5, 0.5)
DIGITS = re.compile(r"-([0-9a-f]{8,})\.p?th$")  # of a file's SHA-256, in the name that libraries give the file
IDELBAYEV = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
CIFAR10 = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights that a library publishes: data set, source, licence, input, labels, and the authors' accuracy in percent.

    `sha256` has the first hex digits of the SHA-256 of the library's file, or is None if the library states none; top-5
    is None if not stated.
    """

    library: Literal["torchvision", "timm", "pytorch_resnet_cifar10"]
    data: Literal["imagenet", "cifar10"] = "imagenet"
    name: str
    licence: str
    source: str
    sha256: str | None
    top1: float
    top5: float | None
    input: Input
    labels: tuple[str, ...]


def published(card: Architecture) -> PublishedWeights:
    """Return the weights that the architecture's card names. Raises CheckpointError if the card names none."""
    if card.weights is None:
        having = ", ".join(name for name, other in ZOO.items() if other.weights)
        raise CheckpointError(
            f"no library known here has {card.name}; they have {having}. --file and --data take your own"
        )
    of_library = {"torchvision": of_torchvision, "timm": of_timm, "pytorch_resnet_cifar10": of_idelbayev}
    return of_library[card.weights.library](card.weights)


def of_torchvision(weights: Weights) -> PublishedWeights:
    """Return the first weights that torchvision published, which follow the paper's recipe."""
    member = next(iter(cast(Any, get_model_weights(weights.model))))
    transforms, accuracy = member.transforms(), member.meta["_metrics"]["ImageNet-1K"]
    # These weights were converted from TensorFlow and undo ImageNet's statistics first (`transform_input`).
    half = weights.model in {"googlenet", "inception_v3"}
    return PublishedWeights(
        library="torchvision",
        name=str(member),
        licence="BSD-3-Clause; ImageNet's terms of access may bear on its use",
        source=member.url,
        sha256=digits(member.url),
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
        labels=tuple(member.meta["categories"]),
    )


def of_timm(weights: Weights) -> PublishedWeights:
    """Return timm's weights of a model name with a tag."""
    config = timm.get_pretrained_cfg(weights.model)
    assert config is not None
    names = ImageNetInfo("imagenet-1k")
    crop = config.input_size[-1]
    assert weights.accuracy
    return PublishedWeights(
        library="timm",
        name=f"{config.architecture}.{config.tag}",
        licence=f"{config.license}; ImageNet's terms of access may bear on its use",
        source=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url),
        sha256=digits(str(config.url)),
        top1=weights.accuracy[0],
        top5=weights.accuracy[1],
        input=Input(
            preprocess=Preprocess(
                mode="RGB",
                resize_edge=int(crop / config.crop_pct),
                crop=crop,
                interpolation=cast(Literal["bilinear", "bicubic"], config.interpolation),
            ),
            mean=tuple(config.mean),
            std=tuple(config.std),
        ),
        labels=tuple(names.index_to_description(index) for index in range(1000)),
    )


def of_idelbayev(weights: Weights) -> PublishedWeights:
    """Return a file of Y. Idelbayev's weights for CIFAR-10, which were trained with ImageNet's statistics."""
    assert weights.accuracy
    return PublishedWeights(
        library="pytorch_resnet_cifar10",
        data=weights.data,
        name=weights.model,
        licence="BSD-2-Clause",
        source=f"{IDELBAYEV}/{weights.model}",
        sha256=digits(weights.model),
        top1=weights.accuracy[0],
        top5=weights.accuracy[1],
        input=Input(
            preprocess=Preprocess(mode="RGB", resize_edge=32, crop=32),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        labels=CIFAR10,
    )


def digits(url: str) -> str | None:
    """Return the hex digits of a file's SHA-256 that the file's address ends in, or None."""
    found = DIGITS.search(url)
    return found[1] if found else None


def download(card: Architecture) -> dict[str, Tensor]:
    """Download the library's state dict, with its check. Raises CheckpointError if the download fails."""
    weights = card.weights
    assert weights
    try:
        if weights.library == "torchvision":
            member = next(iter(cast(Any, get_model_weights(weights.model))))
            return dict(member.get_state_dict(progress=True, check_hash=True))
        if weights.library == "pytorch_resnet_cifar10":
            source = published(card).source
            contents = load_state_dict_from_url(source, map_location="cpu", check_hash=True, weights_only=True)
            return tensors_of(contents, Path(weights.model))
        return dict(timm.create_model(weights.model, pretrained=True).state_dict())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{weights.model} could not be fetched: {error}; --file takes a file of its weights"
        ) from error


def import_weights(name: str, file: Path | None, data: DataSet | None, out: Path) -> Checkpoint:
    """Make a checkpoint of published weights, or of the weights in `file`.

    The keys of a file are this project's or the library's. Labels and input are the published weights' or, with
    `data`, the data set's at the paper's size. The published accuracy is that of the published weights only, which a
    file has if its SHA-256 is the library's. Raises CheckpointError if the weights do not fit the network.
    """
    card = ZOO[name]
    if (out / checkpoint.FILE).exists():
        raise CheckpointError(f"{out} holds a checkpoint: --out names another folder")
    if file and data:
        network_input, labels = input_of(card, paper(card, data), data), data.labels
        name_of_data, spec = data.name, data.spec
        imported = of_file(file)
    else:
        offer = published(card)
        print(f"{offer.name}: {offer.licence}\n{offer.source}")
        network_input, labels, name_of_data, spec = offer.input, offer.labels, offer.data, offer.data
        imported = of_known_file(file, offer) if file else of_offer(offer)
    net = ZOO[name].build(len(labels))
    state = under_own_names(card, read(file) if file else download(card))
    fit(net, state, f"{file or imported.name} does not fit {name} with {len(labels)} classes")
    fields = {
        "architecture": name,
        "dataset": name_of_data,
        "data": spec,
        "split": "its authors' own",
        "labels": labels,
        "input": network_input,
        "imported": imported,
        "epochs": (),
    }
    return checkpoint.save(out, fields, net, None)


def under_own_names(card: Architecture, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the architecture, with this project's keys or the library's, under this project's keys."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # names only
        own = card.build(card.classes).state_dict().keys()
    state = unwrapped(state, own)
    if card.weights and not state.keys() <= own:
        with suppress(KeyError, IndexError):  # channels that cannot be put into order: `fit` says what differs
            return card.weights.translate(state)
    return state


def of_file(file: Path) -> Imported:
    """Return the origin of weights in a file, whose authors and accuracy are unknown."""
    return Imported(library="file", name=file.name, licence="that of the file", source=str(file), top1=None, top5=None)


def of_known_file(file: Path, offer: PublishedWeights) -> Imported:
    """Return the origin of weights in a file: the library's if its SHA-256 is; print which accuracy goes with them."""
    try:
        hashed = sha256(file)
    except OSError:
        return of_file(file)  # the reader of the file says why
    if offer.sha256 and hashed.startswith(offer.sha256):
        print(f"{file} is the library's file, by its SHA-256: top-1 {offer.top1} %, as published")
        return of_offer(offer)
    reason = f"its SHA-256 does not begin with {offer.sha256}" if offer.sha256 else "the library states no SHA-256"
    print(f"{file}: {reason}, so the published top-1 is not taken as that of the file")
    return of_file(file)


def of_offer(offer: PublishedWeights) -> Imported:
    """Return the origin of weights that a library publishes."""
    return Imported(
        library=offer.library,
        name=offer.name,
        licence=offer.licence,
        source=offer.source,
        top1=offer.top1,
        top5=offer.top5,
    )


def offers() -> str:
    """Return all published weights as a Markdown table."""
    rows = []
    for name, card in ZOO.items():
        if card.weights:
            offer = published(card)
            licence = offer.licence.partition(";")[0]
            top5 = "" if offer.top5 is None else str(offer.top5)
            rows.append((f"`{name}`", offer.data, offer.name, str(offer.top1), top5, licence, offer.source))
    head = "model", "data", "weights", "top-1", "top-5", "licence", "source"
    return markdown.table(head, rows, right=(3, 4)) + "\n"
