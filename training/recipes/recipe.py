"""Recipe: the values of one training, stored whole with every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from training.errors import RecipeError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Edge = Annotated[int, Field(ge=224)]
HEAD_ONLY = "head-only"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Values of one training; `source` says where they come from and what is left out.

    **Input.** `edge`: edge of the network's square input in pixels, or None for the paper's. `mean` and `std`: a pixel
    p (0 to 255) enters as (p / 255 - mean) / std, one value per channel; None for the data set's.

    **Optimisation.** `batch` is the batch size over all processes together. `lr` is the peak learning rate, reached by
    a linear warm-up; then `schedule` lowers the rate: "cosine" to zero; "steps" by `factor` at each of `drops`, shares
    of all epochs; "exponential" by `factor` an epoch; "plateau" by `factor` when held-out top-1 has not risen for
    `patience` epochs, at most `falls` times. `clip` bounds the norm of all gradients. `precision` holds for the forward
    and the backward pass; weights and optimizer are always float32. `norm_decay`: weight decay is for batch norms too.
    `accumulate`: parts in which each batch is computed, one after another, before one step. `ema`: share of all epochs
    over which weights are averaged exponentially; the averages are measured and saved. `stop_after`: epochs without a
    new best top-1 after which the training ends.

    **Fine-tuning.** `freeze`: layers that are never trained, "none", "stem", "stage1" and so on (the stage and all
    before), or "head-only", which trains the head alone. `head_epochs`: epochs at the start that train the head alone;
    the rest is a phase of its own, with its own warm-up and schedule, whose rate is `body` times `lr`.

    **Loss.** `auxiliary` is the weight of each auxiliary head's loss, where the network has such heads. `balanced`:
    classes weigh as if they had the same number of images. `distil` is the weight of a teacher's answers, softened by
    `temperature`; that of the targets is 1 - `distil`.

    **Network.** None keeps the values of the network's own file. `init_std`: weights are drawn from N(0, init_std²),
    biases are 0, or 1 in the layers of `init_ones`. `zero_init_residual`: the weights of each residual block's last
    batch norm start at 0, and so every block as its shortcut (arXiv:1706.02677, section 5.1). `dropout` is the rate of
    every dropout layer. `survival` is the probability with which stochastic depth keeps the last block in training.

    **Augmentation**, in this order. `area`: a random part of the picture, with a share of its area within these bounds
    and an aspect of 3/4 to 4/3. Or `shorter_edge`: resized to within these bounds for an input of 224, else in
    proportion, then cropped at a random place. `trivial`: one random operation (TrivialAugment). `rotation`: degrees,
    each way. `jitter`: brightness, contrast and saturation, each by this share. `lighting`: standard deviation of
    AlexNet's colour noise along the principal components of ImageNet's pixels. `shift`: pixels, each way, padded with
    the data set's fill, or by reflection if `reflect`. `flip`: half of the images, left to right. `mixup` and `cutmix`:
    alphas of the mixing of images; with both, each batch draws one of them. `erasing`: share of images of which a
    rectangle becomes the mean colour.
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
    norm_decay: bool = True
    accumulate: Count = 1
    ema: BelowOne = 0
    stop_after: Count | None = None

    freeze: str = "none"
    head_epochs: Annotated[int, Field(ge=0)] = 0
    body: Positive = 1

    loss: Literal["cross_entropy", "map"] = "cross_entropy"
    label_smoothing: BelowOne = 0
    auxiliary: NotNegative = 0.3
    balanced: bool = False
    distil: Share = 0
    temperature: Positive = 4

    init_std: Positive | None = None
    init_ones: tuple[str, ...] = ()
    zero_init_residual: bool = False
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
    mixup: NotNegative = 0
    cutmix: NotNegative = 0
    erasing: Share = 0


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Return the recipe with its schedule compressed to `epochs` epochs; the last is never one of the head alone."""
    share = epochs / recipe.epochs
    head_epochs = min(max(1, round(recipe.head_epochs * share)), epochs - 1) if recipe.head_epochs else 0
    return replace(
        recipe,
        epochs=epochs,
        head_epochs=head_epochs,
        warmup_epochs=recipe.warmup_epochs * share,
        factor=recipe.factor ** (1 / share) if recipe.schedule == "exponential" else recipe.factor,
        patience=max(1, round(recipe.patience * share)),
        stop_after=recipe.stop_after and max(1, round(recipe.stop_after * share)),
    )


def override(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """Return the recipe with some values replaced. Raises RecipeError for an unknown name or an invalid value."""
    known = {field.name for field in fields(Recipe)}
    for key in values:
        if key not in known:
            raise RecipeError(f"a recipe has no {key!r}; it has {', '.join(sorted(known))}")
    try:
        overridden = TypeAdapter(Recipe).validate_python({**asdict(recipe), **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{first['loc'][0]}: {first['msg']}") from error
    if overridden.freeze != HEAD_ONLY and overridden.head_epochs >= overridden.epochs:
        raise RecipeError(
            f"head_epochs: {overridden.head_epochs} of {overridden.epochs} epochs leave none for the other layers; "
            f"--freeze {HEAD_ONLY} trains the head alone"
        )
    if overridden.optimizer == "nesterov" and not overridden.momentum:
        raise RecipeError("momentum: nesterov needs some")
    return overridden


def as_json(value: str) -> object:
    """Return the value that the text has as JSON, or the text itself if it is not JSON."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
