"""Tests of the torch engine: folded batch norms, compilation for any batch, and the device's measured peaks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.utils import counters

from engines.measured import bench, peak
from engines.measured.peak import Peak
from engines.measured.select_engine import choose
from engines.published.manifest import WEIGHTS
from engines.published.preprocess import Preprocess
from engines.published.store import PublishedModel
from engines.runtimes import torch as torch_runtime
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import EngineSpec
from engines.runtimes.torch import FromPixels, Normalise, open_torch, rates
from models.zoo import ZOO
from tests.conftest import Run
from tests.engines.test_choose import FAITHFUL, record
from tests.engines.test_gpu import verify_bench_and_serve
from tests.training.test_export import after_a_step

CARD = "Card of these tests"
TOLERANCE = 1e-4  # of the largest logit
Logits = NDArray[np.float32]
SMALL_PHOTOS = Preprocess(mode="RGB", resize_edge=32, crop=32)
SMALL = partial(rates, 256, 2**20, "cpu")


def publish(
    name: str, lenet5: PublishedModel, folder: Path, preprocess: Preprocess = SMALL_PHOTOS
) -> tuple[PublishedModel, NDArray[np.uint8], Logits]:
    """Return a published network without ONNX files, pixels, and the logits of the network as it was trained."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (16, *preprocess.shape), dtype=torch.uint8)
    mean, std = ((0.5, 0.4, 0.3)[: preprocess.shape[2]], (0.2, 0.3, 0.4)[: preprocess.shape[2]])
    module = after_a_step(FromPixels(ZOO[name].build(10), Normalise(mean, std)), pixels)
    save_file(module.net.state_dict(), folder / WEIGHTS)
    manifest = lenet5.manifest.model_copy(
        update={
            "architecture": name,
            "preprocess": preprocess,
            "provenance": {"input": {"mean": mean, "std": std}},
        }
    )
    with torch.inference_mode():
        return PublishedModel(folder, manifest), pixels.numpy(), module(pixels).numpy()


def test_a_published_network_runs_with_folded_batch_norms(lenet5: PublishedModel, tmp_path: Path) -> None:
    model, pixels, expected = publish("resnet20_cifar", lenet5, tmp_path)
    engine = open_torch(model, "fp32")
    assert not [norm for norm in engine.module.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert np.abs(engine.infer(pixels) - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no NVIDIA GPU here")
def test_a_gpu_has_peaks_in_every_precision() -> None:
    (of_gpu,) = peak.measure(["torch"]).values()
    products = of_gpu.gmacs_per_s
    assert products["fp32"] < products["fp16"]
    assert products.keys() == {"fp32", "bf16", "fp16", "int8"}
    assert of_gpu.gb_per_s > 10


@pytest.mark.slow
def test_torch_is_verified_benchmarked_and_served_on_a_processor(run: Run, lenet5_everywhere: PublishedModel) -> None:
    home = str(lenet5_everywhere.folder.parents[2])
    verify_bench_and_serve("torch", run, BENTOML_HOME=home, CUDA_VISIBLE_DEVICES="")


@pytest.mark.slow
def test_a_compiled_network_is_not_compiled_for_each_batch(lenet5: PublishedModel) -> None:
    engine = open_torch(lenet5, "fp32", compiled=True)
    counters.clear()
    for batch in (1, 2, 3, 5, 8, 16, 31, 32, 64, 100):
        engine.infer(np.zeros((batch, 32, 32, 1), np.uint8))
    assert 2 <= counters["stats"]["unique_graphs"] <= 3


def test_a_compiled_network_is_chosen_where_it_is_faster() -> None:
    eager = record("torch", "fp16", FAITHFUL, 100)
    for rate, runtime in ((120, "torch_compile"), (90, "torch")):
        assert choose([eager, record("torch_compile", "fp16", FAITHFUL, rate)], "auto", "auto")[:2] == (runtime, "fp16")


def test_rates_are_measured_in_every_precision() -> None:
    products, copied = SMALL()
    assert products.keys() == {"fp32", "bf16", "fp16", "int8"}
    assert all(rate > 1e7 for rate in products.values())
    assert copied > 1e8


def test_a_gpus_peaks_are_torchs(lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take torch on the processor as the GPU `CARD`."""
    for module in (peak, bench):
        monkeypatch.setattr(module, "gpu_of", lambda runtime: CARD if runtime == "torch" else None)
    monkeypatch.setattr(peak, "check", lambda _: None)
    monkeypatch.setattr(bench, "added_mb", lambda *_: None)
    monkeypatch.setattr(torch_runtime, "rates", SMALL)
    monkeypatch.setattr(peak, "of_processor", lambda: Peak(device="", runtime_version="", gmacs_per_s={}, gb_per_s=1))
    peaks = peak.measure(["torch", "openvino"])
    assert peaks.keys() == {CARD, None}
    assert peak.path(CARD).exists()
    specs = [EngineSpec("torch", "fp32"), EngineSpec("torch", "bf16"), EngineSpec("openvino", "fp32")]
    fp32, bf16, without = bench.bench(lenet5, specs, [4], 0.03, peaks)
    for row in (fp32, bf16):
        assert row.of_compute == pytest.approx(row.gmacs_per_s / peaks[CARD].gmacs_per_s[row.precision])
        cost = lenet5.manifest.complexity
        moved = peak.bytes_moved(cost, row.precision, 4) * row.images_per_s / 4
        assert row.of_bandwidth == pytest.approx(moved / 1e9 / peaks[CARD].gb_per_s)
    assert (without.of_compute, without.bound) == (None, None)


def test_a_gpu_that_torch_cannot_use_has_no_shares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: str) -> None:
        raise EngineError("this torch has no CUDA")

    monkeypatch.setattr(peak, "gpu_of", lambda _: CARD)
    monkeypatch.setattr(peak, "check", refuse)
    assert peak.measure(["torch"]) == {}
    assert capsys.readouterr().err == f"no shares of the peak of {CARD}: this torch has no CUDA\n"
