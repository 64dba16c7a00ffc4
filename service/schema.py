"""Schemas of the answers of all routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from engines.measured.records import Fidelity, Speed
from engines.published.manifest import Accuracy, AuthorsAccuracy
from models.card import Paper, Published
from models.cost import Complexity, Totals

Status = Literal["published", "loading", "ready", "failed"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Card of an architecture: facts that are known before any weights exist."""

    # A `top1` or `top5` that the source lacks is sent as null, never left out.
    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)

    name: str
    family: str
    year: int
    paper: Paper
    published: list[Published]
    importable: str | None  # data set of the weights that `python -m training import` makes a checkpoint of


@dataclass(frozen=True, kw_only=True)
class ArchitectureCard(Card, Totals):
    """Card of an architecture with its total cost at the paper's input: an item of architectures.json."""


class Prediction(BaseModel):
    """Predicted class and its softmax probability; `wnid`, its id in WordNet, and `superclass` are ImageNet's only."""

    index: int
    label: str
    probability: float
    wnid: str | None = None
    superclass: str | None = None


class SuperclassProbability(BaseModel):
    """Superclass, such as dog or vehicle, and the sum of the probabilities of all its classes."""

    superclass: str
    probability: float


class Timing(BaseModel):
    """Milliseconds by stage: decoding with preprocessing, waiting in the queue, inference of the batch."""

    decode: float
    queue: float
    inference: float


@dataclass(frozen=True, kw_only=True)
class AccuracyKind:
    """Kind of accuracy, within which models are compared.

    `measured` by this project on held-out images of one data set, or `published` by the authors of imported weights by
    one protocol; `protocol` says which.
    """

    kind: Literal["measured", "published"]
    protocol: str


class Agreement(BaseModel):
    """Share of `images` for which an engine named the same class as fp32 torch, found on this machine by `verify`.

    At most `lost_at_most` of the top-1 is lost on pictures like these: the upper end of the 95 % interval (Wilson's) of
    the share without agreement.
    """

    share: float
    images: int
    lost_at_most: float


class RatedModel(BaseModel):
    """Model with its top-1 of `images`, found in `top1_precision`; `source` is of a published top-1, else null.

    `agreement` bounds what the engine loses in `precision` if `top1_precision` is another; null if not verified here.
    """

    model: str
    precision: str
    top1: float
    images: int
    top1_precision: str
    source: str | None
    agreement: Agreement | None
    macs: int


class Candidate(RatedModel):
    """Model that `auto` may choose, with its accuracy and the expected time to an answer at the current load."""

    expected_ms: float


class Choice(BaseModel):
    """Choice by `auto`: its reason, and the Pareto front of top-1 accuracy against expected time.

    Only models whose `accuracy` is of one kind compete; `not_compared` has the reason for each other loaded model.
    """

    reason: str
    accuracy: AccuracyKind
    front: list[Candidate]
    not_compared: dict[str, str]


class Classification(BaseModel):
    """Answer to /classify; `model` is the full tag, `predictions` start with the most probable class.

    A model of ImageNet has the most probable `superclasses` too.
    """

    model: str
    runtime: str
    precision: str
    predictions: list[Prediction]
    superclasses: list[SuperclassProbability] | None = None
    batch_size: int
    timing_ms: Timing
    choice: Choice | None = None


class ProblemDetails(BaseModel):
    """Error of any route, as application/problem+json (RFC 9457); `code` is stable."""

    title: str
    status: int
    code: str
    detail: str


class ImagePredictions(BaseModel):
    """Answer to one image of several, as in Classification."""

    predictions: list[Prediction]
    superclasses: list[SuperclassProbability] | None = None
    batch_size: int
    timing_ms: Timing


class Classifications(BaseModel):
    """Answer to /classify for several images: for each, in order, the answer, or a problem in its place."""

    model: str
    runtime: str
    precision: str
    images: list[ImagePredictions | ProblemDetails]
    choice: Choice | None = None


