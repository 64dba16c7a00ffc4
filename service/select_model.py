"""Choice of a model for `model=auto`, by accuracy and expected time at the current load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from engines.published.manifest import Accuracy
from service.context import ServerContext
from service.errors import Problem
from service.loading import ServedModel
from service.scheduler import EngineQueue, Overloaded
from service.schema import Candidate, Choice

AUTO = "auto"
T = TypeVar("T")


class Option(NamedTuple):
    """Loaded model with held-out accuracy and the expected time to an answer now."""

    model: ServedModel
    queue: EngineQueue
    accuracy: Accuracy
    expected_ms: float

    def candidate(self) -> Candidate:
        """Return the option as a part of an answer."""
        manifest = self.model.manifest
        return Candidate(
            model=manifest.tag,
            precision=self.queue.engine.precision,
            top1=self.accuracy.top1,
            macs=manifest.complexity.macs,
            expected_ms=round(self.expected_ms, 3),
        )


def accuracy_of(model: ServedModel, precision: str) -> Accuracy | None:
    """Return the held-out accuracy in a precision, else in fp32, else None."""
    accuracy = model.manifest.accuracy
    return accuracy.get(precision) or accuracy.get("fp32")


def comparable(models: Iterable[ServedModel]) -> list[ServedModel]:
    """Return the models with the same labels as the newest model, newest first."""
    newest_first = sorted(models, key=lambda model: model.manifest.created, reverse=True)
    return [model for model in newest_first if model.manifest.labels == newest_first[0].manifest.labels]


def options(server: ServerContext, dataset: str) -> list[Option]:
    """Return the loaded models of a data set whose held-out accuracy is known."""
    loaded = []
    for model in comparable(server.catalog.ready(dataset)):
        queue = model.chosen.queue
        if queue and (accuracy := accuracy_of(model, queue.engine.precision)):
            expected_s = server.decoders.wait_s() + server.decoders.mean_s + server.scheduler.expected_answer_s(queue)
            loaded.append(Option(model, queue, accuracy, 1000 * expected_s))
    return loaded


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

    Only models with at least `min_accuracy` count. Raises Problem 422 if both parameters are None or no model could
    ever qualify, Problem 409 if all published models are of other data sets, Problem 503 if no model is loaded, and
    Overloaded if no model is fast enough at the current load.
    """
    if max_latency_ms is None and min_accuracy is None:
        raise Problem(422, "invalid_parameter", "model=auto needs max_latency_ms or min_accuracy")
    known = options(server, dataset)
    if not known:
        datasets = sorted(server.catalog.datasets - {dataset})
        if dataset not in server.catalog.datasets and datasets:
            near = [f"{AUTO}@{name}" for name in datasets]
            detail = f"no published model is of {dataset}; there are {', '.join(near)}"
            raise Problem(409, "no_weights", detail, near=near)
        detail = f"no loaded model of {dataset} has a known accuracy"
        raise Problem(503, "no_choice", detail, headers={"Retry-After": "1"})
    best = max(known, key=lambda option: option.accuracy.top1)
    accurate = [option for option in known if option.accuracy.top1 >= (min_accuracy or 0)]
    if not accurate:
        detail = f"the most accurate of {dataset}, {best.model.manifest.tag}, has {best.accuracy.top1:.1%}"
        raise Problem(422, "no_choice", f"no model is accurate enough: {detail}")
    paretos = front(known, lambda option: option.accuracy.top1, lambda option: option.expected_ms)
    if max_latency_ms is None:
        chosen = min(accurate, key=lambda option: option.expected_ms)
        reason = (
            f"the fastest now, {chosen.expected_ms:.1f} ms, of the models with a top-1 of {min_accuracy:.1%} or more"
        )
    else:
        chosen = within_budget(server, accurate, max_latency_ms)
        reason = (
            f"the most accurate, {chosen.accuracy.top1:.1%}, of the models expected within {max_latency_ms:g} ms now"
        )
    return chosen.model, Choice(reason=reason, front=[option.candidate() for option in paretos])


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
        return max(in_time, key=lambda option: (option.accuracy.top1, -option.expected_ms))
    fastest = min(accurate, key=lambda option: option.expected_ms)
    tag = fastest.model.manifest.tag
    reason = f"the fastest that is accurate enough, {tag}, would take {fastest.expected_ms:.1f} ms"
    if 1000 * min(option.queue.cost.uncorrected_s for option in accurate) > max_latency_ms:
        raise Problem(422, "no_choice", f"no model is that fast: {reason}")
    server.decoders.forget()
    over_s = (fastest.expected_ms - max_latency_ms) / 1000
    raise Overloaded(f"no model is that fast now: {reason}", fastest.queue.depth, over_s)
