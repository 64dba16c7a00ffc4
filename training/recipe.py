"""How a network is trained: plain values, stored whole with every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from engines.published.preprocess import Preprocess
from models.card import Architecture
from training.errors import RecipeError

if TYPE_CHECKING:
    from training.data import DataSet

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Edge = Annotated[int, Field(ge=224)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The values of one training, and where they are from.

    **Input.** `edge`: of the square the network takes, in pixels; None for the paper's. `mean` and `std`: a pixel p
    (0 to 255) enters as (p / 255 - mean) / std, a value a channel; None for the data's.

    **Optimisation.** `batch` is that of all processes together. `lr` is the peak rate: a linear warm-up leads to it,
    then it falls by `schedule`: "cosine" to zero; "steps", by `factor` at each of `drops`, shares of all epochs;
    "exponential", by `factor` an epoch; "plateau", by `factor` when held-out top-1 has not risen for `patience` epochs,
    `falls` times at most.
    `clip` bounds the norm of all gradients. `precision` is that of forward and backward pass; weights and optimizer
    are always float32.

    **Loss.** `auxiliary` weighs that of each auxiliary head, where the network has any.

    **Network.** None leaves what its file has. `init_std`: weights are drawn from N(0, init_std²), biases are 0. Those
    in the layers of `init_ones` are 1. `dropout` is every dropout layer's. `survival`: the probability with which
    stochastic depth keeps the last block in training.

    **Augmentation**, in this order. `area`: a random part of the picture, of a share of its area within these bounds
    and an aspect of 3/4 to 4/3. Or `shorter_edge`: resized to within these bounds for an input of 224, else in
    proportion, then cropped anywhere.
    `trivial`: one random operation (TrivialAugment). `rotation`: degrees, each way. `jitter`: brightness, contrast,
    saturation, each by this share. `lighting`: standard deviation of AlexNet's colour noise along the principal
    components of ImageNet's pixels. `shift`: pixels, each way, padded with the data's fill, or by reflection if
    `reflect`. `flip`: half of the images, left to right.
    """

    source: str

    edge: Count | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    optimizer: Literal["sgd", "nesterov", "adamw", "rmsprop"] = "sgd"
    momentum: BelowOne = 0.9
    lr: NotNegative
    schedule: Literal["cosine", "steps", "exponential", "plateau"] = "cosine"
    drops: tuple[Share, ...] = ()
    factor: Positive = 0.1
    patience: Count = 5
    falls: Count = 3
    warmup_epochs: NotNegative = 0
    weight_decay: NotNegative
    clip: Positive | None = None
    batch: Count
    epochs: Count
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"

    loss: Literal["cross_entropy", "map"] = "cross_entropy"
    label_smoothing: BelowOne = 0
    auxiliary: NotNegative = 0.3

    init_std: Positive | None = None
    init_ones: tuple[str, ...] = ()
    dropout: BelowOne | None = None
    survival: Share | None = None

    area: tuple[Share, Share] | None = None
    shorter_edge: tuple[Edge, Edge] | None = None
    trivial: bool = False
    rotation: NotNegative = 0
    jitter: NotNegative = 0
    lighting: NotNegative = 0
    shift: Annotated[int, Field(ge=0)] = 0
    reflect: bool = False
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class Input:
    """How a picture becomes what the network takes: pixels by `preprocess`, then (p / 255 - mean) / std a channel."""

    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]


def input_of(card: Architecture, recipe: Recipe, data: DataSet) -> Input:
    """What `card`'s network takes of `data` by `recipe`: photos lose an eighth at the edges, small pictures nothing.

    RecipeError if the network does not take pictures that small.
    """
    channels = card.input_shape[0]
    edge = recipe.edge or card.input_shape[1]
    if edge < card.smallest:
        raise RecipeError(f"edge: {card.name} takes {card.smallest} pixels at least, not {edge}")
    if data.edge is None:
        resize, crop, pad = round(edge / 0.875), edge, 0
    elif 0 < edge - data.edge <= 4 and (edge - data.edge) % 2 == 0:
        # "centred in a 32x32 field" (LeNet-5's paper): digits keep their own 28 pixels
        resize, crop, pad = data.edge, data.edge, (edge - data.edge) // 2
    else:
        resize, crop, pad = edge, edge, 0
    preprocess = Preprocess(
        mode="L" if channels == 1 else "RGB", resize_edge=resize, crop=crop, pad=pad, fill=data.fill
    )
    mean, std = (by_channel(values, channels) for values in (recipe.mean or data.mean, recipe.std or data.std))
    return Input(preprocess=preprocess, mean=mean, std=std)


