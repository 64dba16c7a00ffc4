"""Changes to exported graphs: references to the checkpoint, folded batch norms, float16."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engines.runtimes.onnxruntime import ONNXRuntimeEngine
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.tensorrt import plan
from engines.runtimes.tensorrt.inspect import engine_layers
from tests.training.test_export import SE_RESNEXT, TOLERANCE, difference, quick_input
from training.data import DataSet
from training.graphs import fold, halve

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a network's weights and the graph that refers to them; `inside.onnx` holds its weights."""
    folder = tmp_path_factory.mktemp("graphs")
    inputs = quick_input("resnet20_cifar", digits)
    assert difference(SE_RESNEXT, inputs, folder / "inside.onnx") <= TOLERANCE
    assert difference(SE_RESNEXT, inputs, folder / "model.onnx", folder / "weights.safetensors") <= TOLERANCE
    fold(folder / "model.onnx", folder / "folded.onnx")
    halve(folder / "folded.onnx", folder / "half.onnx")
    return folder


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def values(path: Path) -> list[bytes]:
    """Return the sorted values of all constants of a graph."""
    return sorted(onnx.numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer)


def test_a_graph_that_refers_to_weights_has_each_of_them_once(folder: Path) -> None:
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    weights = (folder / "weights.safetensors").stat().st_size
    assert (folder / "model.onnx").stat().st_size < 0.1 * weights < 0.1 * (folder / "inside.onnx").stat().st_size * 1.1
    assert operators(folder / "model.onnx")["BatchNormalization"] > 5
    expected = OpenVINOEngine(folder / "inside.onnx", "fp32").infer(PIXELS)
    for engine in (OpenVINOEngine, ONNXRuntimeEngine):
        found = engine(folder / "model.onnx", "fp32").infer(PIXELS)
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_a_folded_graph_is_the_one_that_the_exporter_folds(folder: Path) -> None:
    assert operators(folder / "folded.onnx") == operators(folder / "inside.onnx")
    assert values(folder / "folded.onnx") == values(folder / "inside.onnx")


def test_a_halved_graph_is_in_float16_between_normalisation_and_logits(folder: Path) -> None:
    onnx.checker.check_model(folder / "half.onnx", full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(folder / "half.onnx"), strict_mode=True).graph
    assert Counter(node.op_type for node in graph.node) - operators(folder / "folded.onnx") == {"Cast": 2}
    (logits,) = graph.output
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", TensorProto.FLOAT)
    floats = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert set(floats) == {"normalise.mean", "normalise.std"}
    expected = ONNXRuntimeEngine(folder / "inside.onnx", "fp32").infer(PIXELS)
    found = ONNXRuntimeEngine(folder / "half.onnx", "fp32").infer(PIXELS)
    assert 0 < np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()


def test_tensorrt_folds_what_the_graph_does_not(folder: Path) -> None:
    def layers(name: str) -> int:
        return len(list(engine_layers(plan.build("tensorrt_rtx", folder / name, 8, ["8.9"]).layers)))

    # Two builds of the same graph may choose kernels that differ by a layer; norms left alone would be a dozen more.
    assert abs(layers("model.onnx") - layers("inside.onnx")) <= 1
