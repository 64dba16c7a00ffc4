"""Tests of the landscape's picture and page, with made-up times: places of names, fits, the lecture's statements."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from loadtest.landscape.claims import claims
from loadtest.landscape.command import landscape_command
from loadtest.landscape.figure import by_precision, front, landscape_figure
from loadtest.landscape.fit import TimedNetwork, by_family, deviations, fits, timed
from loadtest.landscape.networks import networks
from loadtest.landscape.placement import LEADER, Surroundings, place_names, text_width
from loadtest.landscape.rows import LandscapeRound, LandscapeRow
from loadtest.store import write_rows
from loadtest.traffic import ScenarioError

NAMES = "alexnet vgg16 googlenet_bn_tv resnet18 resnet50 resnet152 inception_v4 densenet121 resnext50_32x4d senet154"


def made_up(name: str, precision: str, slower: float = 1.0) -> LandscapeRow:
    """Return a row with made-up times, 10 ms a billion MACs in fp32."""
    (network,) = networks([name])
    assert network.published_top1
    ms = slower * network.card["macs"] / 1e8 / (1 if precision == "fp32" else 2)
    row = LandscapeRow(
        **{key: network.card[key] for key in ("name", "family", "year", "macs", "params", "activations")},
        runtime="openvino",
        precision=precision,
        weights="random",
        dataset="random",
        input=network.card["input_shape"][1],
        published_top1=network.published_top1[0],
        published_source=network.published_top1[1],
        machine={"processor": "made up", "cores": "2"},
        settings={"seconds": 4, "p99_ms": 500},
    )
    for share in (1.0, 1.1, 0.9):
        row = row.with_round(
            LandscapeRound(
                p50_ms=share * (ms + 2),
                p99_ms=ms + 5,
                offline=900 / ms,
                rate=800 / ms,
                joules=None,
                batch1_ms=ms,
                batch8_ms=(2 if name == "alexnet" else 8) * ms,
                memory_mb=row.params * 8e-6,
                others=0.0,
                at="2026-11-27T12:00:00+00:00",
            )
        )
    return row


@pytest.fixture(scope="module")
def rows() -> list[LandscapeRow]:
    """Return rows of ten networks at two precisions; AlexNet, DenseNet and ResNeXt are slow for their MACs."""
    slow = {"alexnet": 4.0, "densenet121": 2.0, "resnext50_32x4d": 2.0}
    return [made_up(name, precision, slow.get(name, 1.0)) for name in NAMES.split() for precision in ("fp32", "bf16")]


def test_names_cover_no_point_and_no_other_name() -> None:
    points = [(100.0 + 9 * (place % 5), 100.0 + 11 * (place // 5)) for place in range(15)]
    names = [(point, f"network{place}") for place, point in enumerate(points)]
    placed = place_names(names, Surroundings(points, [], (400, 300), 11))
    boxes = []
    for (_, text), where in zip(names, placed, strict=True):
        assert where
        width = text_width(text, 11)
        left = where.x - {"left": 0, "center": 0.5, "right": 1}[where.align] * width
        boxes.append((left, where.y - 4, left + width, where.y + 4))
    for a, b in itertools.combinations(boxes, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    for (x, y), (left, top, right, bottom) in itertools.product(points, boxes):
        assert not (left < x < right and top < y < bottom)
    assert any(where and where.leader for where in placed)  # these stand further than LEADER
    assert LEADER > 0


def test_names_without_room_are_left_out_the_first_last() -> None:
    names = [((30.0, 10.0 + place), name) for place, name in enumerate(["first", "second", "third"])]
    placed = place_names(names, Surroundings([point for point, _ in names], [], (64, 20), 11))
    assert placed[0]
    assert not all(placed)
    assert place_names([], Surroundings([], [], (64, 20), 11)) == []


def test_the_front_is_what_no_network_beats(rows: list[LandscapeRow]) -> None:
    fp32, bf16 = by_precision(rows)
    assert {record["precision"] for record in fp32} == {"fp32"}
    assert len(bf16) == 10
    assert [record["name"] for record in front(fp32, "gmacs")] == [
        *("alexnet", "googlenet_bn_tv", "densenet121", "resnet50", "resnext50_32x4d", "resnet152"),
        *("inception_v4", "senet154"),
    ]


def test_accuracies_of_ten_crops_are_not_compared_with_those_of_one() -> None:
    (records,) = by_precision([made_up(name, "fp32") for name in ("alexnet", "zfnet", "nin_imagenet")])
    assert [record["name"] for record in front(records, "gmacs")] == ["alexnet", "nin_imagenet"]
    (records,) = by_precision([made_up("zfnet", "fp32")])
    assert front(records, "gmacs") == records


@pytest.mark.parametrize("width", [880, pytest.param(360, marks=pytest.mark.slow)])
def test_the_picture_names_the_networks_and_their_sources(rows: list[LandscapeRow], width: int) -> None:
    text = json.dumps(landscape_figure(rows, width=width).to_dict())
    for part in (*NAMES.split(), "torchvision IMAGENET1K_V1: validation, one 224 crop"):
        assert part in text
    for part in ("max_latency_ms=20", "fp32: ", "random weights", "front in bf16"):  # a phone has no room
        assert (part in text) == (width == 880)


def test_fits_find_the_law_and_the_reasons(rows: list[LandscapeRow]) -> None:
    ordinary = [network for network in timed(rows, "fp32") if network.name.startswith(("resnet", "vgg", "inc", "sen"))]
    assert fits(ordinary)[0].powers[0] == pytest.approx(1)
    assert fits(ordinary)[0].r_squared == pytest.approx(1)
    assert fits(ordinary[:4]) == [] == deviations(ordinary[:4])
    reasons = {each.network.name: each.reason for each in deviations(timed(rows, "fp32"))}
    assert "99%" in reasons["alexnet"] or "98%" in reasons["alexnet"]
    assert reasons["alexnet"].endswith("are 4.0 times as fast.")
    assert reasons["resnext50_32x4d"].startswith("Groups: 32 paths of 4 maps")
    assert reasons["densenet121"].startswith("Thin convolutions, with norms and concatenations")
    slow = {each.family: each for each in by_family(timed(rows, "fp32"))}
    assert slow["densenet"].rests[0] > 1 > slow["senet"].rests[1]
    assert slow["resnet"].networks == 3


def test_values_moved_are_each_weight_input_and_output_once(rows: list[LandscapeRow]) -> None:
    alexnet: TimedNetwork = timed(rows, "fp32")[0]
    assert alexnet.name == "alexnet"
    assert alexnet.params + alexnet.activations < alexnet.moved < 1.03 * alexnet.params


def test_the_lectures_statements(rows: list[LandscapeRow]) -> None:
    vgg, googlenet, alexnet, resnet = claims([row for row in rows if row.precision == "fp32"])
    assert vgg.verdict == googlenet.verdict == alexnet.verdict == "holds"
    assert "`senet154` (20.7 GMACs)" in vgg.evidence
    assert "69.8 % for 1.5 GMACs" in googlenet.evidence
    assert "with 244 MB of weights" in alexnet.evidence
    assert resnet.verdict == "holds in part"
    assert "`inception_v4` with 80.1 %" in resnet.evidence
    assert list(claims([made_up("densenet121", "fp32")])) == []


@pytest.mark.slow  # 5 s
def test_the_command_writes_a_picture_and_a_page(
    rows: list[LandscapeRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "landscape.jsonl"
    write_rows(results, rows)
    landscape_command(["--figure", "--out", str(results)])
    assert capsys.readouterr().out.count("wrote ") == 2
    assert (tmp_path / "landscape.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "landscape.md").read_text()
    for part in (
        "](landscape.png)",
        "the weights timed were random",
        "Accuracies are published ones",
        "| `senet154` |",
    ):
        assert part in page


def test_nothing_to_draw_is_a_line(tmp_path: Path) -> None:
    results = tmp_path / "landscape.jsonl"
    with pytest.raises(ScenarioError, match=r"landscape.jsonl: No such file.*`python -m loadtest landscape` writes it"):
        landscape_command(["--figure", "--out", str(results)])
    results.touch()
    with pytest.raises(ScenarioError, match="no measured network"):
        landscape_command(["--figure", "--out", str(results)])
