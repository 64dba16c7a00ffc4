"""Tests of reading pictures: upright, on a known scale, and whatever a file holds beside its pixels."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from engines.published.essentials import MAX_PARTS, essentials
from engines.published.picture import open_picture, read_picture, upright
from engines.published.preprocess import to_mode

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "MPO")
# Grey levels, of which no two corners are alike; flat enough for JPEG.
CORNERS = Image.fromarray(np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 16, 0), 24, 1)).convert("RGB")


def encoded(picture: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def read(body: bytes) -> Image.Image:
    return upright(open_picture(essentials(body)))


def corners(picture: Image.Image) -> list[int]:
    """Return the grey levels of the corners, row by row, rounded to those of CORNERS."""
    grey = np.asarray(picture.convert("L"))
    return [round(int(grey[y, x]) / 80) * 80 for y in (3, -4) for x in (3, -4)]


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif(*entries: bytes, count: int | None = None) -> bytes:
    """Return EXIF of entries in Intel's order, with a wrong `count` of entries if one is named."""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries) if count is None else count) + b"".join(entries)


def shorts(value: int) -> bytes:
    return struct.pack("<H", value)


SIX = entry(0x0112, 3, 1, shorts(6))
UNREADABLE = {
    "no TIFF": b"Exif\0\0zzzz",
    "nothing": b"Exif\0\0",
    "cut in the header": b"Exif\0\0II*\0",
    "a directory beyond the end": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "no entries": exif(),
    "as text": exif(entry(0x0112, 2, 2, b"6")),
    "as fraction": exif(entry(0x0112, 5, 1, struct.pack("<I", 8)), b"\6\0\0\0\1\0\0\0"),
    "as float": exif(entry(0x0112, 11, 1, struct.pack("<f", 6))),
    "zero": exif(entry(0x0112, 3, 1, shorts(0))),
    "nine": exif(entry(0x0112, 3, 1, shorts(9))),
    "absurd": exif(entry(0x0112, 9, 1, struct.pack("<i", -6))),
    "of a type that is not": exif(entry(0x0112, 77, 1, shorts(6))),
}
READABLE = {
    "after one that points nowhere": exif(entry(0x010F, 2, 1000, b"\xff\xff\xff\x7f"), SIX),
    "before a wrong count": exif(SIX, count=60_000),
    "after an unreadable one": exif(entry(0x0112, 2, 2, b"x"), SIX),
    "as long": exif(entry(0x0112, 4, 1, struct.pack("<I", 6))),
    "as byte": exif(entry(0x0112, 1, 1, b"\6")),
    "Motorola's order": b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0),
}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("odd", [*UNREADABLE, *READABLE])
def test_only_the_orientation_is_read_and_passed_over_if_odd(image_format: str, odd: str) -> None:
    body = encoded(CORNERS, image_format, exif=(UNREADABLE | READABLE)[odd])
    assert corners(read(body)) == ([0, 80, 160, 240] if odd in UNREADABLE else [160, 0, 240, 80])


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(image_format: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    options = {"save_all": True, "append_images": [CORNERS]} if image_format == "MPO" else {}
    body = encoded(CORNERS, image_format, exif=tags, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    assert corners(read(body)) == corners(expected)
    assert read(body).size == expected.size


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "PNG, compressed", "WEBP", "TIFF"])
def test_xmp_states_the_orientation_where_exif_does_not(image_format: str) -> None:
    options: dict[str, object] = {"xmp": XMP}
    if image_format.startswith("PNG"):
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip="compressed" in image_format)
        options = {"pnginfo": text}
    if image_format == "TIFF":
        options = {"tiffinfo": {700: XMP}}
    body = encoded(CORNERS, image_format.partition(",")[0], **options)
    assert corners(read(body)) == [160, 0, 240, 80]


def test_imagemagicks_profile_states_the_orientation() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif(SIX)):8}\n{exif(SIX).hex()}\n", zip=True)
    assert corners(read(encoded(CORNERS, "PNG", pnginfo=text))) == [160, 0, 240, 80]


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


