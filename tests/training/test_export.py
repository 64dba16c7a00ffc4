"""Export to ONNX: the graph's logits equal torch's."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.published.graph import LAYERS, gates, layers
from engines.published.manifest import Calibration
from engines.runtimes.onnxruntime import ONNXRuntimeEngine
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.torch import FromPixels, Normalise, TorchEngine
from models.densenet import cifar_densenet
from models.layers import Concat
from models.preact_resnet import PreActBasicBlock, PreActResNet
from models.residual import ResNet
from models.senet import caffe_stem, se_bottleneck
from models.zoo import ZOO
from tests.processor import INT8_OVERFLOWS
from training import precisions
from training.data import DataSet
from training.export import export
from training.input import Input, input_of
from training.precisions import calibrations
from training.quantize import METHODS, quantize
from training.recipes import quick

TOLERANCE = 1e-4  # of the largest logit, both float32
SE_RESNEXT = partial(ResNet, block=partial(se_bottleneck, groups=32, width=4), depths=(1, 1), stem=caffe_stem)


@torch.no_grad()
def after_a_step(module: FromPixels, pixels: Tensor) -> FromPixels:
    """Set batch norms to values as after training, so that none is an identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.5
            nn.init.uniform_(norm.weight, 0.2, 0.6)  # small branches: else deep nets amplify float32's rounding
            nn.init.normal_(norm.bias, std=0.1)
    module.train().net(module.normalise(pixels.permute(0, 3, 1, 2)))  # in training there may be several heads
    return module.eval()


def quick_input(name: str, digits: DataSet) -> Input:
    return input_of(ZOO[name], quick(ZOO[name], digits), digits)


