"""Tests of decoding: untrusted bytes become pixels or a clear error."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.published.preprocess import Preprocess
from service.batches import Pixels
from service.errors import Problem
from service.images import FORMATS, decode, opened

LIMIT = 1_000_000
SMALL = Preprocess(mode="RGB", resize_edge=20, crop=20)


def encoded(picture: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def to_pixels(body: bytes, preprocess: Preprocess, max_pixels: int) -> Pixels:
    return decode(opened(body, max_pixels), [preprocess], scaled=False)[0]


@pytest.mark.parametrize("image_format", FORMATS)
def test_each_format_is_decoded(image_format: str) -> None:
    pixels = to_pixels(encoded(Image.new("RGB", (30, 20), (200, 30, 30)), image_format), SMALL, LIMIT)
    assert pixels.shape == (20, 20, 3)
    assert np.abs(pixels.astype(int) - (200, 30, 30)).max() <= 8


def test_of_a_gif_the_first_frame() -> None:
    frames = [Image.new("L", (20, 20), shade) for shade in (10, 200)]
    body = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (to_pixels(body, SMALL, LIMIT) == 10).all()


def test_a_jpeg_may_be_decoded_scaled_down_and_no_smaller_than_it_is_resized_to() -> None:
    body = encoded(Image.effect_noise((330, 210), 60).convert("RGB"), "JPEG")
    for edge, size in [(20, (42, 27)), (27, (83, 53)), (106, (330, 210))]:
        picture = opened(body, LIMIT)
        preprocess = Preprocess(mode="RGB", resize_edge=edge, crop=20)
        (scaled,) = decode(picture, [preprocess], scaled=True)
        assert picture.size == size
        assert scaled.shape == (20, 20, 3)
    exact = to_pixels(body, SMALL, LIMIT)
    (scaled,) = decode(opened(body, LIMIT), [SMALL], scaled=True)
    assert 0 < np.abs(scaled.astype(int) - exact).mean() < 8
    png = encoded(Image.new("RGB", (330, 210)), "PNG")
    assert (decode(opened(png, LIMIT), [SMALL], scaled=True)[0] == to_pixels(png, SMALL, LIMIT)).all()


def test_a_photo_stands_upright() -> None:
    half = np.zeros((20, 20, 3), np.uint8)
    half[:10] = 255  # white above; by the EXIF orientation the top belongs to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = to_pixels(encoded(Image.fromarray(half), "JPEG", exif=exif), SMALL, LIMIT)
    assert pixels[:, 12:].min() > 200
    assert pixels[:, :8].max() < 50


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_truncated_image_is_broken(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    body = encoded(Image.fromarray(noise), image_format)
    for length in (12, len(body) // 2):
        with pytest.raises(Problem) as raised:
            to_pixels(body[:length], SMALL, LIMIT)
        assert (raised.value.status, raised.value.code) == (400, "broken_image")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_image"),
        (b"hello", 415, "unsupported_format"),
        (b"%PDF-1.7", 415, "unsupported_format"),
        (b"RIFF\0\0\0\0WAVEfmt ", 415, "unsupported_format"),
        (b"\x80\x04\x95pickle", 415, "unsupported_format"),
        (b"https://example.org/cat.png", 415, "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, 400, "broken_image"),
    ],
)
def test_what_is_no_image_is_refused(body: bytes, status: int, code: str) -> None:
    with pytest.raises(Problem) as raised:
        to_pixels(body, SMALL, LIMIT)
    assert (raised.value.status, raised.value.code) == (status, code)


@pytest.mark.parametrize("edge", [1001, 20_000])  # the second edge exceeds Pillow's own limit too
def test_too_many_pixels_are_refused_before_decoding(edge: int) -> None:
    body = encoded(Image.new("1", (edge, edge)), "PNG")
    assert len(body) < 100_000
    with pytest.raises(Problem) as raised:
        to_pixels(body, SMALL, LIMIT)
    assert (raised.value.status, raised.value.code) == (413, "too_many_pixels")


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of the given chunks with correct checksums."""
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        body += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return body


def test_a_16_bit_png_with_transparency_is_not_opaque() -> None:
    picture = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    assert (to_pixels(encoded(picture, "PNG", transparency=40_000), SMALL, LIMIT) == 0).all()
    assert (to_pixels(encoded(picture, "PNG"), SMALL, LIMIT) == 156).all()


def chunks_of(body: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(body):
        (length,) = struct.unpack(">I", body[at : at + 4])
        chunks.append((body[at + 4 : at + 8], body[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def test_more_transparency_than_a_palette_can_have_is_broken() -> None:
    header, palette, *rest = chunks_of(encoded(Image.new("P", (4, 4), 1), "PNG"))
    assert palette[0] == b"PLTE"
    with pytest.raises(Problem) as raised:
        to_pixels(png(header, palette, (b"tRNS", b"\0" * 300), *rest), SMALL, LIMIT)
    assert (raised.value.status, raised.value.code) == (400, "broken_image")


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [*((image_format, "RGB") for image_format in FORMATS), ("PNG", "P"), ("PNG", "LA"), ("GIF", "P"), ("BMP", "P")],
)
def test_random_changes_to_an_image_never_raise_anything_else(image_format: str, mode: str) -> None:
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    body = np.frombuffer(encoded(picture.convert(mode), image_format), np.uint8)
    for _ in range(100):
        mutated = body.copy()
        places = generator.integers(0, len(body), 5)
        mutated[places] = generator.integers(0, 256, 5)
        changed = mutated.tobytes()
        if image_format == "PNG":
            with suppress(struct.error):
                changed = png(*chunks_of(changed))
        with suppress(Problem):
            to_pixels(changed, SMALL, LIMIT)


def test_pillow_keeps_the_memory_of_a_picture_for_the_next_and_no_more_than_64_mib() -> None:
    body = encoded(Image.new("RGB", (2600, 2000), (200, 30, 30)), "JPEG")  # two blocks of memory
    to_pixels(body, SMALL, 10_000_000)
    core: Any = vars(Image)["core"]
    before = core.get_stats()
    assert (to_pixels(body, SMALL, 10_000_000) == to_pixels(body, SMALL, 10_000_000)).all()
    after = core.get_stats()
    assert after["allocated_blocks"] == before["allocated_blocks"]
    assert after["reused_blocks"] > before["reused_blocks"]
    assert core.get_blocks_max() * core.get_block_size() == 64 * 2**20
