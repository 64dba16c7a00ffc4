"""Every scenario once, for seconds: whether all is answered, and each image as it is when it is asked alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from loadtest.load_run import LoadRun
from loadtest.measure import measure
from loadtest.scenarios import SCENARIOS
from loadtest.traffic import LabelledImage, ScenarioError, Traffic, path_of, probe, read_images

SECONDS, RATE, IMAGES = 2.0, 20.0, 32


def smoke(host: str, models: Sequence[str], folder: Path) -> None:
    """Prints a line a scenario and model; ScenarioError names what was not as it should be."""
    images = read_images(folder)[:IMAGES]
    wrong = []
    for model, (name, scenario) in itertools.product(models, SCENARIOS.items()):
        alone = [LabelledImage(image.body, label_of(host, model, image)) for image in images]
        traffic = Traffic({model: 1}, {model: itertools.cycle(alone)})
        tally = measure(host, LoadRun(scenario, traffic, rate=RATE, seconds=SECONDS), scenario.in_flight or 1)
        other = tally.answers - tally.right
        print(f"{name}: {model}: {tally.answers} answers, {tally.failures} failed, {other} other than alone")
        lost = tally.sent - tally.answers - tally.failures - (scenario.in_flight or 0)  # a closed loop's end cuts those
        if tally.failures or other or lost > 0:
            wrong.append(f"{name} of {model}: {tally.failures} failed, {other} other than alone, {max(lost, 0)} lost")
    if wrong:
        raise ScenarioError("; ".join(wrong))


def label_of(host: str, model: str, image: LabelledImage) -> str:
    """What the model takes it for."""
    (prediction,) = probe(host, path_of(model), image.body)["predictions"]
    return str(prediction["label"])
