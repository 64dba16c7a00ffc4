"""What is known of an architecture before any weights exist: plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where an architecture was published; `id` is an arXiv number or a DOI."""

    title: str
    authors: str
    year: int
    id: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """A result that a paper or its authors' code states, in the unit that `metric` names."""

    metric: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One variant of a family.

    `input_shape` is the paper's (channels, height, width), `classes` its number of classes;
    `build(classes)` makes the network with fresh weights, drawn from torch's global generator.
    """

    name: str
    family: str
    paper: Paper
    input_shape: tuple[int, int, int]
    classes: int
    build: Callable[[int], nn.Module]
    published: tuple[Published, ...] = ()
