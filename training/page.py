"""Page of an evaluation: accuracy, calibration, confusion matrix, and the worst pictures with their class maps."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file

from engines.published import files, store
from engines.published.manifest import WEIGHTS, Manifest
from engines.published.preprocess import Preprocess
from engines.runtimes.torch import FromPixels, Normalise
from models.zoo import ZOO
from training import checkpoint, plot
from training.class_maps import class_maps
from training.data import DataSet
from training.errors import TrainingError
from training.evaluate import probabilities, reliability
from training.input import Input
from training.machine import machine_errors
from training.significance import wilson

WORST = 24  # pictures on the page
EDGE = 160  # pixels of a picture on the page
STYLE = """
body { font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; }
figure.pictures { width: 30em; } figcaption { font-size: 14px; } img { max-width: 100%; }
"""


class Evaluated(NamedTuple):
    """Model that was evaluated: its name, labels and preprocessing; logits, (N, classes), of the held-out images."""

    model: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    logits: NDArray[np.float32]


def write_page(
    evaluated: Evaluated, module: FromPixels, data: DataSet, confusion: NDArray[np.int64], page: Path
) -> None:
    """Write the page as one HTML file; `confusion` counts images by true and predicted class."""
    model, labels, _, logits = evaluated
    targets = data.held_out.targets
    right = int((logits.argmax(1) == targets).sum())
    low, high = wilson(right, len(targets))
    title = f"{model} on {data.name}"
    calibration = plot.calibration("calibration", reliability(logits, targets))
    matrix = plot.encoded(plot.confusion_figure("confusion", confusion, labels), "png")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{right} of {len(targets)} held-out pictures are right: top-1 {right / len(targets):.1%}, on other "
        f"pictures {low:.1%} to {high:.1%} (95 %). {len(labels)} classes. Split: {escape(data.split)}.</p>",
        figure(png_source(calibration), "Share of right answers by confidence; on the dashed line both are the same."),
        figure(png_source(matrix), "True class down, predicted across."),
        f"<h2>The {min(WORST, len(targets))} worst pictures</h2>",
        "<p>As the network sees them, the least probable right answers first; then in red what speaks for the class "
        "that was answered, and for the right one.</p>",
        *worst(evaluated, module, data),
    ]
    with machine_errors(page):
        files.write(page, "\n".join(parts))


def worst(evaluated: Evaluated, module: FromPixels, data: DataSet) -> list[str]:
    """Return a figure for each of the pictures whose right class is the least probable."""
    _, labels, preprocess, logits = evaluated
    shares, targets = probabilities(logits), data.held_out.targets
    chosen = np.argsort(shares[np.arange(len(targets)), targets], kind="stable")[:WORST].astype(np.int64)
    pixels, answers = data.held_out.pixels(preprocess, chosen), shares[chosen].argmax(1).astype(np.int64)
    maps = [class_maps(module, pixels, classes) for classes in (answers, targets[chosen])]
    figures = []
    for number, index in enumerate(chosen.tolist()):
        picture, answer, target = pixels[number], int(answers[number]), int(targets[index])
        pictures = [picture, *(in_red(picture, of_class[number]) for of_class in maps)]
        caption = (
            f"{labels[target]} ({shares[index, target]:.0%}), answered {labels[answer]} ({shares[index, answer]:.0%})"
        )
        images = "".join(f"<img width={EDGE} src='{png_source(png(each))}'>" for each in pictures)
        caption = f"<figcaption>{escape(caption)}; {escape(data.held_out.pictures.name(index))}</figcaption>"
        figures.append(f"<figure class=pictures>{images}{caption}</figure>")
    return figures


def in_red(picture: NDArray[np.uint8], strength: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture, (height, width, channels), in which red has up to six tenths where a map, 0 to 1, is high."""
    colour = np.broadcast_to(picture, (*picture.shape[:2], 3)).astype(np.float32)
    share, red = 0.6 * strength[..., None], np.array((255, 0, 0), np.float32)
    mixed: NDArray[np.uint8] = ((1 - share) * colour + share * red).round().astype(np.uint8)
    return mixed


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture, (height, width, channels), as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).save(file, "PNG")
    return file.getvalue()


def png_source(content: bytes) -> str:
    """Return a PNG as the source of an `img`."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def figure(source: str, caption: str) -> str:
    """Return a figure with its caption, as HTML."""
    return f"<figure><img src='{source}'><figcaption>{escape(caption)}</figcaption></figure>"


def module_of(model: str, published: Manifest | None) -> FromPixels:
    """Return the torch network of a checkpoint's folder, or of a published model."""
    if published is None:
        return checkpoint.network(Path(model), checkpoint.load(Path(model)))
    if published.architecture not in ZOO or "input" not in published.provenance:
        raise TrainingError(f"--page: {published.tag} does not say how its network is made: publish it again")
    net = ZOO[published.architecture].build(len(published.labels))
    net.load_state_dict(load_file(store.folder_of(published.tag) / WEIGHTS))
    known = TypeAdapter(Input).validate_python(published.provenance["input"])
    return FromPixels(net, Normalise(known.mean, known.std))
