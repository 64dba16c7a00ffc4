"""Locust users that send real images and check the answers; each model is a row.

Stands alone: `locust -f loadtest/locustfile.py --host http://localhost:3000 --models lenet5,senet154`
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import requests
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastResponse
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
logger = logging.getLogger(__name__)


class ScenarioError(Exception):
    """A run that cannot start: a model that is not served, or no images."""


@dataclass(frozen=True)
class LabelledImage:
    """A file's bytes; its label is the name of its folder."""

    body: bytes
    label: str


@dataclass
class Score:
    """The well-formed answers: how many named the image's label, and how many ms each took; and the failures."""

    right: int = 0
    failures: int = 0
    times_ms: list[float] = field(default_factory=list)


@dataclass
class Scenario:
    """What a run sends, model after model and image after image, and what came of it."""

    models: Iterator[str]
    images: dict[str, Iterator[LabelledImage]]
    scores: dict[str, Score]

    def only(self, model: str) -> Scenario:
        """One model of them, going on with its images, its score anew."""
        return Scenario(itertools.repeat(model), {model: self.images[model]}, {model: Score()})


def read_images(folder: Path) -> list[LabelledImage]:
    """Every image of a folder with a sub-folder a label, shuffled by a fixed seed; ScenarioError if there is none."""
    paths = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ScenarioError(f"no images in {folder}/<label>/; `python -m training images mnist5k` writes some")
    random.Random(0).shuffle(paths)  # noqa: S311 (no secret)
    return [LabelledImage(path.read_bytes(), path.parent.name) for path in paths]


def make_scenario(host: str, models: list[str], folder: Path) -> Scenario:
    """Read the images and ask the server for each model; ScenarioError names what is not there."""
    images = read_images(folder)
    for model in models:
        try:
            answer = requests.post(f"{host}/classify", params={"model": model}, data=images[0].body, timeout=60)
        except requests.RequestException as error:
            raise ScenarioError(f"no server at {host}: {error}") from error
        if not answer.ok:
            raise ScenarioError(f"{host} does not serve {model}: {answer.text}")
    return Scenario(
        itertools.cycle(models),
        {model: itertools.cycle(images) for model in models},
        {model: Score() for model in models},
    )


class Classifier(FastHttpUser):
    """Asks without a pause, each time the next model with its next image."""

    wait_time = constant(0)
    scenario: ClassVar[Scenario | None] = None

    @task
    def classify(self) -> None:
        """One request; an answer that is not well formed is a failure, a wrong class is not."""
        scenario = self.scenario
        if scenario is None:
            raise StopUser
        model = next(scenario.models)
        image = next(scenario.images[model])
        score = scenario.scores[model]
        path, body = f"/classify?model={model}&top_k=1", image.body
        started = time.perf_counter()
        with self.client.post(path, data=body, name=model, catch_response=True) as response:  # type: ignore[arg-type]
            try:
                label = read_label(response)
            except ValueError as error:
                score.failures += 1
                response.failure(str(error))
                return
        score.times_ms.append((time.perf_counter() - started) * 1000)
        score.right += label == image.label


def read_label(response: FastResponse) -> str:
    """The most probable label; ValueError if there is no well-formed answer."""
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


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Our own options, on the command line and on Locust's page."""
    parser.add_argument("--models", default="lenet5", help="names of models, separated by commas")
    parser.add_argument("--images", default="images/mnist5k", help="folder of images, a sub-folder a label")


def prepare(environment: Environment, **_: Any) -> None:
    """Make the run's scenario, or say why there is none and end."""
    Classifier.scenario = None
    runner, options = environment.runner, environment.parsed_options
    if runner is None or options is None:
        return
    try:
        if not environment.host:
            raise ScenarioError("--host is missing")
        Classifier.scenario = make_scenario(environment.host, options.models.split(","), Path(options.images))
    except ScenarioError as error:
        logger.error("%s", error)
        environment.process_exit_code = 2
        if isinstance(runner, WorkerRunner):
            return  # its master ends the run
        if environment.web_ui is None:
            sys.exit(2)
        runner.quit()


def report_accuracy(**_: Any) -> None:
    """Log how often each model was right; of several processes each its own share."""
    for model, score in Classifier.scenario.scores.items() if Classifier.scenario else ():
        if answers := len(score.times_ms):
            logger.info("%s: %.2f %% of %d answers right", model, 100 * score.right / answers, answers)


events.init_command_line_parser.add_listener(add_options)
events.test_start.add_listener(prepare)
events.test_stop.add_listener(report_accuracy)
