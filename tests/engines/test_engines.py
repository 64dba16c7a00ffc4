"""Engines answer as torch did, whatever the batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest
from safetensors.numpy import load_file

from engines import manifest
from engines.engine import EngineError
from engines.manifest import ManifestError
from engines.openvino import OpenVINOEngine
from engines.preprocess import Preprocess
from engines.runtime import open_engine
from engines.store import PublishedModel


@pytest.mark.parametrize("batch", [1, 3, 32, 256])
def test_openvino_fp32_gives_torchs_logits(lenet5: PublishedModel, batch: int) -> None:
    verification = load_file(lenet5.folder / manifest.VERIFICATION)
    engine = open_engine(lenet5, "openvino", "fp32")
    expected = verification["logits"][:batch]
    logits = engine.infer(verification["pixels"][:batch])
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="no bf16 on this processor"
)
def test_bf16_is_another_computation_and_agrees(lenet5: PublishedModel) -> None:
    verification = load_file(lenet5.folder / manifest.VERIFICATION)
    logits = open_engine(lenet5, "openvino", "bf16").infer(verification["pixels"])
    assert not np.array_equal(logits, open_engine(lenet5, "openvino", "fp32").infer(verification["pixels"]))
    assert (logits.argmax(1) == verification["logits"].argmax(1)).mean() >= 0.98


def test_a_graph_that_does_not_fit_its_manifest_is_not_opened(lenet5: PublishedModel) -> None:
    eleven = lenet5.manifest.model_copy(update={"labels": tuple("0123456789a")})
    with pytest.raises(EngineError, match="has 11 labels, but its graph gives"):
        open_engine(PublishedModel(lenet5.folder, eleven), "openvino", "fp32")
    larger = lenet5.manifest.model_copy(update={"preprocess": Preprocess(mode="L", resize_edge=40, crop=40)})
    with pytest.raises(EngineError, match="cannot run lenet5:mnist5k-"):
        open_engine(PublishedModel(lenet5.folder, larger), "openvino", "fp32")


def test_null_answers_zeros(lenet5: PublishedModel) -> None:
    logits = open_engine(lenet5, "null", "fp32").infer(np.zeros((3, 32, 32, 1), np.uint8))
    assert logits.shape == (3, 10)
    assert not logits.any()


def test_an_unknown_precision_is_named(lenet5: PublishedModel) -> None:
    with pytest.raises(EngineError, match="there is no precision 'fp64'; there are fp32, bf16, fp16, int8"):
        open_engine(lenet5, "openvino", "fp64")


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"cannot compile .*model\.onnx"):
        OpenVINOEngine(path, "fp32")


def test_a_damaged_file_is_not_opened(lenet5: PublishedModel, tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    shutil.copytree(lenet5.folder, folder)
    (folder / manifest.ONNX).write_bytes((folder / manifest.ONNX).read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"model.onnx is not the file"):
        open_engine(PublishedModel(folder, lenet5.manifest), "openvino", "fp32")