def difference(build_net: Callable[[int], nn.Module], entry: Input, path: Path, weights: Path | None = None) -> float:
    """Return the error between ONNX and torch as a share of the largest logit.

    The graph refers to the file `weights`, which is written.
    """
    torch.manual_seed(0)
    pixels = torch.randint(256, (4, *entry.preprocess.shape), dtype=torch.uint8)
    module = after_a_step(FromPixels(build_net(10), Normalise(entry.mean, entry.std)), pixels)
    if weights:
        save_file({name: tensor.contiguous() for name, tensor in module.net.state_dict().items()}, weights)
    export(module, entry.preprocess, path, weights)
    expected = TorchEngine(module).infer(pixels.numpy())
    outputs = OpenVINOEngine(path, "fp32").infer(pixels.numpy())
    return float(np.abs(outputs - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "build_net",
    [
        partial(PreActResNet, block=PreActBasicBlock, depths=(1, 1, 1)),
        SE_RESNEXT,
        partial(cifar_densenet, depth=10, growth=4, bc=True),
    ],
    ids=["preact_resnet", "se_resnext", "densenet"],
)
def test_a_shallow_one_of_a_deep_class(build_net: Callable[[int], nn.Module], digits: DataSet, tmp_path: Path) -> None:
    assert difference(build_net, quick_input("resnet20_cifar", digits), tmp_path / "model.onnx") <= TOLERANCE


def test_int8_tries_every_way_and_keeps_the_best(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    difference(SE_RESNEXT, quick_input("resnet20_cifar", digits), path)
    graph = onnx.load(path).graph
    assert "Gather" not in {node.op_type for node in graph.node}  # averages are of what is there, not of a copy
    assert len(gates(graph)) == 4  # two in each of two blocks
    first, *_, last = layers(graph)
    tried = calibrations(path, 40)
    in_float = [(), (), (first, last), (first, last, *gates(graph))]
    assert [calibration.in_float for calibration in tried] == [names for names in in_float for _ in METHODS]
    assert [calibration.outputs_in_float for calibration in tried] == 2 * [False] + 6 * [True]

    pixels = digits.train.pixels(quick_input("resnet20_cifar", digits).preprocess, np.arange(0, 4000, 100))
    monkeypatch.setattr(precisions, "AGREEMENT", 1.1)
    found = precisions.export_int8(path, tmp_path / "int8.onnx", pixels)
    agreements = [
        float(line.partition("top-1 of ")[2].partition("%")[0]) for line in capsys.readouterr().out.split("\n")[:-1]
    ]
    assert len(agreements) == len(tried)
    assert found == tried[agreements.index(max(agreements))]
    quantize(path, tmp_path / "best.onnx", pixels, found, tmp_path / "ranges.json")
    assert (tmp_path / "int8.onnx").read_bytes() == (tmp_path / "best.onnx").read_bytes()


def test_the_layers_left_in_float_are_in_float(digits: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    difference(SE_RESNEXT, quick_input("resnet20_cifar", digits), path)
    excitation = gates(onnx.load(path).graph)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    how = Calibration(images=8, method="minmax", in_float=tuple(excitation))
    quantize(path, tmp_path / "int8.onnx", pixels, how, tmp_path / "ranges.json")
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    dequantised = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    assert [node.name for node in nodes if node.op_type in LAYERS and node.input[0] not in dequantised] == excitation


@pytest.mark.skipif(INT8_OVERFLOWS, reason="without VNNI, sums of INT8 overflow")
@pytest.mark.parametrize("outputs_in_float", [False, True])
def test_int8_answers_alike_where_average_pooling_takes_what_layers_take(
    outputs_in_float: bool, digits: DataSet, tmp_path: Path
) -> None:
    def net(classes: int) -> nn.Module:
        stem = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()
        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(16, 16, 1))
        branches = Concat(one=nn.Conv2d(16, 16, 1), three=nn.Conv2d(16, 16, 3, padding=1), pool=pool)
        return nn.Sequential(*stem, branches, nn.ReLU(), nn.Flatten(), nn.Linear(48 * 32 * 32, classes))

    path = tmp_path / "model.onnx"
    pixels = digits.train.pixels(quick_input("resnet20_cifar", digits).preprocess, np.array([0, 999]))
    difference(net, quick_input("resnet20_cifar", digits), path)
    how = Calibration(images=2, method="minmax", outputs_in_float=outputs_in_float, in_float=())
    quantize(path, tmp_path / "int8.onnx", pixels, how, tmp_path / "ranges.json")
    expected = OpenVINOEngine(path, "fp32").infer(pixels)
    for engine in (OpenVINOEngine, ONNXRuntimeEngine):
        outputs = engine(tmp_path / "int8.onnx", "int8").infer(pixels)
        assert np.abs(outputs - expected).max() <= 0.1 * np.abs(expected).max()


def test_local_response_normalisation_is_one_operator(digits: DataSet, tmp_path: Path) -> None:
    def net(classes: int) -> nn.Module:
        norm = nn.LocalResponseNorm(5, alpha=5e-3, beta=0.75, k=2)
        return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 30 * 30, classes))

    assert difference(net, quick_input("resnet20_cifar", digits), tmp_path / "model.onnx") <= TOLERANCE
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("LRN") == 1
    assert "Pow" not in operators


@pytest.mark.parametrize("edge", [2, 3, 4, 5, 8])
def test_pooling_may_reach_beyond_the_map(edge: int, digits: DataSet, tmp_path: Path) -> None:
    def net(classes: int) -> nn.Module:
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        return nn.Sequential(nn.AdaptiveAvgPool2d(edge), pool, nn.Flatten(), nn.LazyLinear(classes))

    path = tmp_path / "model.onnx"
    assert difference(net, quick_input("resnet20_cifar", digits), path) <= TOLERANCE
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    by_others = ONNXRuntimeEngine(path, "fp32").infer(pixels)
    assert np.abs(OpenVINOEngine(path, "fp32").infer(pixels) - by_others).max() <= TOLERANCE * np.abs(by_others).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_graph_answers_as_torch_does(name: str, digits: DataSet, tmp_path: Path) -> None:
    started = time.perf_counter()
    found = difference(ZOO[name].build, quick_input(name, digits), tmp_path / "model.onnx", tmp_path / "weights")
    print(f"{name}: {found:.1e} of the largest logit, in {time.perf_counter() - started:.0f} s")  # shown by -s
    assert found <= TOLERANCE
