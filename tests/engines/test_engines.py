"""Tests that every runtime returns torch's logits at every batch size, and of the errors of opening an engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engines.published import manifest
from engines.published.manifest import ManifestError
from engines.published.preprocess import Preprocess
from engines.published.store import PublishedModel
from engines.runtimes import onnxruntime, openvino, torch
from engines.runtimes.engine import EngineError
from engines.runtimes.onnxruntime import ONNXRuntimeEngine
from engines.runtimes.openvino import OpenVINOEngine, core
from engines.runtimes.registry import RUNTIMES, EngineSpec, Runtime, make_engine, open_engine
from tests.serving import ROOT


def test_the_table_of_runtimes_names_the_precisions_of_each_module() -> None:
    assert RUNTIMES["openvino"].precisions == tuple(openvino.PRECISIONS)
    assert RUNTIMES["onnxruntime"].precisions == onnxruntime.PRECISIONS
    assert RUNTIMES["torch"].precisions == RUNTIMES["torch_compile"].precisions == tuple(torch.DTYPES)


@pytest.mark.parametrize("batch", [1, 3, 32, 256])
@pytest.mark.parametrize(
    "runtime", ["openvino", "onnxruntime", "torch", pytest.param("torch_compile", marks=pytest.mark.slow)]
)
def test_fp32_returns_torchs_logits(lenet5: PublishedModel, runtime: Runtime, batch: int) -> None:
    verification = load_file(lenet5.folder / manifest.VERIFICATION)
    engine = open_engine(lenet5, EngineSpec(runtime, "fp32"))
    assert (engine.runtime, engine.precision) == (runtime, "fp32")
    expected = verification["logits"][:batch]
    logits = engine.infer(verification["pixels"][:batch])
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.skipif(
    "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="no bf16 on this processor"
)
def test_bf16_differs_from_fp32_and_agrees(lenet5: PublishedModel) -> None:
    verification = load_file(lenet5.folder / manifest.VERIFICATION)
    logits = open_engine(lenet5, EngineSpec("openvino", "bf16")).infer(verification["pixels"])
    assert not np.array_equal(logits, open_engine(lenet5, EngineSpec("openvino", "fp32")).infer(verification["pixels"]))
    assert (logits.argmax(1) == verification["logits"].argmax(1)).mean() >= 0.98


def test_a_graph_that_contradicts_its_manifest_is_refused(lenet5: PublishedModel) -> None:
    eleven = lenet5.manifest.model_copy(update={"labels": tuple("0123456789a")})
    with pytest.raises(EngineError, match="has 11 labels, but its graph returns"):
        open_engine(PublishedModel(lenet5.folder, eleven), EngineSpec("openvino", "fp32"))
    larger = lenet5.manifest.model_copy(update={"preprocess": Preprocess(mode="L", resize_edge=40, crop=40)})
    with pytest.raises(EngineError, match="cannot run lenet5:mnist5k-"):
        open_engine(PublishedModel(lenet5.folder, larger), EngineSpec("openvino", "fp32"))


def test_null_returns_zeros(lenet5: PublishedModel) -> None:
    logits = open_engine(lenet5, EngineSpec("null", "fp32")).infer(np.zeros((3, 32, 32, 1), np.uint8))
    assert logits.shape == (3, 10)
    assert not logits.any()


def test_an_error_names_the_command_that_installs_a_runtime(
    lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "engines.runtimes.onnxruntime", None)
    with pytest.raises(EngineError, match=r"onnxruntime is not installed here .*: pip install '\.\[training\]'"):
        open_engine(lenet5, EngineSpec("onnxruntime", "fp32"))


def test_an_error_names_an_unknown_precision(lenet5: PublishedModel) -> None:
    with pytest.raises(EngineError, match="there is no precision 'fp64'; there are fp32, bf16, fp16, int8"):
        open_engine(lenet5, EngineSpec("openvino", "fp64"))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_or_is_refused(lenet5: PublishedModel, runtime: Runtime, precision: str) -> None:
    verification = load_file(lenet5.folder / manifest.VERIFICATION)
    try:
        engine = make_engine(lenet5, EngineSpec(runtime, precision))
    except EngineError as error:
        assert precision in str(error)  # noqa: PT017
        return
    logits = engine.infer(verification["pixels"])
    assert logits.dtype == np.float32
    assert (logits.argmax(1) == verification["logits"].argmax(1)).mean() >= 0.98


@pytest.mark.parametrize("engine", [OpenVINOEngine, ONNXRuntimeEngine])
def test_an_error_names_an_invalid_onnx_file(engine: type[OpenVINOEngine | ONNXRuntimeEngine], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"cannot (compile|read) .*model\.onnx"):
        engine(path, "fp32")


def test_a_damaged_file_is_refused(lenet5: PublishedModel, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(lenet5.folder, folder)
    (folder / manifest.ONNX).write_bytes((folder / manifest.ONNX).read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"model.onnx is not the file"):
        open_engine(PublishedModel(folder, lenet5.manifest), EngineSpec("openvino", "fp32"))


DELETED_IN_ANOTHER_THREAD = """
import os, signal, sys, threading
from pathlib import Path
from engines.runtimes.openvino import OpenVINOEngine

signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
engines = [OpenVINOEngine(Path(sys.argv[1]), "fp32")]
thread = threading.Thread(target=engines.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_process_outlives_its_engines(lenet5: PublishedModel) -> None:
    command = [sys.executable, "-c", DELETED_IN_ANOTHER_THREAD, str(lenet5.folder / manifest.ONNX)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n")
