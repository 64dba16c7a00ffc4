"""Tests of `python -m loadtest landscape`: rows, stores, energy counters, and one network timed for real."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from engines.published import manifest
from engines.published.store import PublishedModel
from loadtest.landscape.command import landscape_command
from loadtest.landscape.energy import EnergyCounter, of_gpus, of_processors
from loadtest.landscape.networks import check_space, command, environment, networks, stored
from loadtest.landscape.rows import (
    LandscapeRound,
    LandscapeRow,
    check_machine,
    check_settings,
    progress,
    read_landscape,
)
from loadtest.landscape.search import highest_rate
from loadtest.rows import LoadPoint, SweepLoad
from loadtest.store import write_rows
from loadtest.traffic import ScenarioError
from tests.serving import ROOT

LOAD = SweepLoad(seconds=1, in_flight=16, p99_ms=500, steps=4)
MACHINE = {"processor": "AMD EPYC, 2 cores", "energy": "no counter"}


def a_round(batch1_ms: float = 10, batch8_ms: float = 50, memory_mb: float | None = 100) -> LandscapeRound:
    return LandscapeRound(
        p50_ms=12,
        p99_ms=20,
        offline=90,
        rate=70,
        joules=None,
        batch1_ms=batch1_ms,
        batch8_ms=batch8_ms,
        memory_mb=memory_mb,
        others=0,
        at="2026-11-27T22:00:00+00:00",
    )


@pytest.fixture
def row() -> LandscapeRow:
    """Return a row without a round."""
    return LandscapeRow(
        name="resnet50",
        family="resnet",
        year=2015,
        runtime="openvino",
        precision="fp32",
        weights="random",
        dataset="random",
        input=224,
        macs=4_089_184_256,
        params=25_557_032,
        activations=11_114_984,
        published_top1=0.7613,
        published_source="torchvision IMAGENET1K_V1: validation, one 224 crop",
        machine=MACHINE,
        settings=LOAD.model_dump(),
    )


def test_a_row_has_the_medians_of_its_rounds(row: LandscapeRow, tmp_path: Path) -> None:
    for measured in (a_round(10, 50, None), a_round(30, 90, 300), a_round(20, 80, 200)):
        row = row.with_round(measured)
    assert (row.batch1_ms, row.batch8_ms, row.images_s, row.memory_mb) == (20, 80, 100, 250)
    assert row.with_round(a_round(5, 80)).images_s == pytest.approx(100)
    write_rows(tmp_path / "landscape.jsonl", [row])
    assert read_landscape(tmp_path / "landscape.jsonl") == [row]
    assert progress(row).endswith("offline 90.0/s; p99 within 500 ms up to 70.0/s")


def test_rounds_of_other_settings_or_machines_are_not_mixed(row: LandscapeRow) -> None:
    check_settings(Path("a.jsonl"), [row], LOAD.model_dump())
    check_machine(Path("a.jsonl"), row, "openvino", MACHINE)
    with pytest.raises(ScenarioError, match=r"a.jsonl was measured with seconds 1 .*, not with seconds 2 .*: choose"):
        check_settings(Path("a.jsonl"), [row], LOAD.model_dump() | {"seconds": 2})
    with pytest.raises(ScenarioError, match="measured with processor AMD EPYC, 2 cores, not another: choose another"):
        check_machine(Path("a.jsonl"), row, "openvino", MACHINE | {"processor": "another"})
    with pytest.raises(ScenarioError, match="measured with runtime openvino, not torch: choose another --out"):
        check_machine(Path("a.jsonl"), row, "torch", MACHINE)


@pytest.mark.parametrize(("capacity", "expected"), [(100, 93.75), (60, 56.25), (1, 0)])
def test_the_search_ends_below_the_capacity(capacity: float, expected: float) -> None:
    def run(rate: float) -> LoadPoint:
        return cast(LoadPoint, SimpleNamespace(p99_ms=100 if rate <= capacity else 900, failures=0))

    assert highest_rate(run, 100, LOAD) == expected


def test_all_networks_of_imagenet_are_chosen_and_have_a_published_top1() -> None:
    chosen = {network.name: network for network in networks([])}
    assert len(chosen) == 44
    assert {"alexnet", "senet154"} <= chosen.keys()
    assert not {"lenet5", "resnet20_cifar"} & chosen.keys()
    assert chosen["resnet50"].published_top1 == (0.7613, "torchvision IMAGENET1K_V1: validation, one 224 crop")
    assert all(network.published_top1 for network in chosen.values())
    (lenet5,) = networks(["lenet5"])
    assert lenet5.published_top1 is None  # an accuracy on other data is none for ImageNet


def test_an_unknown_network_is_named_with_a_near_one() -> None:
    with pytest.raises(ScenarioError, match="--models: there is no network resnet55; is resnet5"):
        networks(["resnet18", "resnet55"])
    with pytest.raises(ScenarioError, match=r"^--models: there is no network unlike; `python -m models` lists them$"):
        networks(["unlike"])


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_text('{"kind": "engine"}\n')
    with pytest.raises(ScenarioError, match=r"^.*sweep.jsonl is not what `python -m loadtest landscape` writes: .*$"):
        read_landscape(tmp_path / "sweep.jsonl")


def test_int8_needs_imported_weights() -> None:
    (network,) = networks(["resnet18"])
    assert network.weights == "random"
    assert "imported weights only" in str(network.why_not("int8"))
    assert network.why_not("bf16") is None


def test_a_model_of_the_users_store_is_linked_and_stays(lenet5: PublishedModel, tmp_path: Path) -> None:
    (network,) = networks(["lenet5"])
    assert network.real is None  # of digits, not of ImageNet
    real = type(network)(network.card, lenet5)
    home = tmp_path / "lenet5"
    with stored(real, ["fp32"], home, keep=False) as tag:
        folder = home / "models" / tag.replace(":", "/")
        assert folder.is_symlink()
        assert manifest.load(folder).tag == lenet5.manifest.tag
    assert not home.exists()
    assert (lenet5.folder / manifest.WEIGHTS).exists()
    assert "is not published in fp16" in str(real.why_not("fp16"))


@pytest.mark.slow
def test_random_weights_are_published_once_and_used_again(tmp_path: Path) -> None:
    (network,) = networks(["lenet5"])
    home = tmp_path / "lenet5"
    made = []
    for _ in range(2):
        with stored(network, ["fp32", "bf16"], home, keep=True) as tag:
            made.append((tag, (home / "models" / tag.replace(":", "/") / manifest.FILE).stat().st_mtime_ns))
    assert made[0] == made[1]
    assert made[0][0].startswith("lenet5:random-")
    assert not (home / "checkpoint").exists()


def test_a_full_disk_and_a_failed_command_are_a_line_each(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"GB are free, 1000000000.0 GB are needed: make room"):
        check_space(tmp_path / "home", 10**18)
    with pytest.raises(ScenarioError, match=r"^python -m engines bench --json: no model is published: "):
        command(tmp_path, "engines", "bench", "--json")


def test_settings_of_another_server_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_API_KEYS", "secret")
    monkeypatch.setenv("CONVSERVE_RUNTIME", "torch")
    kept = environment(tmp_path)
    assert "CONVSERVE_API_KEYS" not in kept
    assert (kept["CONVSERVE_RUNTIME"], kept["BENTOML_HOME"]) == ("torch", str(tmp_path))


def test_energy_is_of_whole_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    for zone, used in {"intel-rapl:0": "90000000", "intel-rapl:0:1": "5", "intel-rapl:1": "no number"}.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(used)
        (tmp_path / zone / "max_energy_range_uj").write_text("100000000")
    (counter,) = of_processors(tmp_path)
    before = counter.read()
    assert (counter.name, before) == ("intel-rapl:0", 90)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("20000000")
    assert counter.since(before) == 30
    assert EnergyCounter("a", lambda: 5.0).since(2) == 3


def test_a_machine_without_counters_has_none(tmp_path: Path) -> None:
    assert list(of_processors(tmp_path)) == []
    assert list(of_gpus([])) == []
    if not Path("/proc/driver/nvidia").exists():
        assert list(of_gpus(["0"])) == []


def landscape(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of its own, so that its models and photos are made there."""
    home = {"PYTHONPATH": str(ROOT), "BENTOML_HOME": str(folder / "home")}
    line = [sys.executable, "-m", "loadtest", "landscape", "--models", "lenet5", "--seconds", "1", *arguments]
    return subprocess.run(
        line, cwd=folder, env=os.environ | home | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_network_is_timed_through_a_server_and_alone_and_a_second_run_adds_what_is_missing(tmp_path: Path) -> None:
    first = landscape(tmp_path, "--precisions", "fp32,int8", "--rounds", "1")
    assert first.returncode == 0, first.stderr
    assert "lenet5 in int8 is left out: INT8 is timed with imported weights only" in first.stdout
    second = landscape(tmp_path, "--precisions", "fp32", "--rounds", "2", "--keep")
    assert second.stdout.count("lenet5 in fp32") == 1
    (row,) = read_landscape(tmp_path / "results" / "landscape.jsonl")
    assert (row.weights, row.dataset, row.input, row.published_top1) == ("random", "random", 32, None)
    assert len(row.rounds) == 2
    for figures in row.rounds:
        assert 0 < figures.batch1_ms < figures.p50_ms <= figures.p99_ms
        assert 0 <= figures.rate <= figures.offline
    assert list((tmp_path / "results" / "landscape" / "lenet5" / "models" / "lenet5").glob("random-*"))
    load = landscape(tmp_path, "--seconds", "2")
    assert (load.returncode, len(load.stderr.splitlines())) == (1, 1)
    assert "was measured with seconds 1" in load.stderr
    runtime = landscape(tmp_path, CONVSERVE_RUNTIME="torch")
    assert (runtime.returncode, len(runtime.stderr.splitlines())) == (1, 1)
    assert "was measured with runtime openvino, not torch" in runtime.stderr
    with (tmp_path / "results" / "landscape" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is in use: another landscape is being measured" in landscape(tmp_path).stderr
    moved = row.model_copy(update={"machine": row.machine | {"processor": "another"}})
    write_rows(tmp_path / "results" / "landscape.jsonl", [moved])
    machine = landscape(tmp_path, "--precisions", "fp32")
    assert (machine.returncode, len(machine.stderr.splitlines())) == (1, 1)
    assert "was measured with processor another, not" in machine.stderr
    assert read_landscape(tmp_path / "results" / "landscape.jsonl") == [moved]


@pytest.mark.slow
def test_what_fails_is_a_line_and_the_rest_is_measured(tmp_path: Path) -> None:
    done = landscape(tmp_path, "--precisions", "fp16,fp32", "--rounds", "1", CONVSERVE_RUNTIME="openvino")
    assert done.returncode == 1
    assert "lenet5 in fp16: " in done.stdout
    assert done.stderr == "error: not measured, for the reasons above: lenet5 in fp16\n"
    assert [row.precision for row in read_landscape(tmp_path / "results" / "landscape.jsonl")] == ["fp32"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--precisions", "fp64"), "'fp64' is none of fp32, bf16, fp16, int8"),
        (("--rounds", "0"), "'0' is no whole number of at least 1"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        landscape_command(list(arguments))
    assert line in capsys.readouterr().err
