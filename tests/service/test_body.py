"""Tests of reading the image from the forms that clients send."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from service.body import MAX_PARTS, image_of
from service.errors import Problem
from tests.serving import ROOT

DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
TEXT = b'Content-Disposition: form-data; name="text"\r\n\r\nwords'
IMAGE = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
NAMELESS = b'Content-Disposition: form-data; name="image"\r\n\r\n'


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


@pytest.mark.parametrize(
    "part",
    [
        IMAGE,
        IMAGE.replace(b"a.png", b"caf\xe9.png"),
        IMAGE.replace(b"a.png", "café.png".encode()),
        IMAGE.replace(b"a.png", b""),
        NAMELESS,
        NAMELESS.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n"),
        IMAGE.replace(b'filename="a.png"', b"filename*=UTF-8''a%20b.png"),
        IMAGE.replace(b'"', b""),
        IMAGE.replace(b"\r\n\r\n", b"\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"),
        IMAGE.lower(),
    ],
)
def test_the_image_is_the_part_of_that_name_whatever_stands_beside_it(part: bytes) -> None:
    body = form(TEXT, part + b"\r\n--the\x00image", TEXT)
    assert image_of(body, "multipart/form-data; boundary=x") == b"\r\n--the\x00image"


@pytest.mark.parametrize("written", ["----=_Part_1", '"----=_Part_1"', "----=_Part_1; charset=utf-8"])
def test_a_boundary_may_be_of_any_letters_and_bare(written: str) -> None:
    body = form(IMAGE + b"the image", boundary=b"----=_Part_1")
    assert image_of(body, f"Multipart/Form-Data;boundary={written}") == b"the image"


def test_what_is_no_form_is_the_image() -> None:
    assert image_of(form(TEXT), "image/png") == form(TEXT)
    assert image_of(b"\x00", "") == b"\x00"


def test_empty_parts_are_passed_over_if_another_has_bytes() -> None:
    assert image_of(form(IMAGE, NAMELESS, IMAGE + b"another"), "multipart/form-data; boundary=x") == b"another"
    assert image_of(form(IMAGE, TEXT), "multipart/form-data; boundary=x") == b""


@pytest.mark.parametrize("file", [(None, DIGIT), (None, DIGIT, "image/png"), ("", DIGIT), ("a.png", DIGIT), DIGIT])
def test_requests_may_leave_out_the_files_name(file: Any) -> None:
    request = requests.Request("POST", "http://test/classify", files={"image": file}).prepare()
    assert isinstance(request.body, bytes)
    assert image_of(request.body, request.headers["Content-Type"]) == DIGIT


def test_several_images_are_refused() -> None:
    with pytest.raises(Problem, match="the form has 2 images; this route takes one") as caught:
        image_of(form(IMAGE + b"one", IMAGE, IMAGE + b"another"), "multipart/form-data; boundary=x")
    assert (caught.value.status, caught.value.code) == (422, "several_images")


def test_a_form_with_other_parts_alone_names_them() -> None:
    with pytest.raises(Problem, match="no part named `image`; its parts are 'text', 'file'"):
        image_of(form(TEXT, IMAGE.replace(b'"image"', b'"file"')), "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(TEXT), "empty_image"),
        (b"", "broken_multipart"),
        (form(IMAGE + b"the image")[:-6], "broken_multipart"),
        (form(*[TEXT] * MAX_PARTS, IMAGE + b"the image"), "broken_multipart"),
        (form(b"no header\r\n\r\nthe image"), "broken_multipart"),
    ],
)
def test_what_is_wrong_with_a_form_is_told(body: bytes, code: str) -> None:
    with pytest.raises(Problem) as caught:
        image_of(body, "multipart/form-data; boundary=x")
    assert (caught.value.status, caught.value.code) == (400, code)
    with pytest.raises(Problem):
        image_of(form(IMAGE + b"the image"), "multipart/form-data")
