"""Tests of the Bento: it holds the service without torch, and answers the same in another place."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml
from bentoml._internal.bento.build_config import BentoPathSpec

from engines.published.imagenet import CLASSES
from engines.published.store import PublishedModel
from service.architectures import CARDS, LAYERS
from tests.conftest import Run
from tests.service.test_server import DIGIT, classify
from tests.serving import ROOT, serving


def test_the_bentos_packages_are_the_projects_dependencies_and_have_no_torch() -> None:
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert bento["python"]["packages"] == project["dependencies"]
    assert not any(package.startswith(("torch", "nvidia")) for package in project["dependencies"])


def test_the_bento_includes_the_architectures_their_layers_and_imagenets_classes() -> None:
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    packed = BentoPathSpec(bento["include"], bento["exclude"])
    assert all(packed.includes(str(file.relative_to(ROOT))) for file in (CARDS, LAYERS, CLASSES))
    assert CARDS.stat().st_size + LAYERS.stat().st_size < 400_000


def test_a_model_that_is_not_published_is_named(run: Run, lenet5: PublishedModel) -> None:
    done = run("service.pack", "lenet5", "senet154", check=False)
    assert done.returncode == 1
    assert "error: senet154 has no published weights" in done.stderr


@pytest.mark.slow
def test_a_bento_carried_elsewhere_answers_the_same(
    run: Run, server: httpx.Client, lenet5: PublishedModel, tmp_path: Path
) -> None:
    tag = run("service.pack", "lenet5").stdout.splitlines()[-1]
    exported = tmp_path / "convserve.bento"
    run("bentoml", "export", tag, exported)
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    environment = os.environ | {"BENTOML_HOME": str(home)}
    command = [sys.executable, "-m", "bentoml", "import", str(exported)]
    subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, check=True)
    requirements = next(home.glob("bentos/convserve/*/env/python/requirements.txt")).read_text()
    assert "openvino==" in requirements
    assert "torch" not in requirements
    with serving(tag, cwd=elsewhere, BENTOML_HOME=str(home)) as (client, _):
        costs = [source.get("/models/senet154/complexity").text for source in (server, client)]
        answers = [classify(source, DIGIT).json() for source in (server, client)]
    assert costs[0] == costs[1]
    for answer in answers:
        answer.pop("timing_ms")
    assert answers[0] == answers[1]
