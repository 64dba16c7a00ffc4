"""Tests of the command `python -m models`, run as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.__main__ import main
from models.complexity import depth
from models.tables import rounded
from models.zoo import ZOO
from tests.models.test_counts import COUNTS
from tests.serving import ROOT

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and returns the text it prints."""

    def run(*arguments: str) -> str:
        main(list(arguments))
        return capsys.readouterr().out

    return run


def test_the_list_has_a_line_per_architecture(run: Run) -> None:
    lines = run("--family", "lenet", "--family", "zfnet").splitlines()
    assert lines[0].split() == [
        *("name", "family", "year", "input", "params", "macs", "activations"),
        *("data", "top1", "top5", "protocol", "source"),
    ]
    assert [line.split()[0] for line in lines[1:5]] == ["lenet5", "lenet5_modern", "zfnet", "zfnet_wide"]
    assert " ".join(lines[1].split()).startswith("lenet5 lenet 1998 1x32x32 60,000 325,680 6,508 MNIST 99.05 - test, ")
    assert lines[-1].startswith("4 architectures")


def test_the_list_is_sorted_and_filtered(run: Run) -> None:
    options = ("--family", "vgg", "--max-macs", "12e9", "--max-params", "133e6", "--sort", "top1", "--descending")
    rows = list(csv.DictReader(io.StringIO(run(*options, "--csv"))))
    assert [row["name"] for row in rows] == ["vgg11_bn", "vgg11"]
    assert (rows[1]["params"], rows[1]["macs"], rows[1]["top5"]) == ("132863336", "7609090048", "88.628")


def test_rows_without_a_value_come_last(run: Run) -> None:
    for order in ([], ["--descending"]):
        rows = csv.DictReader(io.StringIO(run("--family", "lenet", "--sort", "top1", *order, "--csv")))
        assert [row["name"] for row in rows] == ["lenet5", "lenet5_modern"]


def test_json_is_a_list_of_objects(run: Run) -> None:
    (first, _) = json.loads(run("--family", "lenet", "--json"))
    assert (first["name"], first["family"], first["params"], first["macs"]) == ("lenet5", "lenet", 60_000, 325_680)
    assert "layers" not in first
    (first, _) = json.loads(run("--family", "lenet", "--json", "--layers"))
    assert sum(layer["macs"] for layer in first["layers"]) == first["macs"]
    nothing = ("--family", "lenet", "--max-macs", "1")
    assert json.loads(run(*nothing, "--json")) == []
    assert run(*nothing, "--csv").startswith("name,family,")
    assert run(*nothing).endswith(
        "\n0 architectures; costs at the paper's input, accuracies in percent, as published.\n"
    )


def test_markdown_is_a_table(run: Run) -> None:
    lines = run("--family", "resnet", "--max-macs", "4.1e9", "--markdown").splitlines()
    assert lines[0] == "| Name | Family | Year | Parameters | MACs | Published top-1 |"
    assert "| `resnet50` | resnet | 2015 | 25.6 M | 4.09 G | 76.13 % (ImageNet) |" in lines


def test_one_architecture_is_shown_layer_by_layer(run: Run) -> None:
    text = run("vgg16")
    lines = text.splitlines()
    assert lines[1].split()[:3] == ["input", "-", "-"]
    assert lines[2].split() == [
        *("features.0", "Conv2d", "3x3", "64x224x224", "1,792", "86,704,128", "3,211,264", "7,168", "12,845,056", "3x3")
    ]
    assert "138,357,544   553.43 MB" in text
    assert "15,237,608   60.95 MB" in text
    rows = list(csv.DictReader(io.StringIO(run("vgg16", "--csv"))))
    assert sum(int(row["macs"] or 0) for row in rows) == 15_470_264_320
    assert json.loads(run("vgg16", "--json"))["layers"][0]["receptive_field"] == [3, 3]


def test_architectures_are_laid_side_by_side(run: Run) -> None:
    text = run("alexnet_owt", "vgg11")
    lines = {line[:44].strip(): line[44:].split() for line in text.splitlines()}
    assert text.split()[:4] == ["alexnet_owt", "vgg11", "second", "/"]
    assert lines["depth: weight layers on the longest path"] == ["8", "11", "1.38"]
    assert lines["multiply-accumulates"] == ["714,188,480", "7,609,090,048", "10.7"]
    assert lines["parameters in float32"] == ["244.40", "MB", "531.45", "MB", "2.17"]
    assert lines["published top-1"] == ["56.522", "%", "69.02", "%"]
    assert "torchvision" in text
    rows = json.loads(run("alexnet_owt", "vgg11", "lenet5", "--json"))
    assert [(row["name"], row["depth"], "layers" in row) for row in rows] == [
        *(("alexnet_owt", 8, False), ("vgg11", 11, False), ("lenet5", 4, False))
    ]
    (first, second) = csv.DictReader(io.StringIO(run("alexnet_owt", "vgg11", "--csv")))
    assert (first["depth"], second["macs"]) == ("8", "7609090048")
    assert run("alexnet_owt", "vgg11", "--markdown").startswith("|  | alexnet_owt | vgg11 | second / first |\n")
    assert "second / first" not in run("alexnet_owt", "vgg11", "lenet5")
    assert run("lenet5", "lenet5") == run("lenet5")


@pytest.mark.parametrize(
    ("name", "layers"), [("googlenet", 22), ("resnet50", 50), ("densenet121", 121), ("se_resnet50", 50)]
)
def test_depths_are_those_of_the_papers(name: str, layers: int) -> None:
    assert depth(ZOO[name]) == layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg16", "--sort", "macs"], "are for the list, without a NAME"),
        (["vgg16", "--family", "vgg"], "are for the list, without a NAME"),
        (["vgg16", "--markdown"], "are for the list, without a NAME"),
        (["vgg16", "vgg19", "--layers", "--json"], "are for the list, without a NAME"),
        (["vgg16", "vgg61"], "there is no 'vgg61'; did you mean "),
        (["--layers"], "--layers needs --json"),
        (["--json", "--csv"], "not allowed with"),
        (["--max-macs", "many"], "invalid float value"),
    ],
)
def test_options_that_do_not_fit_together_are_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(60_000, "60.0 K"), (999_499, "999 K"), (999_700, "1.00 M"), (999_600_000, "1.00 G"), (4_089_184_256, "4.09 G")],
)
def test_counts_are_rounded_to_three_digits_of_the_largest_unit(count: int, text: str) -> None:
    assert rounded(count) == text


def test_the_error_of_an_unknown_name_suggests_similar_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["vgg61"])
    assert stopped.value.code == 2
    assert "there is no 'vgg61'; did you mean vgg16 or " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "models preact_resnet1001",
        pytest.param("training import", marks=pytest.mark.slow),
        pytest.param("engines table", marks=pytest.mark.slow),
        pytest.param("loadtest report docs/sweep.jsonl --out OUT", marks=pytest.mark.slow),
    ],
)
def test_a_pipe_closed_early_is_no_error(words: str, tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m {words.replace('OUT', str(tmp_path))} | head -c 0"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ZOO)
def test_accuracies_are_percents_with_a_source(name: str) -> None:
    published = ZOO[name].published
    # No accuracy of lenet5_modern was published; a network outside the lecture may do without.
    assert published or name == "lenet5_modern" or name not in COUNTS
    for result in published:
        assert result.source
        assert result.protocol
        assert 50 < (result.top1 or result.top5 or 0) < 100
        assert result.top1 is None or result.top5 is None or result.top1 < result.top5
