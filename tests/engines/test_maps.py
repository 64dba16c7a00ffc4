"""Tests of class activation maps: which networks have maps, and that the maps are those of the network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from engines.published.maps import MAPS, map_edge, outputs_with_maps
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import EngineError
from engines.runtimes.maps import MapsEngine
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.torch import FromPixels, Normalise
from models.preact_resnet import PreActBasicBlock, PreActResNet
from service.architectures import read_cards, with_layers
from training.export import export
from training.input import Input

EDGES = {"vgg16": 0, "alexnet": 0, "lenet5": 0, "zfnet": 0, "nin_cifar10": 8, "googlenet": 7, "inception_v3": 8}
EDGES |= {"resnet50": 7, "densenet121": 7, "senet154": 7, "resnet20_cifar": 8}
TOLERANCE = 1e-4  # of the largest value, both float32
GENERATOR = np.random.default_rng(0)
CONV = GENERATOR.normal(size=(6, 3, 3, 3)).astype(np.float32)
LINEAR, BIAS = GENERATOR.normal(size=(4, 6)).astype(np.float32), GENERATOR.normal(size=4).astype(np.float32)
SMALL = Input(preprocess=Preprocess(mode="RGB", resize_edge=32, crop=32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PIXELS = GENERATOR.integers(0, 256, (3, 10, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "edge"), EDGES.items())
def test_networks_that_end_in_global_pooling_have_maps(name: str, edge: int) -> None:
    cost = with_layers(read_cards()[name])
    assert map_edge(cost) == edge
    assert outputs_with_maps(cost, 10) == 10 * (1 + edge**2)


def small_graph(path: Path, *end: onnx.NodeProto) -> Path:
    """Write a network as the exporter does: pixels, a convolution with stride 2, ReLU, and the nodes `end`."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "conv"], ["convolved"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["features"]),
        *end,
    ]
    tensors = {"conv": CONV, "linear": LINEAR, "transposed": LINEAR.T.copy(), "bias": BIAS, "axes": np.array([2, 3])}
    tensors["other"] = np.array([1, 2])
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 10, 10, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def features() -> NDArray[np.float32]:
    """Return the features before the pooling, (N, 6, 5, 5)."""
    pixels = torch.from_numpy(PIXELS).float().permute(0, 3, 1, 2)
    result: NDArray[np.float32] = F.conv2d(pixels, torch.from_numpy(CONV), stride=2, padding=1).relu().numpy()
    return result


POOL = helper.make_node("GlobalAveragePool", ["features"], ["pooled"])
FLAT = helper.make_node("Flatten", ["pooled"], ["flat"])
ENDS = {
    "Gemm": (POOL, FLAT, helper.make_node("Gemm", ["flat", "linear", "bias"], ["logits"], transB=1)),
    "MatMul and Add": (
        helper.make_node("ReduceMean", ["features", "axes"], ["flat"], keepdims=0),
        helper.make_node("MatMul", ["flat", "transposed"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ),
    "no linear layer": (POOL, helper.make_node("Flatten", ["pooled"], ["logits"])),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_maps_are_the_linear_layer_at_each_cell(end: str, tmp_path: Path) -> None:
    graph = small_graph(tmp_path / "model.onnx", *ENDS[end])
    logits = OpenVINOEngine(graph, "fp32").infer(PIXELS)
    engine = MapsEngine(graph, sha256=f"test {end}")
    outputs = engine.infer(PIXELS)
    classes = logits.shape[1]
    assert engine.precision == MAPS
    assert outputs.shape == (3, classes * (1 + 5 * 5))
    maps = outputs[:, classes:].reshape(3, 5, 5, classes)
    weights, bias = (np.eye(6), np.zeros(6)) if end == "no linear layer" else (LINEAR, BIAS)
    expected = np.einsum("kc,nchw->nhwk", weights, features())
    assert np.abs(maps - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert np.abs(outputs[:, :classes] - logits).max() <= TOLERANCE * np.abs(logits).max()
    assert np.abs(maps.mean((1, 2)) + bias - logits).max() <= TOLERANCE * np.abs(logits).max()


def test_a_graph_without_global_pooling_is_refused(tmp_path: Path) -> None:
    flat = helper.make_node("Flatten", ["features"], ["logits"])
    with pytest.raises(EngineError, match="a graph that ends in Relu has no class activation maps"):
        MapsEngine(small_graph(tmp_path / "model.onnx", flat), sha256="test without pooling")


def test_a_mean_over_other_axes_is_refused(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["features", "other"], ["logits"], keepdims=0)
    with pytest.raises(EngineError, match="a mean of other axes"):
        MapsEngine(small_graph(tmp_path / "model.onnx", mean), sha256="test other axes")


@pytest.mark.slow
def test_the_maps_are_grad_cams_of_the_torch_module(tmp_path: Path) -> None:
    """Compare with Grad-CAM (arXiv:1610.02391): the mean gradient of a class's logit weighs each channel."""
    torch.manual_seed(0)
    net = partial(PreActResNet, block=PreActBasicBlock, depths=(1, 1, 1))(10).eval()
    module = FromPixels(net, Normalise(SMALL.mean, SMALL.std))
    export(module, SMALL.preprocess, tmp_path / "model.onnx")
    pixels = torch.randint(256, (2, *SMALL.preprocess.shape), dtype=torch.uint8)
    outputs = MapsEngine(tmp_path / "model.onnx", sha256="test grad-cam").infer(pixels.numpy())
    edge = round(((outputs.shape[1] - 10) / 10) ** 0.5)
    kept: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        inputs[0].retain_grad()
        kept.append(inputs[0])

    net.get_submodule("avgpool").register_forward_pre_hook(keep)
    for index in range(10):
        module(pixels)[:, index].sum().backward()
        maps, gradients = kept[-1].detach(), kept[-1].grad
        assert gradients is not None
        expected = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).relu().numpy() * edge**2
        found = outputs[:, 10:].reshape(2, edge, edge, 10)[..., index].clip(0)
        assert np.abs(found - expected).max() <= TOLERANCE * max(1e-3, expected.max())
