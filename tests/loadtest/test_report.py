"""Tests of the report of a real sweep: its answer, its drawings, and the places of names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loadtest import rows
from loadtest.landscape.rows import LandscapeRow
from loadtest.report import data
from loadtest.report.answer import answer, landscape_answer
from loadtest.report.labels import apart, box_of, place
from loadtest.report.page import write_report
from loadtest.report.sections import counted, full_table
from loadtest.rows import EngineRow, Measured, by_engine
from loadtest.store import write_rows
from loadtest.traffic import ScenarioError

SWEEP = Path("docs/sweep.jsonl")


@pytest.fixture(scope="module")
def engines() -> list[EngineRow]:
    """Return the engines of a real sweep: seven networks in two precisions, in one round."""
    return rows.read(SWEEP)[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report of a real sweep."""
    folder = tmp_path_factory.mktemp("report")
    write_report(SWEEP, folder, 20)
    return folder


@pytest.mark.slow
def test_the_page_answers_first_and_has_papers_figures_last(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert "<script src" not in page
    assert page.index("Serve resnet18 in INT8: 98.8 % right on mnist5k") < page.index("<nav>")
    titles = re.findall("<h2>(.*?)</h2>", page.partition("<script>")[0])
    assert titles == ["Trained and measured here: mnist5k", "Details", "Published figures", "How it was measured"]


@pytest.mark.slow
def test_each_drawing_is_for_a_page_and_a_phone_and_a_picture(report: Path) -> None:
    specs = specs_of(report)
    assert {path.stem for path in report.glob("*.png")} == specs.keys()
    assert {"mnist5k_p99", "precision_int8", "stages", "rates", "published_macs", "ilsvrc"} <= specs.keys()
    assert all(spec.keys() == {"wide", "narrow"} for spec in specs.values())
    for name in specs:
        with Image.open(report / f"{name}.png") as drawn:
            assert 2100 < drawn.width < 2400


@pytest.mark.slow
def test_no_drawing_has_a_legend_or_mixes_measured_and_published_accuracies(report: Path) -> None:
    for name, spec in specs_of(report).items():
        fields = list(walk(spec))
        measured = {"held-out images of" in value for key, value in fields if key == "source"}
        assert len(measured) <= 1, name
        assert all(value is None for key, value in fields if key == "legend"), name


def specs_of(report: Path) -> dict[str, dict[str, Any]]:
    """Return the drawings of a page by name."""
    page = (report / "index.html").read_text()
    specs: dict[str, dict[str, Any]] = json.loads(page.partition("const specs = ")[2].partition(";\nconst phone")[0])
    return specs


def walk(value: object) -> Iterator[tuple[str, Any]]:
    """Yield every key and value within nested dictionaries and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_an_answer_names_the_most_accurate_within_the_bound(engines: list[EngineRow]) -> None:
    measurements = by_engine(engines)
    first, speed, equal, *_ = answer(measurements, 20)
    assert first == "Serve resnet18 in INT8: 98.8 % right on mnist5k, the most accurate of 14 with a p99 within 20 ms."
    assert speed.startswith("One connection has a p50 of 2.1 ms and a p99 of 3.45 ms; at 84 requests a second")
    assert equal.startswith("resnet20_cifar in INT8 is faster, and 1,000 images cannot tell its 98.6 % from 98.8 %")
    first, *_, slower, other = answer(measurements, 2)
    assert first.startswith("Serve lenet5 in fp32: 97.8 % right")
    assert slower == "More accurate, but slower: resnet18 in INT8, 98.8 % with a p99 of 3.45 ms."
    assert "sweep --p99-ms 2, into another file" in other
    assert answer(measurements, None)[0].endswith("mnist5k, the most accurate of 14.")
    assert answer(measurements, 1) == [
        "None of the 14 measured engines has a p99 within 1 ms: the fastest is lenet5 in fp32, with 1.76 ms."
    ]
    unknown = by_engine([row.model_copy(update={"top1": None}) for row in engines])
    assert answer(unknown, 20) == ["None of the measured engines has a known accuracy, so none can be recommended."]


def test_an_answer_for_imagenet_says_that_its_accuracy_is_published() -> None:
    rows = [timed_network(*row) for row in (("resnet50", 0.7613, 40), ("alexnet", 0.5652, 10), ("vgg16", 0.71592, 200))]
    assert landscape_answer(rows, 50) == [
        "For ImageNet, serve resnet50 in fp32: 76.1 % as published, the most accurate of 2 with a p99 within 50 ms.",
        "One connection has a p50 of 36 ms and a p99 of 40 ms, measured here with random weights; the accuracy is from"
        " torchvision.",
    ]
    assert landscape_answer(rows, None)[0].endswith(" as published, the most accurate of 3.")
    assert landscape_answer(rows, 5) == [
        "For ImageNet, none of 3 engines has a p99 within 5 ms here: the fastest is alexnet in fp32, with 10 ms."
    ]


@pytest.mark.slow
def test_the_landscape_comes_first(tmp_path: Path) -> None:
    write_rows(tmp_path / "sweep.jsonl", rows.read(SWEEP)[1][:1])
    networks = [timed_network("resnet50", 0.7613, 40), timed_network("alexnet", 0.5652, 10)]
    unpublished = networks[0].model_copy(update={"name": "nobody", "published_top1": None})
    write_rows(tmp_path / "landscape.jsonl", [*networks, unpublished])
    first, second = write_report(tmp_path / "sweep.jsonl", tmp_path / "report", 20)
    assert first.startswith("For ImageNet, serve alexnet in fp32: 56.5 % as published")
    assert second.startswith("Serve lenet5 in fp32")
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.index('<section id="landscape">') < page.index('<section id="mnist5k">')
    assert (tmp_path / "report" / "landscape.png").exists()


def timed_network(name: str, top1: float, p99_ms: float) -> LandscapeRow:
    """Return a network of the landscape with one round."""
    row = {"name": name, "precision": "fp32", "published_top1": top1, "published_source": "torchvision"}
    costs = {"family": name, "year": 2015, "input": 224, "macs": 10**9, "params": 10**7, "activations": 10**6}
    figures = {"p50_ms": 0.9 * p99_ms, "p99_ms": p99_ms, "offline": 20, "rate": 10, "joules": None, "memory_mb": 100}
    engine = {"batch1_ms": 0.8 * p99_ms, "batch8_ms": 5 * p99_ms, "others": 0, "at": "2026-11-27T12:00:00+00:00"}
    how = {"runtime": "openvino", "weights": "random", "dataset": "random", "machine": {"processor": "made up"}}
    measured = {"rounds": [figures | engine], "settings": {"p99_ms": 500}}
    return LandscapeRow.model_validate(row | costs | how | measured)


@pytest.mark.slow
def test_the_report_of_engines_that_could_not_be_measured_is_whole(engines: list[EngineRow], tmp_path: Path) -> None:
    gone: dict[str, Any] = {
        "single": None,
        "offline": None,
        "search": [],
        "max_rate": None,
        "at_percent": {},
        "problem": "gone",
    }
    nothing = {"max_rate": 0.0, "search": [], "at_percent": {}, "benchmark": [], "top1": 0.0}
    slow = engines[1].model_copy(update=nothing)
    write_rows(tmp_path / "sweep.jsonl", [engines[0].model_copy(update=gone), slow])
    assert write_report(tmp_path / "sweep.jsonl", tmp_path / "report")[0].startswith(
        "Serve lenet5 in INT8: 0.0 % right"
    )
    assert "in fp32, round 1: gone" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf")])
def test_a_bound_is_above_0(bound: float, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"--p99-ms .*: a bound is a number of milliseconds above 0"):
        write_report(SWEEP, tmp_path, bound)


def test_rounds_have_their_spread_in_the_table(engines: list[EngineRow]) -> None:
    again = engines[0].model_copy(update={"round": 1, "max_rate": 700.0})
    (record,) = data.measured([Measured("lenet5 fp32", [engines[0], again])])
    assert record["max_rate_spread"] == "700 to 777"
    table = full_table([record])
    assert ("738", "700 to 777", record["max_rate"]) in table.rows[0]
    assert "the least and the largest of the rounds" in table.caption


def test_names_cover_no_point_and_no_other_name() -> None:
    points = [(50.0 + 9 * step, 60.0 + 5 * (step % 3)) for step in range(20)]
    names = [(x, y, f"net{step}") for step, (x, y) in enumerate(points)]
    found = place(names, points, [], 300, 120)
    boxes = [box_of(where, text) for where, (*_, text) in zip(found, names, strict=True) if where]
    assert 5 < len(boxes) < 20  # the others have no room
    assert not any(first.overlaps(second) for index, first in enumerate(boxes) for second in boxes[:index])
    assert not any(box.left < x < box.right and box.top < y < box.bottom for box in boxes for x, y in points)
    (free,) = place([(100, 50, "net")], [(100, 50)], [], 300, 120)
    assert free
    assert free.align == "left"
    (above,) = place([(100, 50, "net")], [(100, 50)], [[(0, 50), (300, 50)]], 300, 120)
    assert above
    assert above.y < 50


def test_positions_are_moved_apart_in_their_order() -> None:
    assert apart([10, 11, 50], 10) == [5.5, 15.5, 50]
    assert apart([50, 11, 10], 10) == [50, 15.5, 5.5]


def test_the_front_is_what_nothing_beats() -> None:
    records = [{"cost": cost, "top1": top1} for cost, top1 in ((1, 50), (2, 49), (2, 60), (3, 60), (4, 70), (5, None))]
    assert [record["cost"] for record in data.front(records, "cost")] == [1, 2, 4]
    assert [record["cost"] for record in data.front(records, "cost", more_is_better=True)] == [4]


def test_the_line_fitted_is_the_one_that_made_the_times() -> None:
    records = [{"gmacs": x, "inference_ms": 2 + 10 * x} for x in (0.1, 0.5, 4.0)]
    line = data.fit(records)
    assert line
    assert line == pytest.approx((2, 10, 1))
    assert line.at(3) == pytest.approx(32)
    assert data.fit(records[:2]) is None


def test_counts_have_units() -> None:
    assert [counted(count) for count in (60_000, 138_357_544, 4_089_184_256)] == ["60.0 K", "138 M", "4.09 G"]