def by_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """As many as there are channels: greys repeated, or colours averaged."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def is_writing(data: DataSet) -> bool:
    """Whether a mirrored picture would be another thing."""
    return data.name in {"mnist5k", "mnist"}


# without batch norm the rate must be low
PLAIN = {
    *("alexnet", "alexnet_owt", "zfnet", "zfnet_wide", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("nin_cifar10", "nin_imagenet", "googlenet"),
}
# what ends with a ReLU, which dies before it has learnt anything, unless it starts high and sees all maps
ALIVE = {
    "nin_cifar10": {"init_ones": ("6.2.conv",), "dropout": 0.0},
    "nin_imagenet": {"init_ones": ("7.2.conv",), "dropout": 0.0},
}
# whose step is mostly the optimizer's, of so many weights
LARGE = {"alexnet": 64, "zfnet": 64, "vgg": 128}


def quick(card: Architecture, data: DataSet) -> Recipe:
    """For small data on a CPU: minutes rather than days."""
    small = data.edge is not None and card.smallest <= 32
    recipe = Recipe(
        source="ours, for small data",
        edge=32 if small else card.small,
        optimizer="adamw",
        lr=3e-4 if card.name in PLAIN or card.family == "vgg" else 2e-3,  # VGG's 4096-wide layers have no batch norm
        warmup_epochs=0.5,
        weight_decay=5e-2,
        batch=LARGE.get(card.family, 32),
        epochs=12,
        shift=2,
        flip=True,
    )
    if card.name == "lenet5":
        return replace(
            recipe,
            source="ours; input and loss of the paper (section III, equation 9), not its Levenberg-Marquardt",
            mean=(0.1 / 1.275,),  # background -0.1
            std=(1 / 1.275,),  # and ink 1.175
            lr=3e-3,
            warmup_epochs=1,
            weight_decay=1e-2,
            epochs=15,
            shift=1,
            loss="map",
            precision="fp32",
        )
    if card.name == "nin_cifar10":
        return override(recipe, {"lr": 2e-4, **ALIVE[card.name]})
    if card.name == "nin_imagenet":
        return override(recipe, {"lr": 1e-4, "warmup_epochs": 2, **ALIVE[card.name]})
    if card.name == "lenet5_modern":
        return replace(recipe, lr=3e-3, weight_decay=1e-2, epochs=15, shift=1, precision="fp32")
    if card.name == "resnet20_cifar":
        return replace(
            recipe,
            optimizer="nesterov",
            lr=0.1,
            warmup_epochs=1,
            weight_decay=1e-4,
            batch=64,
            epochs=12,
            precision="fp32",
        )
    return recipe


def modern(card: Architecture, data: DataSet) -> Recipe:
    """One recipe for every network, but for those without batch norm, for comparison."""
    recipe = Recipe(
        source="torchvision's training recipe of 2021 (pytorch.org/blog/how-to-train-state-of-the-art-models-using-"
        "torchvision-latest-primitives), without its mixup, cutmix, random erasing, weight averaging and 600 epochs",
        edge=card.small if data.edge else None,
        optimizer="sgd",
        lr=0.01 if card.name in PLAIN else 0.125,
        warmup_epochs=5,
        weight_decay=2e-5,
        label_smoothing=0.1,
        batch=256,
        epochs=100,
        area=None if data.edge else (0.08, 1),
        trivial=True,
        shift=(data.edge or 0) // 8,
        flip=True,
    )
    return override(recipe, ALIVE.get(card.name, {}))


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with its schedule drawn together to so many epochs."""
    share = epochs / recipe.epochs
    return replace(
        recipe,
        epochs=epochs,
        warmup_epochs=recipe.warmup_epochs * share,
        factor=recipe.factor ** (1 / share) if recipe.schedule == "exponential" else recipe.factor,
        patience=max(1, round(recipe.patience * share)),
    )


def override(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """The recipe with single values replaced; RecipeError if there is no such value, or it cannot be."""
    known = {field.name for field in fields(Recipe)}
    for key in values:
        if key not in known:
            raise RecipeError(f"a recipe has no {key!r}; it has {', '.join(sorted(known))}")
    try:
        overridden = TypeAdapter(Recipe).validate_python({**asdict(recipe), **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{first['loc'][0]}: {first['msg']}") from error
    if overridden.optimizer == "nesterov" and not overridden.momentum:
        raise RecipeError("momentum: nesterov needs some")
    return overridden


def as_json(value: str) -> object:
    """What the text means as JSON; or itself."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
