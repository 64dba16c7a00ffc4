"""New family of architectures: one file in models/ and one line in zoo.py carry it to the service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from tests.serving import ROOT, serving
from training.data import DataSet

FAMILY = '''
"""Tiny network of one convolution."""

from torch import nn

from models.card import Architecture, Paper


def build(classes: int) -> nn.Module:
    """Return 3x3/2, BN, ReLU, mean over the map, linear."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


ARCHITECTURES = (
    Architecture(
        name="tinynet",
        family="tinynet",
        paper=Paper(title="A Tiny Network", authors="Nobody", year=2026, id="none"),
        input_shape=(3, 32, 32),
        classes=10,
        smallest=8,
        small=32,
        build=build,
    ),
)
'''


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Copy of the project with a family more: one file, and one line in zoo.py."""
    for folder in ("models", "engines", "training", "service"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models" / "tinynet.py").write_text(FAMILY)
    zoo = tmp_path / "models" / "zoo.py"
    zoo.write_text(zoo.read_text().replace('    "resnext",\n', '    "resnext",\n    "tinynet",\n'))
    return tmp_path


@pytest.mark.slow
def test_a_new_family_is_one_file_and_one_line(house: Path, digits: DataSet) -> None:
    environment = {"PYTHONPATH": str(house), "BENTOML_HOME": str(house / "bentoml"), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, stdin: str = "") -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, cwd=house, env=os.environ | environment, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    parameters = 8 * 3 * 9 + 2 * 8 + 8 * 10 + 10
    assert str(parameters) in run("models", "tinynet")
    run("training", "tinynet", "--data", "mnist5k", "--epochs", "1")
    published = run("training", "publish", "checkpoints/tinynet-mnist5k", "--precisions", "fp32")
    assert "published tinynet:mnist5k-" in published
    run("service.architectures", stdin=run("models", "--json", "--layers"))  # `make architectures`
    picture = BytesIO()
    digits.held_out.pictures[0].save(picture, format="PNG")
    with serving("service.app:ConvServe", cwd=house, **environment) as (client, _):
        answer = client.post(
            "/classify?model=tinynet", content=picture.getvalue(), headers={"Content-Type": "image/png"}
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"] in digits.labels
