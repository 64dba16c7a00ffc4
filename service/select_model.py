"""Choice of a model for `model=auto`, by accuracy and expected time at the current load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from service.accuracy import Comparables, compared, said
from service.admission import EngineQueue, Overloaded
from service.context import ServerContext
from service.errors import Problem
from service.loading import ServedModel
from service.schema import Candidate, Choice, RatedModel

AUTO = "auto"
T = TypeVar("T")


class Option(NamedTuple):
    """Loaded model with its accuracy and the expected time to an answer now."""

    model: ServedModel
    queue: EngineQueue
    rated: RatedModel
    expected_ms: float

    @property
    def top1(self) -> float:
        """Top-1 accuracy, 0 to 1, of the kind by which all options are compared."""
        return self.rated.top1

    def candidate(self) -> Candidate:
        """Return the option as a part of an answer."""
        return Candidate(**vars(self.rated), expected_ms=round(self.expected_ms, 3))


def expected_ms(server: ServerContext, queue: EngineQueue) -> float:
    """Return the expected milliseconds to an answer at the current load: decoding, waiting and inference."""
    decoding_s = server.decoders.wait_s() + server.decoders.mean_s
    return 1000 * (decoding_s + server.scheduler.expected_answer_s(queue))


def options(server: ServerContext, comparables: Comparables) -> list[Option]:
    """Return the comparable models as options, as far as they are loaded."""
    loaded = ((model, model.chosen.queue, rated) for model, rated in comparables.rated)
    return [Option(model, queue, rated, expected_ms(server, queue)) for model, queue, rated in loaded if queue]


def front(items: Iterable[T], better: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """Return the Pareto front by (cost, better), cheapest first."""
    pareto: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -better(item))):
        if not pareto or better(item) > better(pareto[-1]):
            pareto.append(item)
    return pareto


def choose_model(
    server: ServerContext, dataset: str, max_latency_ms: float | None, min_accuracy: float | None
) -> tuple[ServedModel, Choice]:
    """Return the most accurate model expected to answer within `max_latency_ms`, or without it the fastest model.

    Only models with at least `min_accuracy` count, and only those whose accuracies are of one kind. Raises Problem 422
    if both parameters are None or no model could ever qualify, Problem 409 if all published models are of other data
    sets, Problem 503 if no loaded model has a known accuracy, and Overloaded if no model is fast enough at the current
    load.
    """
    if max_latency_ms is None and min_accuracy is None:
        raise Problem(422, "invalid_parameter", "model=auto needs max_latency_ms or min_accuracy")
    comparables = compared(server.catalog.ready(dataset))
    known, kind = options(server, comparables), comparables.kind
    if not known or kind is None:
        raise nothing_known(server, dataset, comparables)
    best = max(known, key=lambda option: option.top1)
    accurate = [option for option in known if option.top1 >= (min_accuracy or 0)]
    if not accurate:
        detail = f"the most accurate of {dataset}, {best.model.manifest.tag}, has {best.top1:.1%}"
        raise Problem(422, "no_choice", f"no model is accurate enough: {detail}")
    paretos = front(known, lambda option: option.top1, lambda option: option.expected_ms)
    if max_latency_ms is None:
        chosen = min(accurate, key=lambda option: option.expected_ms)
        reason = (
            f"the fastest now, {chosen.expected_ms:.1f} ms, of the models with a top-1 of {min_accuracy:.1%} or more"
        )
    else:
        chosen = within_budget(server, accurate, max_latency_ms)
        reason = f"the most accurate, {chosen.top1:.1%}, of the models expected within {max_latency_ms:g} ms now"
    return chosen.model, Choice(
        reason=f"{reason}; top-1 {said(chosen.rated, kind)}",
        accuracy=kind,
        front=[option.candidate() for option in paretos],
        not_compared=comparables.left_out,
    )


def nothing_known(server: ServerContext, dataset: str, comparables: Comparables) -> Problem:
    """Return the problem of a data set without a loaded model of known accuracy: 409 if all are of other data sets.

    Else Problem 503, which names the first model and the command that makes its accuracy known, or loads it.
    """
    datasets = sorted(server.catalog.datasets - {dataset})
    if dataset not in server.catalog.datasets and datasets:
        near = [f"{AUTO}@{name}" for name in datasets]
        detail = f"no published model is of {dataset}; there are {', '.join(near)}"
        return Problem(409, "no_weights", detail, near=near)
    detail = f"no loaded model of {dataset} has a known accuracy"
    if comparables.left_out:
        tag, reason = next(iter(comparables.left_out.items()))
        detail += f"; {tag}: {reason}"
    elif dataset in server.catalog.datasets:
        detail += "; none is loaded: a request that names one loads it, as does a start with CONVSERVE_LOAD=start"
    return Problem(503, "no_choice", detail, headers={"Retry-After": "1"})


def within_budget(server: ServerContext, accurate: list[Option], max_latency_ms: float) -> Option:
    """Return the most accurate option within the budget, the faster of two equals.

    Raises Overloaded if no option is within the budget at the current load, Problem 422 if none would be when idle.
    """
    now = server.scheduler.clock()
    for option in accurate:
        if option.expected_ms > max_latency_ms:
            option.queue.cost.forget(now)
    in_time = [option for option in accurate if option.expected_ms <= max_latency_ms]
    if in_time:
        return max(in_time, key=lambda option: (option.top1, -option.expected_ms))
    fastest = min(accurate, key=lambda option: option.expected_ms)
    tag = fastest.model.manifest.tag
    reason = f"the fastest that is accurate enough, {tag}, would take {fastest.expected_ms:.1f} ms"
    if 1000 * min(option.queue.cost.uncorrected_s for option in accurate) > max_latency_ms:
        raise Problem(422, "no_choice", f"no model is that fast: {reason}")
    server.decoders.forget()
    over_s = (fastest.expected_ms - max_latency_ms) / 1000
    raise Overloaded(f"no model is that fast now: {reason}", fastest.queue.depth, over_s)
