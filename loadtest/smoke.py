"""Smoke test of a server: every scenario once, with each answer compared to that for the same image alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from loadtest.load_run import LoadRun
from loadtest.measure import measure
from loadtest.scenarios import SCENARIOS
from loadtest.server import Server
from loadtest.traffic import LabelledImage, ScenarioError, Traffic, path_of, probe, read_images

SECONDS, RATE, IMAGES = 2.0, 20.0, 32


def smoke(server: Server, models: Sequence[str], folder: Path) -> None:
    """Print one line per scenario and model. Raises ScenarioError with every lost, failed or different answer."""
    images = read_images(folder)[:IMAGES]
    problems = []
    for model, (name, scenario) in itertools.product(models, SCENARIOS.items()):
        alone = [LabelledImage(image.body, label_of(server, model, image)) for image in images]
        traffic = Traffic({model: 1}, {model: itertools.cycle(alone)})
        run = LoadRun(scenario, traffic, headers=server.headers, rate=RATE, seconds=SECONDS)
        tally = measure(server.url, run, scenario.in_flight or 1)
        other = tally.answers - tally.right
        print(f"{name}: {model}: {tally.answers} answers, {tally.failures} failed, {other} other than alone")
        lost = tally.sent - tally.answers - tally.failures  # `measure` waits for open requests
        if tally.failures or other or lost:
            problems.append(f"{name} of {model}: {tally.failures} failed, {other} other than alone, {lost} lost")
    if problems:
        raise ScenarioError("; ".join(problems))


def label_of(server: Server, model: str, image: LabelledImage) -> str:
    """Return the label that the model predicts for the image alone."""
    (prediction,) = probe(server, path_of(model), image.body)["predictions"]
    return str(prediction["label"])
