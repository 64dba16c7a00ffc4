"""Pictures of few bytes that need much memory or time to decode."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.service.test_images import encoded, png


def large_png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a black PNG of one bit a pixel, made row by row; `chunks` come before the pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return png((b"IHDR", header), *chunks, (b"IDAT", packed), (b"IEND", b""))


def rle_bmp(width: int, height: int, runs: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def jpeg_of_scans(edge: int, scans: int, *, mpo: bool = False, arithmetic: bool = False) -> bytes:
    """Return a progressive JPEG whose scans after the first state, in some bytes, that no block changes.

    `mpo` adds the index of a camera's file with a second picture, as which Pillow opens it.
    """

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    blocks = ((edge + 7) // 8) ** 2
    frame = struct.pack(">BHHB", 8, edge, edge, 1) + b"\x01\x11\x00"
    one_code = bytes([1, *[0] * 15])
    entries = [(0xB000, 7, 4, b"0100"), (0xB001, 4, 1, b"\2\0\0\0"), (0xB002, 7, 32, b"\x32\0\0\0")]
    index = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    pictures = struct.pack("<IIIHH", 0x030000, 0, 0, 0, 0) * 2
    mpf = segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0" + index + bytes(4) + pictures) if mpo else b""
    head = b"\xff\xd8" + mpf + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xCA if arithmetic else 0xC2, frame)
    tables = segment(0xC4, b"\x00" + one_code + b"\x00") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    tables = b"" if arithmetic else tables
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8 + 1)
    nothing = segment(0xDA, b"\1\1\0\1\x3f\0") + bytes(2 * (blocks // 2**14 + 1))
    return head + tables + first + nothing * scans + b"\xff\xd9"


def webp_of_size(edge: int) -> bytes:
    """Return an animated WebP of one frame of 8 x 8 whose header declares a canvas of `edge` x `edge`."""
    frame = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    canvas = struct.pack("<I", edge - 1)[:3]
    placed = bytes(6) + struct.pack("<I", 7)[:3] * 2 + bytes(4) + frame
    chunks = ((b"VP8X", b"\x02\0\0\0" + canvas * 2), (b"ANIM", bytes(6)), (b"ANMF", placed))
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_chunk(kind: bytes, megabytes: int) -> tuple[bytes, bytes]:
    flags = b"\1\0\0\0" if kind == b"iTXt" else b"\0"
    return kind, b"Comment\0" + flags + zlib.compress(b"a" * megabytes * 1_000_000, 9)


GIF, BMP = (encoded(Image.new("L", (8, 8)), image_format) for image_format in ("GIF", "BMP"))
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 180 megapixels": lambda: large_png(18_000, 10_000),
    "GIF of 60,000 x 60,000": lambda: GIF[:6] + struct.pack("<HH", 60_000, 60_000) + GIF[10:],
    "BMP of 60,000 x 60,000": lambda: BMP[:18] + struct.pack("<ii", 60_000, 60_000) + BMP[26:],
    "WebP of 60,000 x 60,000": lambda: webp_of_size(60_000),
    "WebP of 16,000 x 16,000": lambda: webp_of_size(16_000),
    "PNG of a wrong size": lambda: png(
        (b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)), (b"IEND", b"")
    ),
}
HARMLESS: dict[str, Callable[[], bytes]] = {  # what would unpack to much is not needed, and left out
    "PNG with 100 MB of iTXt": lambda: large_png(8, 8, text_chunk(b"iTXt", 100)),
    "PNG with 100 MB of zTXt": lambda: large_png(8, 8, text_chunk(b"zTXt", 100)),
    "PNG with 70 iTXt of 1 MB": lambda: large_png(8, 8, *[text_chunk(b"iTXt", 1)] * 70),
}
