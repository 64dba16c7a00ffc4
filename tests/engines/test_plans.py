"""Tests of plans of TensorRT for RTX: every precision is built without a GPU, and computed as in its file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines.published import manifest, store
from engines.published.manifest import Calibration
from engines.published.store import PublishedModel
from engines.runtimes import cache
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import plan
from engines.runtimes.tensorrt.inspect import (
    EngineLayer,
    Node,
    Tensor,
    computed_in,
    computing,
    engine_layers,
    fallen_back,
    nodes_of,
    report,
    traffic,
)
from engines.runtimes.torch import FromPixels, Normalise
from models.zoo import ZOO
from tests.conftest import Run
from tests.training.test_export import SE_RESNEXT, after_a_step, quick_input
from training.data import DataSet
from training.export import export
from training.graphs import halve
from training.quantize import quantize

CAPABILITIES = ("8.6", "8.9", "12.0")
TYPES = {"fp32": "float", "fp16": "half", "int8": "int8"}
NETS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20_cifar": ZOO["resnet20_cifar"].build,
    "se_resnext": SE_RESNEXT,
}


@pytest.fixture(scope="module", params=["lenet5", *NETS])
def graphs(
    request: pytest.FixtureRequest,
    lenet5_everywhere: PublishedModel,
    digits: DataSet,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Return the ONNX files of a network by precision."""
    if request.param == "lenet5":
        return {precision: lenet5_everywhere.folder / manifest.GRAPHS[precision] for precision in TYPES}
    folder = tmp_path_factory.mktemp("graphs")
    recipe_input = quick_input("resnet20_cifar", digits)
    pixels = digits.train.pixels(recipe_input.preprocess, np.arange(16))
    torch.manual_seed(0)
    module = FromPixels(NETS[request.param](10), Normalise(recipe_input.mean, recipe_input.std))
    module = after_a_step(module, torch.from_numpy(pixels))
    paths = {precision: folder / f"{precision}.onnx" for precision in TYPES}
    export(module, recipe_input.preprocess, paths["fp32"])
    halve(paths["fp32"], paths["fp16"])
    calibration = Calibration(images=len(pixels), method="minmax", in_float=())
    quantize(paths["fp32"], paths["int8"], pixels, calibration, folder / "ranges.json")
    return paths


@pytest.mark.parametrize("precision", TYPES)
def test_a_plan_is_built_in_the_precision_of_its_file(graphs: dict[str, Path], precision: str) -> None:
    built = plan.build("tensorrt_rtx", graphs[precision], 32, CAPABILITIES)
    layers = engine_layers(built.layers)
    nodes = nodes_of(graphs[precision])
    weighted = [name for name, node in nodes.items() if node.module]
    assert len(weighted) >= 6
    assert computed_in(nodes, layers) == {TYPES[precision]: len(weighted)}
    assert layers[0].inputs[0].type == "uint8"
    assert layers[-1].outputs[0].type == "float"
    assert not fallen_back(nodes, layers)
    lines = "\n".join(report(nodes, layers))
    assert all(f" {node.module}" in lines for node in nodes.values() if node.module)


def test_a_lower_precision_moves_fewer_bytes(graphs: dict[str, Path]) -> None:
    moved = {}
    for precision, path in graphs.items():
        moved[precision] = traffic(engine_layers(plan.build("tensorrt_rtx", path, 32, ["8.9"]).layers))
        tensors = onnx.load(path).graph.initializer
        weights = sum(tensor.ByteSize() for tensor in tensors if len(tensor.dims) > 1)
        assert 0.8 * weights < moved[precision].batch < 2 * weights
    assert moved["fp16"].image < 0.6 * moved["fp32"].image
    assert moved["int8"].image < 0.85 * moved["fp32"].image  # 1.3 with a float32 graph
    assert moved["int8"].batch < 0.8 * moved["fp16"].batch


def test_layers_that_fall_back_are_named(graphs: dict[str, Path]) -> None:
    layers = engine_layers(plan.build("tensorrt_rtx", graphs["fp32"], 32, CAPABILITIES).layers)
    nodes = nodes_of(graphs["int8"])
    assert fallen_back(nodes, layers) == [node.module for node in nodes.values() if node.module]
    first, *others = nodes.items()
    assert fallen_back(dict(others), []) == [node.module for _, node in others if node.module]
    assert first