class Compared(BaseModel):
    """Answer of one model to the image, or its `problem`, with held-out top-1 accuracy, MACs and parameters.

    `model` is the full tag, or the requested name if no published model has that name; then there are no costs.
    """

    model: str
    macs: int | None = None
    params: int | None = None
    top1: float | None = None
    answer: Classification | None = None
    problem: ProblemDetails | None = None


class Comparison(BaseModel):
    """Answer to /compare; `agree` is true if all models that answered name the same class."""

    agree: bool
    models: list[Compared]


class PictureBox(BaseModel):
    """Part of the upright picture, in shares of its width and height; below 0 and above 1 lies padding."""

    left: float
    top: float
    right: float
    bottom: float


class Explanation(BaseModel):
    """Answer to /explain: how much each cell of a square grid over the part `seen` speaks for the class `explained`.

    `grid` has rows from the top. By `class_activation_map` a cell is its contribution to the logit, whose mean over all
    cells is the logit without the bias; by `occlusion` a cell is how much hiding the cell lowers the logarithm of the
    class's odds, p / (1 - p). `images` were run; `inference` is the time of all.
    """

    model: str
    runtime: str
    precision: str
    method: Literal["class_activation_map", "occlusion"]
    explained: Prediction
    grid: list[list[float]]
    seen: PictureBox
    images: int
    timing_ms: Timing


class EngineSummary(BaseModel):
    """Engine with its measurements on this machine; `problem` is the reason why `auto` must not choose the engine."""

    runtime: str
    precision: str
    problem: str | None
    fidelity: Fidelity | None
    benchmark: list[Speed]


class Tuning(BaseModel):
    """Self-tuning of a model: `reason` for the engine that serves, with the speeds of the engines that were compared.

    `running` is the engine that is being tried, `left` names the engines that are to be tried while the device is idle,
    and `failed` has the reason for each engine that cannot run here.
    """

    reason: str
    running: str | None
    left: list[str]
    failed: dict[str, str]


class PublishedModelSummary(BaseModel):
    """Published model and its state; `accuracy` is by precision, on held-out images of `dataset`.

    `published_accuracy` is what the authors of imported weights state for fp32.
    """

    tag: str
    dataset: str
    accuracy: dict[str, Accuracy]
    published_accuracy: AuthorsAccuracy | None
    status: Status
    runtime: str | None
    precision: str | None
    memory_mb: float | None
    error: str | None
    engines: list[EngineSummary]
    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Card, Totals):
    """Card of an architecture, its cost at the paper's input, and its published models.

    `unserved` has a line for each model in the store that the server cannot read.
    """

    models: list[PublishedModelSummary]
    unserved: list[str]


class ModelComplexity(BaseModel):
    """Cost at the paper's input, and by tag the cost of each published model whose input or classes differ."""

    paper: Complexity
    models: dict[str, Complexity]


class Percentiles(BaseModel):
    """Percentiles of a duration in milliseconds."""

    p50: float
    p90: float
    p99: float


class Latency(BaseModel):
    """Latency of one model: live, by stage, over the last `requests` (at most 1,000), and as benchmarked here."""

    requests: int
    stages_ms: dict[str, Percentiles]
    benchmark: list[Speed]


class ModelLatency(BaseModel):
    """Latency of each published model of an architecture, by tag."""

    models: dict[str, Latency]


class ParetoPoint(RatedModel):
    """Accuracy and costs of one published model; `alone_ms` and `expected_ms` are null until the model is loaded.

    `alone_ms` is the predicted inference time of one image, corrected by observation, `expected_ms` the expected time
    to an answer at the current load, `live_ms` the inference time of recent requests. `front` names the costs in which
    the model is on the Pareto front: no other model is at least as accurate at no higher cost.
    """

    params: int
    alone_ms: float | None
    expected_ms: float | None
    live_ms: Percentiles | None
    front: list[Literal["macs", "params", "latency"]]


class Pareto(BaseModel):
    """Accuracy against cost of models whose accuracies are comparable: one data set, the same labels, one kind.

    `accuracy` is null if no accuracy is known; `not_compared` has the reason for each other model of the data set.
    """

    dataset: str
    accuracy: AccuracyKind | None
    models: list[ParetoPoint]
    not_compared: dict[str, str]
