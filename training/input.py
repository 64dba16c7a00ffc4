"""Input of a network: how pictures of a data set become pixels, and pixels numbers."""

from __future__ import annotations

from dataclasses import dataclass

from engines.published.preprocess import Preprocess
from models.card import Architecture
from training.data import DataSet
from training.errors import RecipeError
from training.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Input:
    """Input of a network: pixels by `preprocess`, then (p / 255 - mean) / std per channel."""

    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]


def input_of(card: Architecture, recipe: Recipe, data: DataSet, trained: Input | None = None) -> Input:
    """Return the input of `card`'s network for `data`: photos lose an eighth at the edges, small pictures nothing.

    The input `trained`, of weights to start from, is kept where the recipe states no size or statistics. Raises
    RecipeError if the recipe's edge is smaller than the network accepts.
    """
    channels = card.input_shape[0]
    edge = recipe.edge or card.input_shape[1]
    if edge < card.smallest:
        raise RecipeError(f"edge: {card.name} takes {card.smallest} pixels at least, not {edge}")
    if data.edge is None:
        resize, crop, pad = round(edge / 0.875), edge, 0
    elif 0 < edge - data.edge <= 4 and (edge - data.edge) % 2 == 0:
        # "centred in a 32x32 field" (LeNet-5's paper): digits keep their own 28 pixels.
        resize, crop, pad = data.edge, data.edge, (edge - data.edge) // 2
    else:
        resize, crop, pad = edge, edge, 0
    preprocess = Preprocess(
        mode="L" if channels == 1 else "RGB",
        resize_edge=resize,
        crop=crop,
        pad=pad,
        fill=data.fill,
        light_on_dark=data.light_on_dark,
    )
    if trained and recipe.edge is None:
        preprocess = trained.preprocess
    known = trained or data
    mean, std = (by_channel(values, channels) for values in (recipe.mean or known.mean, recipe.std or known.std))
    return Input(preprocess=preprocess, mean=mean, std=std)


def by_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return one value per channel: the grey value repeated, or the colours' mean."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
