"""Tests of the command `locust` with this project's file, against a real server."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.loadtest.conftest import Locust
from tests.loadtest.stub import StubHandler, prediction, stub_server

BAD_ANSWERS = (
    b"",
    b"{}",
    b'{"predictions": [{"label": "7", "probability": null}]}',
    b'{"predictions": [{"label": "7", "probability": 2}]}',
)


def test_the_images_are_the_held_out_digits_by_label(images: Path) -> None:
    assert {folder.name for folder in images.iterdir()} == set("0123456789")
    paths = list(images.glob("*/*.png"))
    assert len(paths) == 1000
    with Image.open(paths[0]) as digit:
        assert digit.size == (28, 28)


@pytest.mark.parametrize("options", ["-u 2", "-u 2 --scenario server --rate 40 --processes 2"])
def test_locust_headless_checks_answers_and_reports_accuracy(locust: Locust, host: str, options: str) -> None:
    done = locust(host, "--models", "lenet5=3,lenet5@mnist5k", "-t", "4s", *options.split())
    assert done.returncode in (0, 3), done.stderr  # 3: the generator fell behind, on a busy machine
    lines = re.findall(r"(lenet5\S*): offered .* 0 failed, (\S+)% of (\d+) answers right$", done.stderr, re.MULTILINE)
    assert [model for model, _, _ in lines] == ["lenet5", "lenet5@mnist5k"]
    assert all(float(right) >= 80 for _, right, _ in lines)  # few answers, so a low bound
    often, seldom = (int(answers) for _, _, answers in lines)
    assert often > seldom > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "lenet5,lenet6"], "there is no model 'lenet6'"),
        (["--models", "senet154"], "python -m training import senet154"),
        (["--images", "/nonexistent"], "no images in /nonexistent"),
        (["--precision", "int8"], "is published in fp32, bf16, not in int8"),
        (["--models", "lenet5=many"], "'many' is no weight of lenet5"),
        (["--scenario", "server", "--rate", "0"], "--rate must be more than 0, not 0"),
    ],
)
def test_a_run_that_cannot_start_says_why(locust: Locust, host: str, arguments: list[str], message: str) -> None:
    done = locust(host, *arguments, "-t", "20s")
    assert done.returncode == 2
    assert message in done.stderr


class Broken(StubHandler):
    """Handler that answers the probe of a run well, then in turn not at all, malformed, and with a bad probability."""

    answers = itertools.chain([prediction("7")], itertools.cycle(BAD_ANSWERS))

    def answer(self) -> bytes:
        """Return the next answer, and close the connection."""
        self.close_connection = True
        return next(self.answers)


def test_a_malformed_answer_is_a_failure(locust: Locust) -> None:
    with stub_server(Broken) as host:
        done = locust(host, "--scenario", "single_stream", "-t", "2s")
    assert done.returncode == 1
    assert "no answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert "(100.00%)" in done.stderr + done.stdout