PNG_EXTRAS = {
    **{kind.decode(): chunk(kind, b"\0") for kind in (b"pHYs", b"gAMA", b"cHRM", b"iCCP", b"acTL", b"fcTL", b"prIv")},
    "a wrong checksum": chunk(b"tEXt", b"Comment\0a", 1),
    "an unknown compression": chunk(b"zTXt", b"Comment\0\7abc"),
    "100 MB of text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))),
    "broken XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0zzz"),
    "a broken profile": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nzz"),
}
JPEG_EXTRAS = {
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "short colour profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a thousand profiles": segment(0xE2, b"ICC_PROFILE\0\1\1") * 1000,
    "Photoshop's cut": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed"),
    "index of pictures that is none": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + entry(0xB001, 4, 1, b"\7")),
    "index that is cut": segment(0xE2, b"MPF\0II*\0"),
}


@pytest.mark.parametrize(
    ("image_format", "extra"), [("PNG", name) for name in PNG_EXTRAS] + [("JPEG", name) for name in JPEG_EXTRAS]
)
def test_what_decoding_does_not_need_cannot_fail(image_format: str, extra: str) -> None:
    body = encoded(CORNERS, image_format)
    at, added = (33, PNG_EXTRAS.get(extra)) if image_format == "PNG" else (2, JPEG_EXTRAS.get(extra))
    assert added
    assert corners(read(body[:at] + added + body[at:])) == [0, 80, 160, 240]


def test_what_follows_a_pictures_end_is_not_looked_at() -> None:
    body = encoded(CORNERS, "JPEG")
    found = essentials(body + b"\xff\xda\0\2" * 1000)  # a camera's video, or a second picture
    assert (found.body[-2:], found.scans) == (b"\xff\xd9", 1)
    assert corners(read(body + encoded(CORNERS, "PNG"))) == [0, 80, 160, 240]


@pytest.mark.parametrize(
    "made",
    [
        lambda n: encoded(CORNERS, "PNG")[:33] + chunk(b"IDAT", b"") * n,
        lambda n: b"\xff\xd8" + segment(0xE5, b"") * n,
        lambda n: b"\xff\xd8" + segment(0xDA, b"") * n,
        lambda n: encoded(CORNERS.convert("1").convert("L"), "GIF")[:13] + b"!\xfe\0" * n,
    ],
)
def test_more_parts_than_any_picture_has_are_refused(made: Callable[[int], bytes]) -> None:
    with pytest.raises(ValueError, match="more than 50,000 parts"):
        essentials(made(MAX_PARTS + 10))
    essentials(made(10))


PACKED = {
    "profiles": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n" * 2**20, 9)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"tiff:Orientation " * 2**16, 9)),
}


