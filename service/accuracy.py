"""Accuracies that models are compared by: measured by this project, or published by the authors of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import sqrt
from typing import NamedTuple

from engines.measured.records import Fidelity
from engines.published.imagenet import IMAGENET
from engines.published.manifest import Accuracy, Manifest
from service.loading import ServedModel
from service.schema import AccuracyKind, Agreement, RatedModel

NORMAL = 1.96  # standard deviations of a 95 % interval


class Comparables(NamedTuple):
    """Models whose accuracies are comparable, newest first, and the reason for each other model, by its tag."""

    kind: AccuracyKind | None
    rated: list[tuple[ServedModel, RatedModel]]
    left_out: dict[str, str]


def accuracy_of(model: ServedModel, precision: str) -> Accuracy | None:
    """Return the measured accuracy in a precision, else in fp32, else None."""
    accuracy = model.manifest.accuracy
    return accuracy.get(precision) or accuracy.get("fp32")


def compared(models: Iterable[ServedModel]) -> Comparables:
    """Return the models that can be compared with the newest: the same classes, and one kind of accuracy.

    The kind is the one that is known of most models, of equals the measured one. A model whose accuracy is
    both measured and published is compared by the kind that the others have.
    """
    newest_first = sorted(models, key=lambda model: model.manifest.created, reverse=True)
    alike = [model for model in newest_first if classes(model.manifest) == classes(newest_first[0].manifest)]
    ratings = {model: ratings_of(model) for model in alike}
    count = Counter(kind for rating in ratings.values() for kind in rating)
    kind = max(count, key=lambda kind: (count[kind], kind.kind == "measured"), default=None)
    left_out = {}
    rated = []
    for model in newest_first:
        rating = ratings.get(model)
        if rating is None:
            left_out[model.manifest.tag] = f"its classes are not those of {newest_first[0].manifest.tag}"
        elif kind in rating:
            rated.append((model, rating[kind]))
        else:
            left_out[model.manifest.tag] = remedy(model, kind, rating)
    return Comparables(kind, rated, left_out)


def classes(manifest: Manifest) -> tuple[str, ...] | int:
    """Return the identity of a model's classes: their names, or for ImageNet their number."""
    return len(manifest.labels) if manifest.dataset == IMAGENET else manifest.labels


def ratings_of(model: ServedModel) -> dict[AccuracyKind, RatedModel]:
    """Return the model's accuracies by kind, in the precision of the default engine, which is fp32 until one is loaded.

    A published accuracy, which is of fp32, counts in another precision only if `verify` found the engine faithful.
    """
    precision, manifest, fidelity = precision_of(model), model.manifest, fidelity_of(model)
    ratings = {}

    def rate(kind: AccuracyKind, top1: float, images: int, found_in: str, source: str | None) -> None:
        ratings[kind] = RatedModel(
            model=manifest.tag,
            precision=precision,
            top1=top1,
            images=images,
            top1_precision=found_in,
            source=source,
            agreement=agreement(fidelity) if fidelity and found_in != precision else None,
            macs=manifest.complexity.macs,
        )

    if measured := accuracy_of(model, precision):
        found_in = precision if precision in manifest.accuracy else "fp32"
        kind = AccuracyKind(kind="measured", protocol=f"held-out images of {manifest.dataset}")
        rate(kind, measured.top1, measured.images, found_in, None)
    if (published := manifest.published) and (precision == "fp32" or (fidelity and not fidelity.problem)):
        kind = AccuracyKind(kind="published", protocol=published.protocol)
        rate(kind, published.top1, published.images, "fp32", published.source)
    return ratings


def precision_of(model: ServedModel) -> str:
    """Return the precision of a model's default engine, fp32 if none is loaded."""
    return model.chosen.queue.engine.precision if model.chosen.queue else "fp32"


def fidelity_of(model: ServedModel) -> Fidelity | None:
    """Return what `verify` found on this machine of a model's default engine, None if nothing or if none is loaded."""
    if not model.chosen.queue:
        return None
    engine = model.chosen.queue.engine
    found = (
        record.fidelity
        for record in model.records
        if (record.runtime, record.precision) == (engine.runtime, engine.precision)
    )
    return next(found, None)


def agreement(fidelity: Fidelity) -> Agreement:
    """Return the agreement of an engine with fp32 torch, with the upper end of Wilson's 95 % interval of the rest."""
    images, differing, square = fidelity.images, 1 - fidelity.agreement, NORMAL**2
    spread = NORMAL * sqrt(differing * (1 - differing) / images + square / (4 * images**2))
    lost = (differing + square / (2 * images) + spread) / (1 + square / images)
    return Agreement(share=fidelity.agreement, images=images, lost_at_most=round(lost, 4))


def remedy(model: ServedModel, wanted: AccuracyKind | None, known: Iterable[AccuracyKind]) -> str:
    """Return the reason why a model with accuracies of the kinds `known` has none of the kind that is compared.

    The reason ends in the command that changes that. `wanted` is None if no model has an accuracy of any kind.
    """
    manifest, precision, fidelity = model.manifest, precision_of(model), fidelity_of(model)
    if precision != "fp32" and manifest.published and (not wanted or wanted.protocol == manifest.published.protocol):
        if fidelity and fidelity.problem:
            return f"{precision}: {fidelity.problem}"
        hint = f"python -m engines verify {manifest.tag}"
        return f"its {precision} is not verified here, so its published top-1 may not hold: {hint}"
    path = f" --data {IMAGENET}:PATH" if manifest.dataset == IMAGENET else ""
    command = f"python -m training evaluate {manifest.tag}{path} measures one"
    if not wanted:
        return f"no top-1 is known, neither measured nor published; {command}"
    missing = f"no top-1 {wanted.kind}: {wanted.protocol}"
    if any(kind.kind == "measured" for kind in known):
        return f"{missing}; one is measured, but more models have a published one"
    return f"{missing}; {command}"


def said(rated: RatedModel, kind: AccuracyKind) -> str:
    """Return a clause on where a model's top-1 comes from, and on what the engine's own precision may lose of it."""
    clause = f"{kind.kind}: {kind.protocol}"
    if rated.precision == rated.top1_precision:
        return clause
    of_which = f"{clause}, in {rated.top1_precision}"
    if rated.agreement is None:
        return f"{of_which}; {rated.precision} is not verified here"
    agrees = f"agrees on {rated.agreement.share:.1%} of {rated.agreement.images} pictures"
    lost = f"at most {rated.agreement.lost_at_most:.1%} lost, at 95 % confidence"
    return f"{of_which}; {rated.precision} {agrees}: {lost}"