def test_a_layer_in_float_in_the_file_is_no_fallback(lenet5_everywhere: PublishedModel, tmp_path: Path) -> None:
    source = lenet5_everywhere.folder / manifest.ONNX
    names = [name for name, node in nodes_of(source).items() if node.module]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8)
    calibration = Calibration(images=8, method="minmax", in_float=(names[0],))
    quantize(source, tmp_path / "int8.onnx", pixels, calibration, tmp_path / "ranges.json")
    layers = engine_layers(plan.build("tensorrt_rtx", tmp_path / "int8.onnx", 8, ["8.9"]).layers)
    nodes = nodes_of(tmp_path / "int8.onnx")
    assert [nodes[name].quantised for name in names] == [False, *[True] * (len(names) - 1)]
    assert not fallen_back(nodes, layers)
    first = computing(names[0], layers)
    assert first
    assert first.inputs[0].type == "half"


TENSOR = "{ Name: t, Dimensions: [%s], Strides: [9,1], StrideOrder: [1,0], Datatype: %s, Format: (%s) in words }"
LINE = (
    f"Name: node_conv_myl0_2, LayerType: correlation, Inputs: [ {TENSOR % ('-1,4,32,32', 'Int8', 'NHWC')}], "
    f"Constants: [ {TENSOR % ('8,4,3,3', 'Int8', 'Linear')}], Outputs: [ {TENSOR % ('-1,8,32,32', 'Half', 'Linear')}], "
    "TacticName: x, StreamId: 0, Metadata: [ONNX Layer: node_conv][ONNX Layer: node_relu]"
)
OTHER_LINE = (  # from NVIDIA's documentation of TensorRT
    "Name: node_conv, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [8,4,32,32], "
    "Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: y, Location: "
    "Device, Dimensions: [8,8,32,32], Format/Datatype: Row major linear FP16 format }], ParameterType: Convolution, "
    "Kernel: [3,3], TacticName: x, StreamId: 0, Metadata: [ONNX Layer: node_conv]"
)
HALF = Tensor((-1, 8, 32, 32), "half", "Linear")
WEIGHTS = "[8,4,3,3], Strides: [9,1], StrideOrder: [1,0], Datatype: "
WAITS = "Name: w, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, Metadata: "


def test_a_layer_of_tensorrt_rtx_is_parsed() -> None:
    source, weights, target = Tensor((-1, 4, 32, 32), "int8", "NHWC"), Tensor((8, 4, 3, 3), "int8", "Linear"), HALF
    layer = EngineLayer("correlation", (source,), (weights,), (target,), ("node_conv", "node_relu"))
    assert engine_layers(f"Layers:\n{LINE}\n{WAITS}\n\nI/O Tensors:\n") == [layer]
    nodes = {"node_conv": Node("Conv", "stem.conv", True), "node_relu": Node("Relu", None, False)}
    (line,) = report(nodes, [layer])
    columns = "correlation int8 4x32x32 NHWC -> half 8x32x32 Linear stem.conv, Relu"
    assert line.split() == columns.split()
    assert not fallen_back(nodes, [layer])
    moved = traffic([layer, layer])
    assert moved == (2 * (4 * 32 * 32 + 2 * 8 * 32 * 32), 2 * 8 * 4 * 3 * 3)
    assert moved.of(8) == 8 * moved.image + moved.batch
    with pytest.raises(EngineError, match="types of unknown size: int4"):
        traffic(engine_layers(LINE.replace("Half", "Int4")))


def test_a_layer_of_tensorrt_is_parsed() -> None:
    (layer,) = engine_layers(OTHER_LINE)
    assert (layer.type, layer.computes_in, layer.nodes) == ("CaskConvolution", "int8", ("node_conv",))
    assert [tensor.shape for tensor in (*layer.inputs, *layer.outputs)] == [(4, 32, 32), (8, 32, 32)]
    assert [tensor.type for tensor in layer.outputs] == ["half"]


def test_weights_in_float_are_a_fallback() -> None:
    nodes = {"node_conv": Node("Conv", "stem.conv", True)}
    layers = engine_layers(LINE.replace(f"{WEIGHTS}Int8", f"{WEIGHTS}Float"))
    assert [layer.computes_in for layer in layers] == ["int8 and float"]
    assert fallen_back(nodes, layers) == ["stem.conv"]


