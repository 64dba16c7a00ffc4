"""Tests of `python -m training import NAME --random`: a network to time, which nobody takes for a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.runtimes.openvino import OpenVINOEngine
from tests.conftest import Run, only_model
from training import checkpoint
from training.data import sample_pixels
from training.errors import CheckpointError
from training.random_weights import random_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "resnet20_cifar"])
def test_random_weights_are_the_same_each_time_and_can_be_published(name: str, run: Run, tmp_path: Path) -> None:
    run("training", "import", name, "--random", "--out", tmp_path / "one")
    again = random_checkpoint(name, tmp_path / "two")
    assert checkpoint.load(tmp_path / "one").weights.sha256 == again.weights.sha256
    run("training", "publish", tmp_path / "one", "--precisions", "fp32", BENTOML_HOME=str(tmp_path / "home"))
    model = only_model(tmp_path / "home")
    assert model.manifest.tag.startswith(f"{name}:random-")
    assert (model.manifest.labels[:2], model.manifest.accuracy) == (("class 0", "class 1"), {})
    assert model.manifest.complexity.input_shape[1:] == (32, 32)
    assert model.manifest.provenance["imported"]["top1"] is None
    logits = OpenVINOEngine(model.folder / "model.onnx", "fp32").infer(sample_pixels(model.manifest.preprocess))
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_a_folder_with_a_checkpoint_and_a_file_are_refused(run: Run, tmp_path: Path) -> None:
    random_checkpoint("lenet5", tmp_path / "one")
    with pytest.raises(CheckpointError, match="holds a checkpoint: --out names another folder"):
        random_checkpoint("lenet5", tmp_path / "one")
    refused = run("training", "import", "lenet5", "--random", "--file", "weights.pth", check=False)
    assert "--random is of a NAME, without --file" in refused.stderr
