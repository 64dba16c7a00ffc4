"""Which model, when that is left to us: by accuracy and by time at this moment's load."""

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
    """A loaded model, and what is expected of it now."""

    model: ServedModel
    queue: EngineQueue
    accuracy: Accuracy
    expected_ms: float

    def told(self) -> Candidate:
        """For an answer."""
        entry = self.model.manifest
        return Candidate(
            model=entry.tag,
            precision=self.queue.engine.precision,
            top1=self.accuracy.top1,
            macs=entry.complexity.macs,
            expected_ms=round(self.expected_ms, 3),
        )


def accuracy_of(model: ServedModel, precision: str) -> Accuracy | None:
    """Held-out accuracy in a precision; where it was not measured in it, in fp32."""
    accuracy = model.manifest.accuracy
    return accuracy.get(precision) or accuracy.get("fp32")


def comparable(models: Iterable[ServedModel]) -> list[ServedModel]:
    """Those that tell the same classes apart as the newest does."""
    newest_first = sorted(models, key=lambda model: model.manifest.created, reverse=True)
    return [model for model in newest_first if model.manifest.labels == newest_first[0].manifest.labels]


def options(server: ServerContext, dataset: str) -> list[Option]:
    """The loaded models of a data set of which a held-out accuracy is known."""
    found = []
    for model in comparable(server.catalog.ready(dataset)):
        queue = model.chosen.queue
        if queue and (accuracy := accuracy_of(model, queue.engine.precision)):
            expected_s = server.decoders.wait_s() + server.decoders.mean_s + server.scheduler.expected_wait_s(queue)
            found.append(Option(model, queue, accuracy, 1000 * expected_s))
    return found


def front(items: Iterable[T], better: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """Return the Pareto front by (cost, better), cheapest first."""
    found: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -better(item))):
        if not found or better(item) > better(found[-1]):
            found.append(item)
    return found


def choose_model(
    server: ServerContext, dataset: str, max_latency_ms: float | None, min_accuracy: float | None
) -> tuple[ServedModel, Choice]:
    """The most accurate model that is expected to answer in time; without a budget the fastest that is accurate enough.

    Problem 422 if neither is given or no model could ever do, 503 if none can at this moment's load, or none is loaded.
    """
    if max_latency_ms is None and min_accuracy is None:
        raise Problem(422, "invalid_parameter", "model=auto needs max_latency_ms or min_accuracy")
    known = options(server, dataset)
    if not known:
        detail = f"no model of {dataset} is loaded of which an accuracy is known"
        raise Problem(503, "no_choice", detail, headers={"Retry-After": "1"})
    best = max(known, key=lambda option: option.accuracy.top1)
    accurate = [option for option in known if option.accuracy.top1 >= (min_accuracy or 0)]
    if not accurate:
        detail = f"the most accurate of {dataset}, {best.model.manifest.tag}, has {best.accuracy.top1:.1%}"
        raise Problem(422, "no_choice", f"no model is accurate enough: {detail}")
    paretos = front(known, lambda option: option.accuracy.top1, lambda option: option.expected_ms)
    if max_latency_ms is None:
        chosen = min(accurate, key=lambda option: option.expected_ms)
        reason = f"the fastest now, {chosen.expected_ms:.1f} ms, of those with a top-1 of {min_accuracy:.1%} or more"
    else:
        chosen = within_budget(server, accurate, max_latency_ms)
        reason = f"the most accurate, {chosen.accuracy.top1:.1%}, of those expected within {max_latency_ms:g} ms now"
    return chosen.model, Choice(reason=reason, front=[option.told() for option in paretos])


def within_budget(server: ServerContext, accurate: list[Option], max_latency_ms: float) -> Option:
    """The most accurate that is expected in time, the faster of two; Overloaded, or Problem 422, if none is."""
    now = server.scheduler.clock()
    for option in accurate:
        if option.expected_ms > max_latency_ms:
            option.queue.cost.forget(now)
    in_time = [option for option in accurate if option.expected_ms <= max_latency_ms]
    if in_time:
        return max(in_time, key=lambda option: (option.accuracy.top1, -option.expected_ms))
    fastest = min(accurate, key=lambda option: option.expected_ms)
    told = f"the fastest that is accurate enough, {fastest.model.manifest.tag}, would take {fastest.expected_ms:.1f} ms"
    if 1000 * min(option.queue.cost.alone_s for option in accurate) > max_latency_ms:
        raise Problem(422, "no_choice", f"no model is that fast: {told}")
    server.decoders.forget()
    over_s = (fastest.expected_ms - max_latency_ms) / 1000
    raise Overloaded(f"no model is that fast now: {told}", fastest.queue.depth, over_s)
