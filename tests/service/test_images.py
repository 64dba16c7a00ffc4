"""Bytes from anybody become a picture or a clear error."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from service.errors import Problem
from service.images import FORMATS, decode

LIMIT = 1_000_000


def encoded(picture: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", FORMATS)
def test_each_format_is_decoded(image_format: str) -> None:
    picture = decode(encoded(Image.new("RGB", (30, 20), (200, 30, 30)), image_format), LIMIT)
    assert picture.size == (30, 20)
    assert np.abs(np.asarray(picture.convert("RGB"), int) - (200, 30, 30)).max() <= 8


def test_of_a_gif_the_first_frame() -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    body = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(body, LIMIT).convert("L").getpixel((0, 0)) == 10


def test_a_photo_stands_upright() -> None:
    picture = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    assert decode(encoded(picture, "JPEG", exif=exif), LIMIT).size == (20, 30)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_truncated_image_is_broken(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    body = encoded(Image.fromarray(noise), image_format)
    for length in (12, len(body) // 2):
        with pytest.raises(Problem) as raised:
            decode(body[:length], LIMIT)
        assert (raised.value.status, raised.value.code) == (400, "broken_image")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_image"),
        (b"hello", 415, "unsupported_format"),
        (b"%PDF-1.7", 415, "unsupported_format"),
        (b"\x80\x04\x95pickle", 415, "unsupported_format"),
        (b"https://example.org/cat.png", 415, "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, 400, "broken_image"),
    ],
)
def test_what_is_no_image_is_refused(body: bytes, status: int, code: str) -> None:
    with pytest.raises(Problem) as raised:
        decode(body, LIMIT)
    assert (raised.value.status, raised.value.code) == (status, code)


@pytest.mark.parametrize("edge", [1001, 20_000])  # the second is over Pillow's own limit too
def test_too_many_pixels_are_refused_before_decoding(edge: int) -> None:
    body = encoded(Image.new("1", (edge, edge)), "PNG")
    assert len(body) < 100_000
    with pytest.raises(Problem) as raised:
        decode(body, LIMIT)
    assert (raised.value.status, raised.value.code) == (413, "too_many_pixels")


def test_random_changes_to_an_image_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for image_format in FORMATS:
        body = np.frombuffer(encoded(picture, image_format), np.uint8)
        for _ in range(200):
            mutated = body.copy()
            places = generator.integers(0, len(body), 5)
            mutated[places] = generator.integers(0, 256, 5)
            with suppress(Problem):
                decode(mutated.tobytes(), LIMIT)
