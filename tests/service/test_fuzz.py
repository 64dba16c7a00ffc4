"""Fuzz tests: requests generated from the server's own OpenAPI, and broken pictures.

The long run, of 20,000 pictures, prints how many were decoded: `pytest -m slow -s tests/service/test_fuzz.py`.
"""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.errors import Problem
from service.images import FORMATS
from tests.service.test_images import LIMIT, SMALL, chunks_of, encoded, png, to_pixels
from tests.service.test_server import DIGIT

MAX_GROWTH_MB = 20.0
OUTCOMES = {"decoded", "empty_image", "broken_image", "too_many_pixels", "unsupported_format"}
QUIET = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


NAMES = {"model", "models", "name"}  # parameters that are names of models
CONFORMS: list[schemathesis.CheckFunction] = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_is_of_the_schema(server: httpx.Client, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")
    statuses: Counter[int] = Counter()
    for operation in schema.get_all_operations():
        assert isinstance(operation, Ok)

        @settings(QUIET, max_examples=25)
        @given(operation.ok().as_strategy(generation_mode=mode), st.booleans())
        def ask(case: schemathesis.Case[Any], known: bool) -> None:
            case.headers.clear()  # they include the headers of HTTP itself, which test_hostile tests
            for names in (case.query, case.path_parameters):
                names.update({key: "lenet5" for key in NAMES & names.keys() if known})
            answer = case.call(timeout=30)
            statuses[answer.status_code] += 1
            assert answer.status_code not in {500, 502}
            case.validate_response(answer, checks=CONFORMS)

        with suppress(Unsatisfiable):  # a route without parameters has no invalid request
            ask()
    print(f"{mode.value}: {dict(statuses)}")
    assert statuses.total() > 100


def pictures() -> list[bytes]:
    """Return pictures of every format and of every variant that a separate part of the decoder reads."""
    generator = np.random.default_rng(0)
    colours = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    deep = Image.fromarray(generator.integers(0, 2**16, (16, 16), dtype=np.uint16))
    bodies = [encoded(colours, image_format) for image_format in FORMATS]
    bodies += [encoded(colours.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    bodies += [encoded(colours.convert(mode), "GIF", interlace=1) for mode in ("L", "P")]
    bodies += [encoded(colours.convert(mode), "BMP") for mode in ("1", "L", "P", "RGBA")]
    bodies += [encoded(colours.convert(mode), "JPEG", progressive=True) for mode in ("L", "RGB", "CMYK")]
    bodies += [encoded(colours.convert(mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA")]
    bodies += [encoded(colours, name, save_all=True, append_images=[colours] * 2) for name in ("GIF", "PNG", "WEBP")]
    exif = Image.Exif()
    exif[0x0112] = 6
    bodies += [encoded(colours, name, exif=exif) for name in ("JPEG", "PNG", "WEBP")]
    return [*bodies, encoded(deep, "PNG"), DIGIT]


PICTURES = pictures()
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@st.composite
def broken_pictures(draw: st.DrawFn) -> bytes:
    """Draw a picture with bytes changed, lengths replaced, another picture's end, or its own end cut off."""
    body = bytearray(draw(st.sampled_from(PICTURES)))
    place = st.integers(0, len(body) - 1)
    for kind in draw(st.lists(st.sampled_from(["flip", "length", "splice", "cut", "repeat"]), min_size=1, max_size=4)):
        at = min(draw(place), max(0, len(body) - 1))
        match kind:
            case "flip":
                body[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case "length":
                order, code = draw(st.sampled_from(["<I", ">I", "<H", ">H"])), draw(st.sampled_from(LENGTHS))
                number = struct.pack(order, code & (0xFFFF if order[1] == "H" else 0xFFFFFFFF))
                body[at : at + len(number)] = number
            case "splice":
                other = draw(st.sampled_from(PICTURES))
                body[at:] = other[min(at, len(other) - 1) :]
            case "cut":
                del body[at:]
            case "repeat":
                body[at:at] = body[at : at + 32] * draw(st.integers(1, 20))
    if body.startswith(b"\x89PNG") and draw(st.booleans()):
        with suppress(struct.error):  # valid checksums, so that Pillow reads on past them
            return png(*chunks_of(bytes(body)))
    return bytes(body)


def outcome(body: bytes) -> str:
    """Return "decoded", or the code of the problem; any other exception fails the test."""
    try:
        pixels = to_pixels(body, SMALL, LIMIT)
    except Problem as problem:
        return problem.code if problem.status in {400, 413, 415} else f"wrong status {problem.status}"
    return "decoded" if pixels.shape == (20, 20, 3) and pixels.dtype == np.uint8 else "wrong pixels"


def outcomes_of_broken_pictures(examples: int) -> Counter[str]:
    """Count the outcomes of `examples` broken pictures; decoding all of them once more must not take more memory."""
    bodies: list[bytes] = []
    outcomes: Counter[str] = Counter()

    @settings(QUIET, max_examples=examples)
    @given(broken_pictures())
    def decode(body: bytes) -> None:
        result = outcome(body)
        assert result in OUTCOMES
        outcomes[result] += 1
        bodies.append(body)

    decode()
    before = psutil.Process().memory_info().rss  # includes what Hypothesis keeps of each example
    for body in bodies:
        outcome(body)
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    print(f"{len(bodies)} pictures: {dict(outcomes)}; {grown:+.1f} MB")
    assert grown < MAX_GROWTH_MB
    return outcomes


def test_a_broken_picture_is_pixels_or_a_problem() -> None:
    assert outcomes_of_broken_pictures(2000).keys() == OUTCOMES


@pytest.mark.slow
def test_so_are_ten_times_as_many() -> None:
    assert outcomes_of_broken_pictures(20_000)["decoded"] > 1000
