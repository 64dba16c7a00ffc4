"""Schemas of the answers of all routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from engines.measured.records import Fidelity, Speed
from engines.published.manifest import Accuracy
from models.card import Paper, Published
from models.cost import Complexity, Totals

Status = Literal["published", "loading", "ready", "failed"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of an architecture before any weights exist."""

    # A `top1` or `top5` that the source lacks is sent as null, never left out.
    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)

    name: str
    family: str
    year: int
    paper: Paper
    published: list[Published]


@dataclass(frozen=True, kw_only=True)
class ArchitectureCard(Card, Totals):
    """Card of an architecture with its total cost at the paper's input: an item of architectures.json."""


class Prediction(BaseModel):
    """A class and its probability, by softmax."""

    index: int
    label: str
    probability: float


class Timing(BaseModel):
    """Milliseconds by stage: decoding and preprocessing, waiting for the device, the batch's inference."""

    decode: float
    queue: float
    inference: float


class Candidate(BaseModel):
    """A model that `auto` may choose: held-out accuracy, predicted time to an answer at this moment's load."""

    model: str
    precision: str
    top1: float
    macs: int
    expected_ms: float


class Choice(BaseModel):
    """Why `auto` chose as it did, and the front: the models of which none is both more accurate and faster."""

    reason: str
    front: list[Candidate]


class Classification(BaseModel):
    """The answer to /classify; `model` is the full tag, `predictions` start with the most probable."""

    model: str
    runtime: str
    precision: str
    predictions: list[Prediction]
    batch_size: int
    timing_ms: Timing
    choice: Choice | None = None


class ProblemDetails(BaseModel):
    """Every error, as application/problem+json (RFC 9457); `code` is stable."""

    title: str
    status: int
    code: str
    detail: str


class Compared(BaseModel):
    """What one model makes of the image, or the `problem` that kept it from it; held-out accuracy, cost of an image."""

    model: str
    macs: int
    params: int
    top1: float | None = None
    answer: Classification | None = None
    problem: ProblemDetails | None = None


class Comparison(BaseModel):
    """The answer to /compare: whether all that answered name the same class, and each of them."""

    agree: bool
    models: list[Compared]


class EngineSummary(BaseModel):
    """An engine that was verified or timed on this machine, and why it is not taken unasked, if it is not."""

    runtime: str
    precision: str
    problem: str | None
    fidelity: Fidelity | None
    benchmark: list[Speed]


class PublishedModelSummary(BaseModel):
    """Weights that can be served; `accuracy` is by precision, on images held out of `dataset`."""

    tag: str
    dataset: str
    accuracy: dict[str, Accuracy]
    status: Status
    runtime: str | None
    precision: str | None
    memory_mb: float | None
    error: str | None
    engines: list[EngineSummary]


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Card, Totals):
    """An architecture's card, its cost at the paper's input, and what is published of it."""

    models: list[PublishedModelSummary]


class ModelComplexity(BaseModel):
    """Cost at the paper's input, and by tag at each published model's own where that differs."""

    paper: Complexity
    models: dict[str, Complexity]


class Percentiles(BaseModel):
    """Milliseconds."""

    p50: float
    p90: float
    p99: float


class Latency(BaseModel):
    """Live figures of one model, of its last requests, at most 1,000, by stage; and what the benchmark found here."""

    requests: int
    stages_ms: dict[str, Percentiles]
    benchmark: list[Speed]


class ModelLatency(BaseModel):
    """By tag."""

    models: dict[str, Latency]


class ParetoPoint(BaseModel):
    """One published model; times are None until it is loaded.

    `alone_ms` is the predicted inference of one image, `expected_ms` the predicted time to an answer at this moment's
    load, `live_ms` what recent requests took; `front` names the costs at which no other is both better and cheaper.
    """

    model: str
    precision: str
    top1: float
    images: int
    macs: int
    params: int
    alone_ms: float | None
    expected_ms: float | None
    live_ms: Percentiles | None
    front: list[Literal["macs", "params", "latency"]]


class Pareto(BaseModel):
    """Accuracy against cost, of models whose accuracies may be compared: held out of one data set, the same labels."""

    dataset: str
    models: list[ParetoPoint]
