"""Tests of state dicts in files of others: wrapped, nested, odd, and not fitting."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models.zoo import ZOO
from training.errors import CheckpointError
from training.state_dict import fit, read, tensors_of, unwrapped


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return ZOO["lenet5_modern"].build(10)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in lenet().state_dict().items()}


def imported(contents: object, path: Path) -> dict[str, Tensor]:
    torch.save(contents, path)
    net = lenet()
    state = unwrapped(read(path), net.state_dict().keys())
    fit(net, state, f"{path} does not fit")
    return state


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.net."])
def test_a_prefix_of_the_whole_model_is_removed_and_told(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = imported(OrderedDict(prefixed(prefix)), tmp_path / "weights.pth")
    assert state.keys() == lenet().state_dict().keys()
    assert capsys.readouterr().out == f"without {prefix!r}, which stood before every key\n"


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_torch_compile_adds_is_removed(prefix: str, tmp_path: Path) -> None:
    assert imported(prefixed(prefix), tmp_path / "weights.pth").keys() == lenet().state_dict().keys()
    first, *others = lenet().state_dict()
    head, _, name = first.rpartition(".")
    partial = {f"{head}._orig_mod.{name}": lenet().state_dict()[first]} | {key: prefixed("")[key] for key in others}
    assert imported(partial, tmp_path / "partial.pth").keys() == lenet().state_dict().keys()


def test_batch_norms_counters_may_be_missing() -> None:
    net = ZOO["resnet20_cifar"].build(10)
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    fit(net, state, "weights.pth does not fit")


@pytest.mark.parametrize("odd", [torch.zeros(6, dtype=torch.int8), torch.full((6,), float("nan"))])
def test_numbers_that_no_network_has_are_refused(odd: Tensor) -> None:
    net = lenet()
    key = next(key for key, value in net.state_dict().items() if value.shape == odd.shape)
    with pytest.raises(CheckpointError, match=f"it has other numbers, or NaN, in {key}"):
        fit(net, net.state_dict() | {key: odd}, "weights.pth does not fit")


def test_a_prefix_that_the_network_has_too_stays() -> None:
    state = {"features.1.weight": torch.zeros(1), "features.2.weight": torch.zeros(1)}
    assert unwrapped(state, ["features.3.weight"]) == state


@pytest.mark.parametrize(
    ("nested", "told"),
    [
        (["state_dict"], "taking 'state_dict'"),
        (["model", "model_ema"], "taking 'model', not model_ema"),
        (["model_ema"], "taking 'model_ema'"),
        (["model_state_dict", "ema"], "taking 'model_state_dict', not ema"),
        (["module"], "taking 'module'"),
        (["resnet20"], "taking 'resnet20'"),
    ],
)
def test_of_several_state_dicts_the_taken_one_is_named(
    nested: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents: dict[str, Any] = {"epoch": 3, "optimizer": {"lr": 0.1}} | {key: prefixed("") for key in nested}
    imported(contents, tmp_path / "weights.pth")
    assert capsys.readouterr().out == f"weights.pth: {told}\n"


def test_state_dicts_may_be_two_levels_down(tmp_path: Path) -> None:
    state = imported({"state_dict": {"model": prefixed("module.")}}, tmp_path / "weights.pth")
    assert state.keys() == lenet().state_dict().keys()


def test_an_averaged_model_of_torch_is_read(tmp_path: Path) -> None:
    state = imported({"model_ema": AveragedModel(lenet()).state_dict()}, tmp_path / "weights.pth")
    assert state.keys() == lenet().state_dict().keys()


def test_the_contents_decide_the_format(tmp_path: Path) -> None:
    save_file(prefixed(""), tmp_path / "weights.pth")
    torch.save(prefixed(""), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert read(tmp_path / name).keys() == lenet().state_dict().keys()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({1: torch.zeros(2)}, "its keys are not names of weights, such as 1"),
        ({"epoch": 1, "lr": 0.1}, "epoch, lr are no tensor"),
        ({"state_dict": {"a": 1}}, "a is no tensor"),
        ({"student": {"a": torch.zeros(1)}, "teacher": {"a": torch.zeros(1)}}, "student, teacher are no tensor"),
        ({"k" * 1000: 1}, "k… is no tensor"),
        ({}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        (lenet(), r"holds more than weights, or none, and was not loaded: torch.save\(model.state_dict\(\), FILE\)"),
    ],
)
def test_other_contents_are_a_line(contents: object, message: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message) as raised:
        read(tmp_path / "weights.pth")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("odd", [torch.eye(2).to_sparse(), torch.zeros(2, device="meta")])
def test_tensors_without_a_number_for_each_element_are_refused(odd: Tensor) -> None:
    with pytest.raises(CheckpointError, match="sparse, quantised or without data: a"):
        tensors_of({"a": odd}, Path("weights.pth"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds more than weights, or none"),
        (b"<!DOCTYPE html><html>not found</html>", "holds more than weights, or none"),
        (b"PK\x05\x06" + bytes(18), "holds more than weights, or none"),  # an empty zip archive
        (b"\x02\0\0\0\0\0\0\0{}" + bytes(8), "cannot be read"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_other_files_are_a_line(data: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_a_refusal_names_five_keys_of_each_kind() -> None:
    net = ZOO["resnet18"].build(10)
    state = {f"layer{number}.odd": torch.zeros(1) for number in range(7)} | {"conv1.weight": torch.zeros(2, 3)}
    with pytest.raises(CheckpointError) as raised:
        fit(net, state, "weights.pth does not fit resnet18")
    text = str(raised.value)
    assert text.startswith("weights.pth does not fit resnet18: it has no bn1.weight, bn1.bias, ")
    missing = sum(not key.endswith("num_batches_tracked") for key in net.state_dict()) - 1
    assert f"and {missing - 5} more; it has the unknown layer0.odd, " in text
    assert "layer4.odd and 2 more; it has other shapes: conv1.weight [2, 3], not [64, 3, 7, 7]" in text
    assert len(text) < 500
