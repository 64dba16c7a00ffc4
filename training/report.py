"""Report of an evaluation: text, and a picture of the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.published import store
from engines.published.manifest import Accuracy, Manifest, ManifestError
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import Engine
from engines.runtimes.registry import EngineSpec, open_engine
from engines.runtimes.torch import torch_engine
from training import checkpoint, data, plot
from training.errors import TrainingError
from training.evaluate import evaluate, held_out_logits
from training.machine import check_writable
from training.page import Evaluated, module_of, write_page
from training.significance import warnings


def report(model: str, spec: str | None, precision: str, picture: Path | None = None, page: Path | None = None) -> str:
    """Evaluate a checkpoint's folder or a published model's tag; return text, and plot the confusion matrix.

    `page` becomes an HTML page with the worst pictures. A published model's accuracy on the held-out images of its own
    data set is kept in its manifest. Raises TrainingError if the model does not exist or its classes differ from the
    data set's.
    """
    engine, preprocess, labels, trained_on, split, published = opened(model, precision)
    picture = picture or picture_of(model)
    plot.check_picture(picture, "--picture names another file")  # an evaluation may take long
    if page:
        check_writable(page.parent, "--page names another file")
    data_set = data.load(spec or trained_on)
    if split and data_set.spec == trained_on:
        data_set.check_split(split)
    # ImageNet's classes have one order and several spellings.
    compare_labels = data_set.name != "imagenet" or trained_on != "imagenet"
    same = data_set.labels == labels if compare_labels else len(data_set.labels) == len(labels)
    if not same:
        raise TrainingError(f"{model} has {len(labels)} classes, {data_set.name} {len(data_set.labels)}, not the same")
    logits = held_out_logits(engine, data_set.held_out, preprocess)
    evaluation = evaluate(logits, data_set.held_out.targets)
    title = f"{model} on {data_set.name}: true class down, predicted across"
    plot.confusion(title, evaluation.confusion, labels, picture)
    if page:
        write_page(
            Evaluated(model, labels, preprocess, logits),
            module_of(model, published),
            data_set,
            evaluation.confusion,
            page,
        )
    accuracy = Accuracy(top1=evaluation.top1, images=evaluation.images)
    lines = [
        f"{model} on {engine.runtime}, {engine.precision}: {evaluation.images} held-out images of {data_set.name}",
        f"top-1              {evaluation.top1:.2%}",
        f"top-5              {evaluation.top5:.2%}",
        f"calibration error  {evaluation.calibration_error:.2%}",
        "",
        *by_class(evaluation.per_class, labels),
        "",
        f"confusion matrix: {picture}",
        *([f"page: {page}"] if page else []),
        *(f"WARNING: {warning}" for warning in warnings(accuracy, data_set.held_out.targets)),
    ]
    # Another copy of the data set may be split otherwise, and may hold out what the network was trained on here.
    if published and data_set.name == published.dataset and (not split or data_set.spec == trained_on):
        lines.append(keep(published.tag, engine.precision, accuracy))
    return "\n".join(lines)


def by_class(shares: NDArray[np.float64], labels: Sequence[str]) -> Iterator[str]:
    """Yield a line with the top-1 of each class, the worst first, those without held-out pictures last."""
    known = [(share, label) for share, label in zip(shares, labels, strict=True) if not np.isnan(share)]
    yield from (f"{share:7.2%}  {label}" for share, label in sorted(known))
    yield from (f"      -  {label}" for share, label in zip(shares, labels, strict=True) if np.isnan(share))


def keep(tag: str, precision: str, accuracy: Accuracy) -> str:
    """Keep an accuracy in a published model's manifest; return a line on it, also if the store cannot be written."""
    try:
        store.keep_accuracy(tag, precision, accuracy)
    except ManifestError as error:
        return f"WARNING: not kept for model=auto and /pareto: {error}"
    except OSError as error:
        return f"WARNING: not kept for model=auto and /pareto: {error.filename} cannot be written: {error.strerror}"
    return f"kept in the manifest of {tag}: model=auto and /pareto compare by it"


def picture_of(model: str) -> Path:
    """Return the default path of a confusion matrix: in the checkpoint's folder, or in `results` for a tag."""
    if Path(model).is_dir():
        return Path(model) / "confusion.png"
    return Path("results") / f"confusion-{model.replace(':', '-')}.png"


class Opened(NamedTuple):
    """Engine to evaluate, its preprocessing and labels, its training data and, if known, how the data were split.

    `published` is None for a checkpoint.
    """

    engine: Engine
    preprocess: Preprocess
    labels: tuple[str, ...]
    data: str
    split: str | None
    published: Manifest | None


def opened(model: str, precision: str) -> Opened:
    """Open a published model by its tag, or a checkpoint by its folder. Raises TrainingError for neither."""
    published = {each.manifest.tag: each for each in store.published()}
    if model in published:
        manifest = published[model].manifest
        provenance = manifest.provenance
        engine = open_engine(published[model], EngineSpec("openvino", precision))
        split = None if provenance.get("imported") else provenance.get("split")
        data_spec = provenance.get("data", manifest.dataset)
        return Opened(engine, manifest.preprocess, manifest.labels, data_spec, split, manifest)
    folder = Path(model)
    if not folder.exists():
        raise TrainingError(
            f"{model} is neither a checkpoint's folder nor a tag; tags: {', '.join(published) or 'none'}"
        )
    saved = checkpoint.load(folder)
    engine = torch_engine(checkpoint.network(folder, saved))
    split = saved.split if saved.recipe else None
    return Opened(engine, saved.input.preprocess, saved.labels, saved.data, split, None)
