"""Locust's own command and ours, against a real server."""

from __future__ import annotations

import itertools
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.loadtest.conftest import Locust

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
    told = re.findall(r"(lenet5\S*): offered .* 0 failed, (\S+)% of (\d+) answers right$", done.stderr, re.MULTILINE)
    assert [model for model, _, _ in told] == ["lenet5", "lenet5@mnist5k"]
    assert all(float(right) >= 80 for _, right, _ in told)  # of few
    often, seldom = (int(answers) for _, _, answers in told)
    assert often > seldom > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "lenet5,lenet6"], "there is no model 'lenet6'"),
        (["--models", "senet154"], "python -m training senet154"),
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


class Broken(BaseHTTPRequestHandler):
    """Well for the probe that a run begins with; then in turn no answer, a malformed one, an improbable one."""

    answers = itertools.chain([b'{"predictions": [{"label": "7", "probability": 1.0}]}'], itertools.cycle(BAD_ANSWERS))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        answer = next(self.answers)
        if answer:
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_what_is_no_answer_is_a_failure(locust: Locust) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        done = locust(f"http://127.0.0.1:{broken.server_port}", "--scenario", "single_stream", "-t", "2s")
        broken.shutdown()
    assert done.returncode == 1
    assert "no answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert "(100.00%)" in done.stderr + done.stdout
