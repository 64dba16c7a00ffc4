"""Tests of the client's requests in simulated time: what is sent again, when, and what is given up."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from convserve_client.answers import ClassifiedImage, RankedSuperclass, Result, ServerProblem
from convserve_client.client import BATCH_BYTES, LARGEST, chunks, load
from convserve_client.conversation import Outgoing, Question, Reply, conversation, wait_before

POSTED = httpx.Request("POST", "http://server/classify?model=lenet5")
ENGINE = {"model": "lenet5:mnist5k-5c93254d", "runtime": "openvino", "precision": "fp32"}
LATE = {"title": "Gateway Timeout", "status": 504, "code": "timeout", "detail": "the image waited too long"}
BROKEN = {"title": "Bad Request", "status": 400, "code": "broken_image", "detail": "the image cannot be decoded"}


def row(label: str) -> dict[str, Any]:
    """Return the answer to one image of several, as the server sends it."""
    return {
        "predictions": [{"index": int(label), "label": label, "probability": 0.75}],
        "batch_size": 2,
        "timing_ms": {"decode": 0.1, "queue": 0.2, "inference": 0.3},
    }


def response(status: int, body: Any, retry_after: str | None = None) -> httpx.Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return httpx.Response(status, json=body, headers=headers, request=POSTED)


def several(*rows: dict[str, Any]) -> httpx.Response:
    return response(200, ENGINE | {"images": list(rows)})


def problem(
    status: int, code: str, more: dict[str, Any] | None = None, retry_after: str | None = None
) -> httpx.Response:
    body = {"title": "x", "status": status, "code": code, "detail": "why"}
    return response(status, body | (more or {}), retry_after)


def drive(
    images: list[bytes | ServerProblem], *replies: Reply, patience_s: float = 10.0
) -> tuple[list[Result], list[int | float]]:
    """Return the results, and for each step the number of images that were sent, or the seconds of a wait."""
    left, now = list(replies), 0.0
    log: list[int | float] = []
    reply: Reply | None = None
    steps = conversation(images, Question("lenet5"), patience_s, lambda: now)
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as end:
            assert not left
            return end.value, log
        reply = None
        if isinstance(step, Outgoing):
            assert step.parameters == {"model": "lenet5", "top_k": 5}
            log.append(len(step.images))
            reply = left.pop(0)
        else:
            log.append(step)
            now += step


def shown(results: list[Result]) -> list[str]:
    return [result.code if isinstance(result, ServerProblem) else result.label for result in results]


def test_one_image_is_the_body_and_several_are_a_form() -> None:
    one, two = (Outgoing(images, {}, 1.0) for images in ([b"a"], [b"a", b"b"]))
    assert (one.content, one.files) == (b"a", None)
    assert (two.content, two.files) == (None, [("image", ("image", b"a")), ("image", ("image", b"b"))])


def test_an_answer_has_types() -> None:
    (answer,), log = drive([b"a"], response(200, ENGINE | row("7") | {"choice": {"reason": "fast"}}))
    assert isinstance(answer, ClassifiedImage)
    assert (answer.label, answer.probability, answer.batch_size) == ("7", 0.75, 2)
    assert (answer.timing_ms.queue, answer.choice, log) == (0.2, {"reason": "fast"}, [1])
    assert (answer.predictions[0].wnid, answer.superclasses) == (None, None)


def test_an_answer_of_imagenet_has_superclasses() -> None:
    tabby = {"index": 281, "label": "tabby", "probability": 0.5, "wnid": "n02123045", "superclass": "cat"}
    of_imagenet = row("1") | {"predictions": [tabby], "superclasses": [{"superclass": "cat", "probability": 0.75}]}
    (answer,), _ = drive([b"a"], response(200, ENGINE | of_imagenet))
    assert isinstance(answer, ClassifiedImage)
    assert (answer.predictions[0].wnid, answer.predictions[0].superclass) == ("n02123045", "cat")
    assert answer.superclasses == (RankedSuperclass("cat", 0.75),)


def test_each_image_has_its_result_in_order() -> None:
    mine = ServerProblem(0, "unreadable", "no such file")
    results, log = drive([b"a", b"", mine, b"b", b"c"], several(row("1"), BROKEN, row("3")))
    assert shown(results) == ["1", "empty_image", "unreadable", "broken_image", "3"]
    assert log == [3]
    assert drive([mine, b""])[1] == []


def test_only_what_failed_for_a_passing_reason_is_sent_again() -> None:
    results, log = drive(
        [b"a", b"b", b"c", b"d"],
        several(row("1"), LATE, BROKEN, LATE),
        several(LATE, row("4")),
        response(200, ENGINE | row("2")),
    )
    assert shown(results) == ["1", "2", "broken_image", "4"]
    assert log[::2] == [4, 2, 1]
    assert 0.05 <= log[1] <= 0.1 <= log[3] <= 0.2


@pytest.mark.parametrize(
    ("reply", "least_s", "most_s"),
    [
        (problem(503, "overloaded", {"retry_after_ms": 1600}, "2"), 1.6, 1.6),
        (problem(503, "device_gone", retry_after="3"), 3, 3),
        (httpx.Response(429, text="slow down", headers={"Retry-After": "4"}, request=POSTED), 4, 4),
        (
            problem(503, "no_choice", retry_after=format_datetime(datetime.now(UTC) + timedelta(hours=1))),
            2400,
            3600,
        ),
        (problem(504, "timeout"), 0.05, 0.1),
        (httpx.Response(502, text="<html>Bad Gateway", request=POSTED), 0.05, 0.1),
        (httpx.ConnectError("refused"), 0.05, 0.1),
        (problem(503, "overloaded", {"images": [LATE], "retry_after_ms": 700}), 0.7, 0.7),
    ],
)
def test_the_server_says_when_to_ask_again(reply: Reply, least_s: float, most_s: float) -> None:
    results, log = drive([b"a"], reply, response(200, ENGINE | row("7")), patience_s=10_000)
    assert shown(results) == ["7"]
    assert log[0] == log[2] == 1
    assert least_s <= log[1] <= most_s


def test_a_wait_beyond_the_patience_is_not_begun() -> None:
    results, log = drive([b"a"], problem(503, "overloaded", {"retry_after_ms": 10_500}))
    assert shown(results) == ["overloaded"]
    assert log == [1]


def test_waits_grow_until_the_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    results, log = drive([b"a"], *[httpx.ConnectError("refused")] * 6, patience_s=5)
    assert shown(results) == ["unreachable"]
    assert log[1::2] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert wait_before(2000, []) == 5  # a server may be away for hours


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
def test_what_will_not_pass_is_not_sent_again(status: int) -> None:
    results, log = drive([b"a", b"b"], problem(status, "no"))
    assert shown(results) == ["no", "no"]
    assert log == [2]


def test_a_request_that_is_too_large_is_divided() -> None:
    too_large = problem(413, "body_too_large")
    page = httpx.Response(413, text="<html>nginx", request=POSTED)
    results, log = drive([b"a", b"b", b"c"], page, response(200, ENGINE | row("1")), too_large, too_large, too_large)
    assert shown(results) == ["1", "body_too_large", "body_too_large"]
    assert log == [3, 1, 2, 1, 1]


def test_images_that_are_all_bad_have_each_its_problem() -> None:
    large = BROKEN | {"status": 413, "code": "too_many_pixels"}
    results, log = drive([b"a", b"b"], problem(413, "too_many_pixels", {"images": [BROKEN, large]}))
    assert shown(results) == ["broken_image", "too_many_pixels"]
    assert log == [2]


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, text="<html>Welcome to nginx!", request=POSTED),
        response(200, []),
        response(200, {"label": "7"}),
        several(row("1")),
        response(404, {"detail": "Not Found"}),
    ],
)
def test_an_answer_of_another_server_is_shown(reply: httpx.Response) -> None:
    results, _ = drive([b"a", b"b"], reply)
    assert shown(results) == ["not_convserve"] * 2
    assert str(results[0]).startswith(f"not_convserve: http://server/classify answers {reply.status_code} with '")


def test_the_password_in_an_address_is_not_shown() -> None:
    posted = httpx.Request("POST", "http://ann:secret@server/classify?model=lenet5")
    results, _ = drive([b"a"], httpx.Response(401, text="Who?", request=posted))
    assert str(results[0]) == "not_convserve: http://server/classify answers 401 with 'Who?'"


def test_requests_are_bounded_in_images_and_bytes() -> None:
    large = bytes(BATCH_BYTES // 2 + 1)
    sizes = [len(chunk) for chunk in chunks([b"x"] * 5 + [large] * 3 + [bytes(2 * BATCH_BYTES), b"x"], 4)]
    assert sizes == [4, 2, 1, 1, 1, 1]


def test_files_that_cannot_be_sent_are_problems(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(LARGEST + 1)
    problems = [load(tmp_path / name) for name in ("large.png", "missing.png", ".")]
    assert [problem.code for problem in problems if isinstance(problem, ServerProblem)] == [
        "too_large",
        "unreadable",
        "unreadable",
    ]
