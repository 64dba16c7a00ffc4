"""Typed answers of the server, and their reading from HTTP responses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

SHOWN = 200  # characters of an answer that is not the server's


@dataclass(frozen=True)
class RankedClass:
    """Class with its probability; `index` is its place in the model's list of classes.

    `wnid`, the class's id in WordNet, and `superclass` are None unless the model's classes are ImageNet's.
    """

    index: int
    label: str
    probability: float
    wnid: str | None = None
    superclass: str | None = None


@dataclass(frozen=True)
class RankedSuperclass:
    """Superclass, such as dog or vehicle, with the sum of the probabilities of all its classes."""

    superclass: str
    probability: float


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds on the server: decoding, waiting for the device, inference of the batch."""

    decode: float
    queue: float
    inference: float


@dataclass(frozen=True)
class ClassifiedImage:
    """Answer to one image: the full tag of the model, and the classes with the most probable first.

    `superclasses` are ordered alike, and None unless the model's classes are ImageNet's.
    `choice` is the reason of `auto` and what it chose from, as the server's JSON, else None.
    """

    model: str
    runtime: str
    precision: str
    predictions: tuple[RankedClass, ...]
    batch_size: int
    timing_ms: StageTimes
    choice: dict[str, Any] | None = None
    superclasses: tuple[RankedSuperclass, ...] | None = None

    @property
    def label(self) -> str:
        """Label of the most probable class."""
        return self.predictions[0].label

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.predictions[0].probability


class ServerProblem(Exception):
    """Reason why an image has no answer; `code` is stable, `status` is that of HTTP.

    The status is 0 if the image was not sent or no server answered: `unreachable`, `unreadable`, `too_large`.
    """

    def __init__(self, status: int, code: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


Result = ClassifiedImage | ServerProblem


def read(response: httpx.Response, images: int) -> list[Result] | ServerProblem:
    """Return the result of each of a request's images, or the problem of the request as a whole."""
    try:
        body = response.json()
        results = answers_in(body) if response.is_success else problems_in(body, response)
    except (ValueError, KeyError, TypeError, AttributeError):
        return foreign(response)
    if isinstance(results, ServerProblem) or len(results) == images:
        return results
    return foreign(response)


def answers_in(body: dict[str, Any]) -> list[Result]:
    """Return the results in the body of an answer to one image, or to several."""
    rows = body.get("images", [body])
    return [answer_of(body, row) if "predictions" in row else problem_of(row) for row in rows]


def answer_of(body: dict[str, Any], row: dict[str, Any]) -> ClassifiedImage:
    """Return the answer to one image, whose model is in `body`."""
    return ClassifiedImage(
        model=body["model"],
        runtime=body["runtime"],
        precision=body["precision"],
        predictions=tuple(
            RankedClass(item["index"], item["label"], item["probability"], item.get("wnid"), item.get("superclass"))
            for item in row["predictions"]
        ),
        batch_size=row["batch_size"],
        timing_ms=StageTimes(*(row["timing_ms"][stage] for stage in ("decode", "queue", "inference"))),
        choice=body.get("choice"),
        superclasses=superclasses_of(row),
    )


def superclasses_of(row: dict[str, Any]) -> tuple[RankedSuperclass, ...] | None:
    """Return the superclasses of the answer to one image, or None if the answer has none."""
    if "superclasses" not in row:
        return None
    return tuple(RankedSuperclass(item["superclass"], item["probability"]) for item in row["superclasses"])


def problems_in(body: dict[str, Any], response: httpx.Response) -> list[Result] | ServerProblem:
    """Return the problem of a request, or of each of its images if the body has them."""
    wait_s = retry_after(body, response)
    if "images" in body:
        return [problem_of(row, wait_s) for row in body["images"]]
    return problem_of(body, wait_s)


def problem_of(row: dict[str, Any], wait_s: float | None = None) -> ServerProblem:
    """Return the problem that a JSON object describes (RFC 9457)."""
    return ServerProblem(row["status"], row["code"], row["detail"], wait_s)


def retry_after(body: dict[str, Any], response: httpx.Response) -> float | None:
    """Return the seconds after which the server wants to be asked again, if it says so."""
    if "retry_after_ms" in body:
        return float(body["retry_after_ms"]) / 1000
    header = response.headers.get("retry-after", "")
    if header.isdecimal():
        return float(header)
    try:
        return (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # none, or one that cannot be read
        return None


def foreign(response: httpx.Response) -> ServerProblem:
    """Return the problem of an answer that is not convserve's, such as a proxy's page."""
    text = " ".join(response.text[:SHOWN].split())
    address = response.url.copy_with(query=None, username=None, password=None)
    detail = f"{address} answers {response.status_code} with {text!r}"
    return ServerProblem(response.status_code, "not_convserve", detail, retry_after({}, response))
