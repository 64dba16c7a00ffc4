"""Tests on an NVIDIA GPU: ten nets in every precision by TensorRT, and the commands and the server by every runtime.

Those of torch and of the plans' executor, which any card runs, are in test_torch_gpu.py and test_executor.py.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from engines.published import manifest
from engines.published.manifest import Calibration
from engines.published.store import PublishedModel
from engines.runtimes import registry
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import Runtime
from engines.runtimes.tensorrt.engine import TensorRTEngine
from engines.runtimes.tensorrt.library import TensorRT
from engines.runtimes.torch import FromPixels, Normalise
from models.zoo import ZOO
from tests.conftest import Run
from tests.serving import ROOT, serving
from tests.training.test_export import after_a_step, quick_input
from training.data import DataSet
from training.export import export
from training.graphs import halve
from training.quantize import quantize

pytestmark = pytest.mark.gpu
NETS = (
    *("lenet5", "alexnet", "vgg16_bn", "nin_cifar10", "googlenet"),
    *("inception_v3", "resnet50", "se_resnext50_32x4d", "densenet121", "wrn_16_8"),
)
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "int8": 5e-2}  # of the largest logit
RUNTIMES: tuple[TensorRT, ...] = ("tensorrt", "tensorrt_rtx")


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> TensorRT:
    """Name of each TensorRT library that can run on this machine."""
    name: TensorRT = request.param
    needs(name)
    return name


def needs(runtime: Runtime) -> None:
    """Skip the test if a runtime cannot run on this machine."""
    try:
        registry.check(runtime)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NETS)
def test_ten_nets_agree_with_the_cpu(runtime: TensorRT, name: str, digits: DataSet, tmp_path: Path) -> None:
    inputs = quick_input(name, digits)
    pixels = digits.held_out.pixels(inputs.preprocess, np.arange(0, 1000, 20))
    torch.manual_seed(0)
    module = FromPixels(ZOO[name].build(10), Normalise(inputs.mean, inputs.std))
    module = after_a_step(module, torch.from_numpy(digits.train.pixels(inputs.preprocess, np.arange(16))))
    paths = {precision: tmp_path / f"{precision}.onnx" for precision in TOLERANCE}
    export(module, inputs.preprocess, paths["fp32"])
    halve(paths["fp32"], paths["fp16"])
    calibration = Calibration(images=50, method="minmax", in_float=())
    quantize(paths["fp32"], paths["int8"], pixels, calibration, tmp_path / "ranges.json")
    with torch.inference_mode():
        expected = copy.deepcopy(module).cpu()(torch.from_numpy(pixels)).numpy()
    references = {"fp32": expected, "fp16": expected, "int8": by_operator(paths["int8"], pixels)}
    for precision, path in paths.items():
        sha256 = manifest.sha256(path)
        engine = TensorRTEngine(path, precision, runtime=runtime, sha256=sha256, max_batch=32)
        error = np.abs(engine.infer(pixels) - references[precision]).max() / np.abs(references[precision]).max()
        assert error <= TOLERANCE[precision], precision


def by_operator(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return an INT8 file's logits, computed node by node: fused INT8 operations overflow on a CPU without VNNI."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"pixels": pixels})[0]
    return logits


def test_the_layers_of_a_plan_are_listed(runtime: TensorRT, run: Run, lenet5_everywhere: PublishedModel) -> None:
    home = str(lenet5_everywhere.folder.parents[2])
    report = run("engines", "inspect", "lenet5", "--precisions", "int8", "--runtime", runtime, BENTOML_HOME=home).stdout
    assert report.splitlines()[-1].endswith("6 in int8")


@pytest.mark.parametrize("runtime", [*RUNTIMES, "torch"])
def test_the_commands_and_the_server_run(runtime: Runtime, run: Run, lenet5_everywhere: PublishedModel) -> None:
    needs(runtime)
    verify_bench_and_serve(runtime, run, BENTOML_HOME=str(lenet5_everywhere.folder.parents[2]))


def verify_bench_and_serve(runtime: Runtime, run: Run, **environment: str) -> None:
    """Verify and benchmark lenet5 in each precision of a runtime, and have a server classify a digit."""
    precisions = registry.RUNTIMES[runtime].precisions
    options = ("--runtimes", runtime, "--precisions", ",".join(precisions))
    verified = run("engines", "verify", *options, **environment).stdout
    assert verified.count(": faithful") == len(precisions)
    benched = run("engines", "bench", *options, "--batches", "1,8,32", "--seconds", "1", **environment).stdout
    assert benched.count(f"\n{runtime} ") == 3 * len(precisions)
    with serving(cwd=ROOT, CONVSERVE_RUNTIME=runtime, **environment) as (client, _):
        answer = client.post("/classify?model=lenet5", content=(ROOT / "docs" / "digit.png").read_bytes()).json()
    assert (answer["runtime"], answer["predictions"][0]["label"]) == (runtime, "7")