@pytest.mark.parametrize(
    "body",
    [
        *(encoded(CORNERS, "PNG")[:33] + text * (10_000_000 // len(text)) for text in PACKED.values()),
        b"\xff\xd8" + segment(0xE1, b"Exif\0\0" + bytes(190)) * 49_000,
        b"\xff\xd8" + b"\xff" * 10_000_000,
        b"\xff\xd8" + b"\xff\xd0" * 5_000_000,
        b"GIF89a" + bytes(7) + b"!\xfe" + b"\1a" * 24_000,
        b"GIF89a" + bytes(7) + b"\1" * 10_000_000,
    ],
    ids=[*PACKED, "EXIF in 49,000 segments", "a run of FF", "restarts", "blocks of a byte", "no block"],
)
def test_finding_the_essentials_takes_no_time(body: bytes) -> None:
    started = time.process_time()
    essentials(body)
    assert time.process_time() - started < 1  # 0.05 s; ten megabytes of packed profiles once took ten minutes


def test_a_gif_keeps_its_transparency_and_loses_its_comments() -> None:
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    picture.putpalette([200, 200, 200, 100, 100, 100])
    body = encoded(picture, "GIF", transparency=1, comment=b"c" * 200)
    assert b"c" * 200 in body
    assert b"c" * 200 not in essentials(body).body
    assert np.asarray(to_mode(read(body), "L", 7)).tolist() == [[200, 7], [7, 200]]


# Scales

DEEP = np.array([[0, 5000], [30_000, 65_535]], np.uint16)
EIGHT = [[0, 19], [117, 255]]


def tiff(pixels: bytes, bits: int, photometric: int, *more: tuple[int, int]) -> bytes:
    """Return an uncompressed TIFF of 2 x 2 greys, with `more` tags and their values."""
    values = [(256, 2), (257, 2), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 2)]
    values += [(279, len(pixels)), *more]
    pixels = pixels.ljust((len(pixels) + 1) // 2 * 2, b"\0")
    entries = b"".join(entry(tag, 4, 1, struct.pack("<I", value)) for tag, value in values)
    directory = struct.pack("<H", len(values)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def pgm(maximum: int, values: NDArray[np.uint16], *, plain: bool = False) -> bytes:
    if plain:
        return f"P2 2 2 {maximum}\n{' '.join(map(str, values.ravel()))}\n".encode()
    return f"P5 2 2 {maximum}\n".encode() + values.astype(">u2").tobytes()


TWELVE = bytes.fromhex("000138") + bytes.fromhex("753fff")  # 0, 312, 1875, 4095
SCALED: dict[str, bytes] = {
    "PNG": encoded(Image.fromarray(DEEP), "PNG"),
    "TIFF": encoded(Image.fromarray(DEEP), "TIFF"),
    "TIFF, big-endian": encoded(Image.frombytes("I;16B", (2, 2), DEEP.astype(">u2").tobytes()), "TIFF"),
    "TIFF, compressed": encoded(Image.fromarray(DEEP), "TIFF", compression="tiff_deflate"),
    "TIFF of 12 bits": tiff(TWELVE, 12, 1),
    "TIFF, white is zero": tiff((65_535 - DEEP).astype("<u2").tobytes(), 16, 0),
    "TIFF, EXIF beyond its end": tiff(DEEP.astype("<u2").tobytes(), 16, 1, (34665, 2**31)),
    "TIFF, orientation of 99": tiff(DEEP.astype("<u2").tobytes(), 16, 1, (274, 99)),
    "PGM": pgm(65_535, DEEP),
    "PGM, plain": pgm(65_535, DEEP, plain=True),
    "PGM of 10 bits": pgm(1023, np.round(DEEP / 65_535 * 1023).astype(np.uint16)),
    "PGM of 1000": pgm(1000, np.round(DEEP / 65.535).astype(np.uint16)),
    "PPM": b"P6 2 2 65535\n" + np.repeat(DEEP, 3).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", SCALED)
def test_every_depth_is_scaled_alike(name: str) -> None:
    pixels = np.asarray(to_mode(read(SCALED[name]), "L", 0)).astype(int)
    assert np.abs(pixels - EIGHT).max() <= (0 if "of 1" not in name else 1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (encoded(Image.new("I", (2, 2), 9), "TIFF"), "32-bit or signed integers"),
        (tiff(DEEP.tobytes(), 16, 1, (339, 2)), "32-bit or signed integers"),
        (encoded(Image.new("F", (2, 2), 9), "TIFF"), "floats"),
        (b"Pf 2 2 -1.0\n" + bytes(16), "floats"),
    ],
)
def test_what_has_no_scale_is_refused(body: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.tiff"
    path.write_bytes(body)
    with pytest.raises(ValueError, match=f"{reason}, which have no known black and white"):
        read_picture(path)


def raw_png(bits: int, colour: int, pixel_rows: bytes, transparent: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + pixel_rows))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", transparent) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "opaque"),
    [
        (raw_png(1, 0, b"\x40", b"\0\1"), 0),
        (raw_png(2, 0, b"\x70", b"\0\3"), 85),  # Pillow compares the file's 3 with the decoded 255
        (raw_png(4, 0, b"\x3f", b"\0\x0f"), 51),
        (raw_png(8, 0, b"\x33\xff", b"\0\xff"), 51),
        (raw_png(16, 0, b"\x33\x33\xff\xff", b"\xff\xff"), 51),
        (raw_png(16, 0, b"\x33\x33\x12\x34", b"\x12\x34"), 51),
        (raw_png(8, 2, b"\x33\x33\x33\1\2\3", b"\0\1\0\2\0\3"), 51),
        (raw_png(16, 2, b"\x33\x33" * 3 + b"\x12\x34" * 3, b"\x12\x34" * 3), 51),
    ],
)
def test_a_pngs_transparent_colour_is_found_at_every_depth(body: bytes, opaque: int) -> None:
    assert np.asarray(to_mode(read(body), "L", 200)).tolist() == [[opaque, 200]]
