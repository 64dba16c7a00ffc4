"""Networks to time, and a model store with one of them: linked to the user's store, or made with random weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from engines.published import manifest, store
from engines.published.manifest import ManifestError
from engines.published.store import PublishedModel
from loadtest.peers.launch import ROOT, SET_BY_USER
from loadtest.traffic import ScenarioError

CARDS = ROOT / "service" / "architectures.json"
IMAGENET = "ImageNet"
EXPORTED = {"fp32", "fp16"}  # precisions that have a graph of their own; bf16 runs that of fp32
SPACE = 6  # times the bytes of the weights: checkpoint, published model, fp16, compiled engines
SERVER = {"CONVSERVE_LOAD": "first_use", "CONVSERVE_TUNE": "off", "CONVSERVE_TIMEOUT_S": "60"}


@dataclass(frozen=True)
class Network:
    """Architecture to time; `real` is the user's own published model with ImageNet weights, or None."""

    card: dict[str, Any]
    real: PublishedModel | None

    @property
    def name(self) -> str:
        """Architecture's name on its card."""
        return str(self.card["name"])

    @property
    def weights(self) -> Literal["random", "imported"]:
        """Origin of the weights: the user's store, or torch's random ones."""
        return "imported" if self.real else "random"

    @property
    def published_top1(self) -> tuple[float, str] | None:
        """First published top-1 for ImageNet, as a fraction, with source and protocol."""
        for result in self.card["published"]:
            if result["data"] == IMAGENET and result["top1"] is not None:
                return round(result["top1"] / 100, 5), f"{result['source']}: {result['protocol']}"
        return None

    def why_not(self, precision: str) -> str | None:
        """Return why the network is not timed at a precision, or None if it may be."""
        if self.real and precision not in self.real.manifest.precisions:
            return f"{self.real.manifest.tag} is not published in {precision}"
        if not self.real and precision == "int8":
            return "INT8 is timed with imported weights only: its layers in float depend on the weights"
        return None


def networks(names: Sequence[str]) -> list[Network]:
    """Return the networks of these names, or all of ImageNet's if there are none, in the lecture's order.

    Raises ScenarioError for an unknown name.
    """
    cards = {card["name"]: card for card in json.loads(CARDS.read_text())}
    for name in names:
        if name not in cards:
            near = get_close_matches(name, cards)
            hint = f"is {' or '.join(near)} meant?" if near else "`python -m models` lists them"
            raise ScenarioError(f"--models: there is no network {name}; {hint}")
    real = {
        model.manifest.architecture: model
        for model in sorted(store.published(), key=lambda model: model.manifest.created)
        if model.manifest.dataset == "imagenet"
    }
    chosen = [
        card
        for card in cards.values()
        if (card["name"] in names if names else any(result["data"] == IMAGENET for result in card["published"]))
    ]
    return [Network(card, real.get(card["name"])) for card in chosen]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of commands on the model store in `home`, with few of the user's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CONVSERVE_") or name in {*SET_BY_USER, "CONVSERVE_DEVICES"}
    }
    return kept | SERVER | {"BENTOML_HOME": str(home.resolve())}


@contextmanager
def stored(network: Network, precisions: Sequence[str], home: Path, keep: bool) -> Iterator[str]:
    """Yield the network's tag in a model store in `home`, which is removed afterwards unless `keep`.

    A model of the user's store is linked, and nothing is written there. Raises ScenarioError if the model cannot be
    made.
    """
    try:
        yield link(network.real, home) if network.real else make(network, precisions, home)
    finally:
        for folder in [home] if not keep else [home / "convserve-engines", home / "checkpoint"]:
            shutil.rmtree(folder, ignore_errors=True)


def link(real: PublishedModel, home: Path) -> str:
    """Link a model of the user's store into the store in `home`, and return its tag."""
    tag = real.manifest.tag
    shutil.rmtree(home / "models", ignore_errors=True)
    folder = home / "models" / tag.replace(":", "/")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(real.folder.resolve(), target_is_directory=True)
    return tag


def make(network: Network, precisions: Sequence[str], home: Path) -> str:
    """Publish the network with random weights in the store in `home` unless it is there, and return its tag."""
    if (tag := made(network, precisions, home)) is None:
        check_space(home, SPACE * network.card["param_bytes"])
        checkpoint = home / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        graphs = ",".join(sorted({"fp32"} | (EXPORTED & {*precisions})))
        command(home, "training", "import", network.name, "--random", "--out", str(checkpoint.resolve()))
        command(home, "training", "publish", str(checkpoint.resolve()), "--precisions", graphs)
        shutil.rmtree(checkpoint)
        tag = made(network, precisions, home)
    assert tag
    return tag


def made(network: Network, precisions: Sequence[str], home: Path) -> str | None:
    """Return the tag of the network with random weights in the store in `home`, or None without such a model."""
    for folder in home.glob(f"models/{network.name}/random-*"):
        with suppress(ManifestError):
            published = manifest.load(folder)
            if {*precisions} <= {*published.precisions}:
                return published.tag
    return None


def check_space(home: Path, needed: int) -> None:
    """Raise ScenarioError if the disk of `home` has less than `needed` bytes free."""
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < needed:
        raise ScenarioError(f"{home}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed: make room")


def command(home: Path, *arguments: str) -> str:
    """Run `python -m ...` on the store in `home` and return the output. Raises ScenarioError with its last line."""
    done = subprocess.run(  # noqa: S603 (this project's own commands)
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise ScenarioError(f"python -m {' '.join(arguments[:3])}: {said[-1].removeprefix('error: ')}")
    return done.stdout
