"""Requests for some images until each has its result: what is sent, when it is sent again, and when it is given up.

The same steps serve the synchronous and the asynchronous client, which carry them out.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass

import httpx

from convserve_client.answers import Result, ServerProblem, read

PASSING = {0, 429, 502, 503, 504}  # statuses after which the same request may succeed
IMPOSSIBLE = "impossible_deadline"  # code of a request that takes longer than it may; fewer images may not
UNREACHABLE = "unreachable"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # before a request is sent again, unless the server says when
MOST_DOUBLINGS = 10  # of the first wait, which is the longest by then
LEAST_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Question:
    """Parameters of a request: a name of a model, or `auto` with at least one of the last two.

    `deadline_ms` is for all images of a request, `max_latency_ms` for one image.
    """

    model: str
    top_k: int = 5
    precision: str | None = None
    deadline_ms: float | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None

    def parameters(self) -> dict[str, str | int | float]:
        """Return the query parameters, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Outgoing:
    """Request that is to be sent: one image as the body, or several as the parts of a form."""

    images: Sequence[bytes]
    parameters: dict[str, str | int | float]
    timeout_s: float

    @property
    def content(self) -> bytes | None:
        """Body with the only image, else None."""
        return self.images[0] if len(self.images) == 1 else None

    @property
    def files(self) -> list[tuple[str, tuple[str, bytes]]] | None:
        """Parts of the form with several images, else None."""
        return [("image", ("image", image)) for image in self.images] if len(self.images) > 1 else None


Reply = httpx.Response | httpx.TransportError
# Yields a request, and is sent the reply; or yields seconds to wait. Returns the result of each image, in order.
Conversation = Generator[Outgoing | float, Reply | None, list[Result]]


def conversation(
    images: Sequence[bytes | ServerProblem],
    question: Question,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Conversation:
    """Ask for the results of some images; images with a passing problem are sent again while `patience_s` lasts.

    An image that is a problem already, or has no bytes, is not sent. If the server finds a request too large
    or too long, each half is sent by itself.
    """
    deadline = clock() + patience_s
    results: dict[int, Result] = {}
    sent: dict[int, bytes] = {}
    for place, image in enumerate(images):
        if isinstance(image, ServerProblem):
            results[place] = image
        elif image:
            sent[place] = image
        else:
            results[place] = ServerProblem(400, "empty_image", "the image has no bytes")
    todo = deque([list(sent)] if sent else [])
    waits = 0
    while todo:
        group = todo.popleft()
        timeout_s = max(deadline - clock(), LEAST_TIMEOUT_S)
        reply = yield Outgoing([sent[place] for place in group], question.parameters(), timeout_s)
        rows = rows_of(reply, len(group))
        if rows is None:
            half = len(group) // 2
            todo.extendleft([group[half:], group[:half]])
            continue
        results.update(zip(group, rows, strict=True))
        again = [place for place, row in zip(group, rows, strict=True) if is_passing(row)]
        wait_s = wait_before(waits, rows)
        if again and clock() + wait_s < deadline:
            waits += 1
            todo.appendleft(again)
            yield wait_s
    return [results[place] for place in range(len(images))]


def rows_of(reply: Reply | None, images: int) -> list[Result] | None:
    """Return the result of each image of a request; None if the request was too large and can be divided."""
    if isinstance(reply, httpx.Response):
        answer = read(reply, images)
    else:
        answer = ServerProblem(0, UNREACHABLE, f"{type(reply).__name__}: {reply}")
    if not isinstance(answer, ServerProblem):
        return answer
    too_much = answer.status == httpx.codes.REQUEST_ENTITY_TOO_LARGE or answer.code == IMPOSSIBLE
    if too_much and images > 1:
        return None
    return [answer for _ in range(images)]


def is_passing(result: Result) -> bool:
    """Return True for a problem that may be gone when the same image is sent again."""
    return isinstance(result, ServerProblem) and result.status in PASSING


def wait_before(waits: int, rows: Sequence[Result]) -> float:
    """Return the seconds to wait: what the server says, or after each wait twice as long; spread, so clients part."""
    longest_s = min(FIRST_WAIT_S * 2.0 ** min(waits, MOST_DOUBLINGS), LONGEST_WAIT_S)
    own_s: float = longest_s * random.uniform(0.5, 1)  # noqa: S311
    told = [row.retry_after_s for row in rows if isinstance(row, ServerProblem) and row.retry_after_s is not None]
    return max([own_s, *told])
