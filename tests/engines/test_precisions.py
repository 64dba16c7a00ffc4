"""Tests of graphs of lower precision, and of their agreement with torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization.calibrate import HistogramCalibrater, MinMaxCalibrater
from PIL import Image

from engines.__main__ import main
from engines.measured.records import ScaledFidelity
from engines.measured.verify import compare
from engines.published import manifest
from engines.published.manifest import Calibration, ManifestError
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.machine import accelerator
from engines.runtimes.registry import graph_of
from tests.conftest import Run
from tests.processor import INT8_OVERFLOWS
from training.quantize import CALIBRATION_BATCH, METHODS, quantize


def test_int8_is_explicit_symmetric_and_by_channel_and_the_rest_is_half(lenet5_everywhere: PublishedModel) -> None:
    graph = onnx.load(graph_of(lenet5_everywhere, "int8")).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    users = {name: node for node in graph.node for name in node.input}
    layers = [node for node in graph.node if node.op_type in {"Conv", "Gemm"}]
    assert {"c1", "c3", "c5", "f6"} <= {node.input[1].split(".")[1] for node in layers}
    for layer in layers:
        pixels, weights = (producers.get(name) for name in layer.input)
        assert pixels is not None
        assert weights is not None
        assert pixels.op_type == weights.op_type == "DequantizeLinear"
        assert constants[weights.input[0]].data_type == TensorProto.INT8
        assert not constants[weights.input[1]].dims  # else TensorRT for RTX writes float32
        times = users[layer.output[0]]
        assert times.op_type == "Mul"
        assert np.prod(constants[times.input[1]].dims) == constants[weights.input[0]].dims[0]  # one scale per channel
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert not onnx.numpy_helper.to_array(constants[node.input[2]]).any()
    in_float = {name for name, tensor in constants.items() if tensor.data_type == TensorProto.FLOAT}
    assert {node.op_type for node in graph.node if in_float & {*node.input}} <= {"Div", "Sub", "QuantizeLinear"}
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    calibration = lenet5_everywhere.manifest.calibration
    assert calibration
    assert calibration.images == 320


@pytest.mark.parametrize("method", METHODS)
def test_calibration_covers_all_batches_with_one_in_memory(
    lenet5: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    dark = np.random.default_rng(0).integers(
        0, 128, (3 * CALIBRATION_BATCH, *lenet5.manifest.preprocess.shape), dtype=np.uint8
    )
    bright = dark.copy()
    bright[1::3] *= 2  # exactly the second batch of calibration
    batches_in_memory = []
    for calibrater in (MinMaxCalibrater, HistogramCalibrater):

        def clear(self: Any, clear: Callable[[Any], None] = calibrater.clear_collected_data) -> None:
            batches_in_memory.append(len(self.intermediate_outputs))
            clear(self)

        monkeypatch.setattr(calibrater, "clear_collected_data", clear)

    def scales(pixels: NDArray[np.uint8]) -> dict[str, float]:
        ranges = tmp_path / f"{pixels.sum()}.json"
        calibration = Calibration(images=len(pixels), method=method, in_float=())
        quantize(graph_of(lenet5, "fp32"), tmp_path / "int8.onnx", pixels, calibration, ranges)
        tensors = onnx.load(tmp_path / "int8.onnx").graph.initializer
        return {tensor.name: onnx.numpy_helper.to_array(tensor).max() for tensor in tensors if "scale" in tensor.name}

    assert scales(bright) != scales(dark)
    assert batches_in_memory == 6 * [1]


def test_fp16_accepts_pixels_and_returns_float32(lenet5_everywhere: PublishedModel) -> None:
    graph = onnx.load(graph_of(lenet5_everywhere, "fp16")).graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    large = [tensor for tensor in graph.initializer if len(tensor.dims) > 1 and np.prod(tensor.dims) > 100]
    assert {tensor.data_type for tensor in large} == {TensorProto.FLOAT16}


def test_the_command_verify_prints_and_records_fidelity(run: Run, lenet5_everywhere: PublishedModel) -> None:
    home = lenet5_everywhere.folder.parents[2]
    tag = lenet5_everywhere.manifest.tag
    arguments = ("engines", "verify", tag, "--runtimes", "openvino", "--precisions", "fp32,int8")
    lines = run(*arguments, BENTOML_HOME=str(home)).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [tag, tag]
    assert all(line.endswith("faithful") for line in lines[: 1 if INT8_OVERFLOWS else 2])
    stored = [
        json.loads(path.read_text())
        for precision in ("fp32", "int8")
        for path in (home / "convserve-records").glob(f"*-openvino-{precision}-*.json")
    ]
    assert [(record["tag"], record["precision"]) for record in stored] == [(tag, "fp32"), (tag, "int8")]
    assert stored[0]["fidelity"]["logit_error"] < 1e-4 < stored[1]["fidelity"]["logit_error"] < 0.2
    assert stored[1]["fidelity"]["agreement"] >= (0.9 if INT8_OVERFLOWS else 0.99)


def test_an_engine_that_differs_too_much_has_a_problem() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 10, 1000)
    torch = np.eye(10, dtype=np.float32)[targets]
    assert compare(torch, torch, targets).problem is None
    other = torch.copy()
    other[:4] = np.roll(torch[:4], 1, axis=1)
    assert compare(other, torch, targets).problem is None
    other[:6] = np.roll(torch[:6], 1, axis=1)
    assert compare(other, torch, targets).problem == "its top-1 is 99.4%, torch's 100.0%"
    other[:20] = np.roll(torch[:20], 1, axis=1)
    assert compare(other, torch, None).problem == "it agrees with torch on 98.0% of 1000 sample pictures"


def test_the_error_for_an_unpublished_precision_names_the_command(lenet5: PublishedModel) -> None:
    with pytest.raises(EngineError, match="has no int8: python -m training publish CHECKPOINT --precisions fp32,int8"):
        graph_of(lenet5, "int8")


def test_int8_without_its_calibration_is_not_served(lenet5_everywhere: PublishedModel, tmp_path: Path) -> None:
    shutil.copytree(lenet5_everywhere.folder, tmp_path / "model")
    file = tmp_path / "model" / manifest.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": None}))
    with pytest.raises(ManifestError, match=r"model.int8.onnx has no calibration record; publish the model again"):
        manifest.load(tmp_path / "model")


def test_jpegs_scaled_down_are_verified_too(run: Run, lenet5_everywhere: PublishedModel, tmp_path: Path) -> None:
    for number in range(8):
        shape = (64, 64, 3)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(shape[:2]).save(tmp_path / f"{number}.{('jpg', 'JPEG')[number % 2]}")
    (tmp_path / "broken.JPG").write_bytes((tmp_path / "0.jpg").read_bytes()[:300])
    home = str(lenet5_everywhere.folder.parents[2])
    arguments = ("--runtimes", "openvino", "--precisions", "fp32", "--jpegs", tmp_path)
    done = run("engines", "verify", *arguments, BENTOML_HOME=home)
    assert "JPEGs scaled down: same answers on" in done.stdout
    assert done.stdout.startswith("GPU decoding: not compared") or accelerator()
    assert done.stdout.endswith("\n1 of 9 JPEGs were skipped\n")
    assert f"warning: {tmp_path / 'broken.JPG'} is skipped: Truncated File Read\n" in done.stderr
    records = (json.loads(path.read_text()) for path in Path(home).glob("convserve-records/*-openvino-fp32-*.json"))
    assert [record["scaled_jpeg"]["images"] for record in records] == [8]


def test_few_jpegs_do_not_show_that_scaling_down_is_faithful() -> None:
    few = ScaledFidelity(images=7, top1=None, top5=None, torch_top1=None, agreement=1, logit_error=0.01)
    assert few.problem == "too few JPEGs, 8 are needed"
    assert few.model_copy(update={"images": 8}).problem is None
    assert few.model_copy(update={"images": 100, "agreement": 0.98}).problem == "too few of the same answers"


def test_wrong_options_are_one_line_that_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        """Return the last line with which the command ends."""
        monkeypatch.setattr("sys.argv", ["engines", "verify", *arguments])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]

    folder = tmp_path / "photos"
    assert error("--jpegs", str(folder)) == f"argument --jpegs: there is no folder {folder}"
    folder.mkdir()
    assert error("--jpegs", str(folder)) == f"argument --jpegs: the folder {folder} is empty"
    (folder / "a.png").touch()
    assert error("--jpegs", str(folder)).endswith(f"{folder} has no file that ends in .jpg or .jpeg")
    assert error("--jpegs", str(folder / "a.png")).endswith("a.png is a file, not a folder of JPEGs")
    assert error("--runtimes", "openvino,paced") == (
        "argument --runtimes: 'paced' is none of openvino, onnxruntime, torch, torch_compile, tensorrt, tensorrt_rtx"
    )
