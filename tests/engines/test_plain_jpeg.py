from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.published.essentials import essentials
from engines.published.plain_jpeg import FACTORS, Sampling, sampling_of

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
SOF0, SOS, DHT, DQT = b"\xff\xc0", b"\xff\xda", b"\xff\xc4", b"\xff\xdb"


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    """Return a JPEG of noise, 50 x 37 pixels."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def sampling(body: bytes, max_pixels: int = 10_000) -> Sampling | None:
    return sampling_of(essentials(body), max_pixels)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        ("4:4:4", jpeg(subsampling=0)),
        ("4:2:2", jpeg(subsampling=1)),
        ("4:2:0", jpeg(subsampling=2)),
        ("grey", jpeg("L")),
        ("4:2:0", jpeg(optimize=True, quality=30)),
        ("4:2:0", jpeg(restart_marker_blocks=2, comment=b"words", icc_profile=b"colours")),
        ("4:2:0", jpeg(exif=exif(1))),
        ("4:2:0", jpeg() + b"rubbish after the end"),
    ],
)
def test_plain_jpegs_are_told_by_their_sampling(expected: Sampling, body: bytes) -> None:
    assert sampling(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        jpeg(progressive=True),
        jpeg("CMYK"),
        jpeg(keep_rgb=True),
        jpeg(exif=exif(6)),
        jpeg()[:-2],
        jpeg()[:-400],
        jpeg()[:30],
        b"\xff\xd8",
        b"",
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["progressive", "CMYK", "RGB", "turned", "no end", "cut", "cut header", "two bytes", "empty", "PNG"],
)
def test_other_pictures_are_for_pillow(body: bytes) -> None:
    assert sampling(body) is None


def test_pixels_are_bounded() -> None:
    assert sampling(jpeg(), 50 * 37) == "4:2:0"
    assert sampling(jpeg(), 50 * 37 - 1) is None


def changed(body: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    """Return a JPEG with other bytes at an offset in the data of its first segment of a kind."""
    at = body.index(marker) + 4 + offset
    return body[:at] + value + body[at + len(value) :]


@pytest.mark.parametrize(
    ("marker", "offset", "value"),
    [
        (SOF0, 0, b"\x0c"),  # 12 bits
        (SOF0, 1, b"\x00\x00"),  # the height follows the scan
        (SOF0, 6, b"R"),  # names of RGB's components
        (SOF0, 7, b"\x41"),  # 4:1:0
        (SOF0, 7, b"\x12"),  # 4:4:0
        (SOF0, 8, b"\x03"),  # a table of quantisers that is not there
        (SOF0, -1, b"\x05"),  # a length that is too short
        (SOF0, -3, b"\xc1"),  # extended
        (SOF0, -3, b"\xc9"),  # arithmetic coding
        (SOS, 0, b"\x01"),  # a scan of one component of three
        (SOS, 2, b"\x22"),  # a table of codes that is not there
        (SOS, 7, b"\x01"),  # without the DC coefficient
        (DHT, 0, b"\x02"),  # a third table
        (DHT, 1, b"\x03"),  # three codes of one bit
        (DHT, 17, b"\xff"),  # 255 bits of a DC coefficient
        (DQT, 0, b"\x10"),  # 16 bits
        (DQT, 5, b"\x00"),  # a division by nothing
    ],
)
def test_odd_headers_are_for_pillow(marker: bytes, offset: int, value: bytes) -> None:
    assert sampling(changed(jpeg(), marker, offset, value)) is None


def test_adobes_transform_decides_the_colours() -> None:
    body = jpeg()
    adobe = [struct.pack(">HH5sHHHB", 0xFFEE, 14, b"Adobe", 100, 0, 0, transform) for transform in range(3)]
    samplings = [sampling(body[:2] + segment + body[2:]) for segment in adobe]
    assert samplings == [None, "4:2:0", None]


def test_no_prefix_and_no_flipped_byte_raises() -> None:
    body = jpeg(quality=20)
    header = body.index(SOS) + 14
    for at in range(header):
        sampling(body[:at] + b"\xff\xd9")
        for value in (0, 1, 0x11, 0xC0, 0xFF):
            assert sampling(body[:at] + bytes([value]) + body[at + 1 :]) in {None, *FACTORS.values()}