def test_a_layer_of_an_unknown_format_is_an_error() -> None:
    with pytest.raises(EngineError, match="is not understood: Name: node_conv, Kind: Convolution"):
        engine_layers("Name: node_conv, Kind: Convolution")


def test_module_names_match_the_complexity(lenet5_everywhere: PublishedModel) -> None:
    costly = [layer.name for layer in lenet5_everywhere.manifest.complexity.layers if layer.macs]
    for precision in TYPES:
        nodes = nodes_of(lenet5_everywhere.folder / manifest.GRAPHS[precision])
        assert sorted(node.module for node in nodes.values() if node.module) == sorted(costly)


def test_a_prepared_plan_is_kept_for_each_capability(
    lenet5_everywhere: PublishedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")
    graph = lenet5_everywhere.folder / manifest.INT8
    built = plan.prepare("tensorrt_rtx", graph, "sha", "int8", 32, CAPABILITIES)
    paths = [cache.path_of(plan.key_of("tensorrt_rtx", "sha", "int8", 32, each)) for each in CAPABILITIES]
    assert [cache.read(path, bytes) for path in paths] == [built.data] * 3
    assert len({path.stat().st_ino for path in paths}) == 1  # the plan is on disk once


def test_the_error_states_why_a_plan_cannot_be_built(lenet5_everywhere: PublishedModel, tmp_path: Path) -> None:
    graph = lenet5_everywhere.folder / manifest.ONNX
    with pytest.raises(EngineError, match=r"no compute capability 9\.0; it has 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        plan.build("tensorrt_rtx", graph, 8, ["8.9", "9.0"])
    with pytest.raises(EngineError, match=r"cannot build .*FP32 GEMM is not supported"):  # with TensorRT's reason
        plan.build("tensorrt_rtx", graph, 8, ["7.5"])
    (tmp_path / "no.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"cannot read .*no\.onnx: "):
        plan.build("tensorrt_rtx", tmp_path / "no.onnx", 8, ["8.9"])
    with pytest.raises(EngineError, match="tensorrt builds for the GPU of the machine that it runs on"):
        plan.prepare("tensorrt", graph, "sha", "fp32", 8, ["8.9"])


def test_the_first_node_is_a_cast(graphs: dict[str, Path]) -> None:
    for path in graphs.values():  # TensorRT accepts uint8 pixels only as the input of a cast
        users = [node.op_type for node in onnx.load(path).graph.node if "pixels" in node.input]
        assert users == ["Cast"]


def test_the_commands(run: Run, lenet5_everywhere: PublishedModel, tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = lenet5_everywhere.folder
    shutil.copytree(folder, home / "models" / folder.parent.name / folder.name)
    here = {"BENTOML_HOME": str(home)}
    lines = run("engines", "build", "lenet5", "--capability", "8.6,8.9", **here).stdout.splitlines()
    assert lines[0].endswith("for compute capability 8.6, 8.9, batches of 1 to 128")
    cells = [cell.strip() for cell in lines[-1].split("|")]
    assert cells[1:3] == ["`lenet5`", "1x32x32"]
    assert all(float(cell) > 0 for cell in cells[3:-1])
    assert len(cells) == 3 + 3 * len(TYPES) + 1
    printed = run("engines", "inspect", "lenet5", "--precisions", "int8", "--capability", "8.9", **here).stdout
    assert "uint8 32x32x1" in printed
    assert " c3.six" in printed
    assert printed.splitlines()[-2].endswith("6 convolutions and linear layers, 6 in int8")
    assert re.fullmatch(r"reads and writes 0.\d+ MB an image and 0.\d+ MB a batch: .* for 32", printed.splitlines()[-1])
    for arguments, error in (
        (("--capability", "9.0"), "tensorrt_rtx has no compute capability 9.0"),
        (("--runtime", "tensorrt", "--capability", "8.9"), "tensorrt builds for the GPU of the machine"),
        (("--precisions", "bf16", "--capability", "8.9"), "tensorrt_rtx has no precision 'bf16'"),
    ):
        for command in ("build", "inspect"):
            done = run("engines", command, "lenet5", *arguments, check=False, **here)
            assert done.returncode == 1
            assert error in done.stderr
            assert "Traceback" not in done.stderr
