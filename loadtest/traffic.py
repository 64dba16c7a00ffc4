"""Traffic of a load run: real images for one or several models, and the check of an answer."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from locust.contrib.fasthttp import FastResponse

    from loadtest.server import Server

LOOKS_S = 1.1  # seconds until a server reads its model store again
UNPUBLISHED = {requests.codes.not_found, requests.codes.conflict}
PASSED_OVER = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}


class ScenarioError(Exception):
    """Raised when a run cannot start or cannot be measured: a model that is not served, no images, no answers."""


@dataclass(frozen=True)
class LabelledImage:
    """Bytes of an image file, with the name of its folder as label."""

    body: bytes
    label: str


class Traffic:
    """Endless sequence of (model, image). Models are drawn by weight; the same seed draws the same sequence."""

    def __init__(self, weights: Mapping[str, float], images: dict[str, Iterator[LabelledImage]], seed: int = 0) -> None:
        self.weights, self.images = weights, images
        self._models = list(weights)
        self._cumulative = list(itertools.accumulate(weights.values()))
        self._random = random.Random(seed)  # noqa: S311 (no secret)

    def __next__(self) -> tuple[str, LabelledImage]:
        (model,) = self._random.choices(self._models, cum_weights=self._cumulative)
        return model, next(self.images[model])


def read_weights(text: str) -> dict[str, float]:
    """Parse `vgg19=1,lenet5=20`, or names alone for equal weights. Raises ScenarioError for anything else."""
    weights = {}
    for part in text.split(","):
        name, equals, weight = part.partition("=")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise ScenarioError(f"--models: {weight!r} is no weight of {name}") from None
        if not name or not 0 < weights[name] < float("inf"):
            raise ScenarioError(f"--models: {part!r} is not a name, or a name and its weight, such as lenet5=20")
    return weights


def read_images(folder: Path) -> list[LabelledImage]:
    """Return the images of FOLDER/LABEL/, shuffled by a fixed seed. Raises ScenarioError if there are none."""
    paths = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES and is_meant(path, folder))
    if not paths:
        raise ScenarioError(f"no images in {folder}/<label>/; `python -m training images mnist5k` writes some")
    random.Random(0).shuffle(paths)  # noqa: S311 (no secret)
    return [LabelledImage(path.read_bytes(), legible(path.parent.name)) for path in paths]


def is_meant(path: Path, folder: Path) -> bool:
    """Report whether a path below `folder` is a file, and neither hidden nor what macOS, Synology or Windows add."""
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith(".") or part in PASSED_OVER for part in parts)


def legible(name: str) -> str:
    r"""Return a file's name with each byte that is not UTF-8 as `\xfc`, as training names its labels."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_of(model: str, precision: str | None = None) -> str:
    """Return the path and query that classify an image by a model, in a precision if one is named."""
    return f"/classify?model={model}&top_k=1" + (f"&precision={precision}" if precision else "")


def probe(server: Server, path: str, body: bytes) -> Any:
    """Send one request and return the JSON of the answer. Raises ScenarioError with the server's reason.

    A server looks for models once a second, so that a model that was published a moment ago is asked for again.
    """
    for wait_s in (LOOKS_S, 0):
        try:
            answer = requests.post(f"{server}{path}", data=body, headers=server.headers, timeout=60)
        except requests.RequestException as error:
            raise ScenarioError(f"no server at {server}: {error}") from error
        if answer.status_code not in UNPUBLISHED:
            break
        time.sleep(wait_s)
    if not answer.ok:
        raise ScenarioError(f"{path}: {server.problem(answer)}")
    try:
        return answer.json()
    except ValueError:
        raise ScenarioError(f"{server} is no convserve: its answer to {path} is not JSON") from None


def make_traffic(
    server: Server, weights: Mapping[str, float], folder: Path, seed: int = 0, precision: str | None = None
) -> Traffic:
    """Read the images and send one request to each model. Raises ScenarioError if a model or the images are missing."""
    images = read_images(folder)
    for model in weights:
        probe(server, path_of(model, precision), images[0].body)
    return Traffic(weights, {model: itertools.cycle(images) for model in weights}, seed)


def read_label(response: FastResponse) -> str:
    """Return the most probable label. Raises ValueError if the answer is not well formed."""
    if response.status_code != requests.codes.ok:
        raise ValueError(f"{response.status_code}: {response.text or getattr(response, 'error', None)}"[:200])
    try:
        (prediction,) = response.json()["predictions"]
        label, probability = prediction["label"], prediction["probability"]
        if 0 <= probability <= 1:
            return str(label)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"malformed answer: {response.text}"[:200])
