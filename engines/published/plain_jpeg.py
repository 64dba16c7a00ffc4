"""Check of a JPEG's header: plain JPEGs, which a GPU decodes as Pillow does, and how they sample their colours."""

from __future__ import annotations

import struct
from typing import Literal, get_args

from engines.published.essentials import ADOBE, JFIF, LEAST, Essentials

Sampling = Literal["grey", "4:4:4", "4:2:2", "4:2:0"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
FACTORS: dict[tuple[int, ...], Sampling] = {  # of the components, horizontal and vertical in four bits each
    (0x11,): "grey",
    (0x11, 0x11, 0x11): "4:4:4",
    (0x21, 0x11, 0x11): "4:2:2",
    (0x22, 0x11, 0x11): "4:2:0",
}
SOF0, DHT, SOS, DQT, DRI = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD
YCBCR = 1, 2, 3  # names of the components, by which JPEGs are YCbCr to every decoder, with and without JFIF's segment
YCC_TRANSFORM, ADOBE_TRANSFORM_AT = 1, 11
WHOLE_SPECTRUM = b"\x00\x3f\x00"  # of a scan: all 64 coefficients, not in steps
COEFFICIENTS = 64
MAX_CATEGORY = 11  # of a DC coefficient of 8-bit samples


class NotPlainError(Exception):
    """Raised within this module for a JPEG that is not plain."""


def sampling_of(parts: Essentials, max_pixels: int) -> Sampling | None:
    """Return how a plain JPEG samples its colours, or None for a picture that Pillow must decode.

    A plain JPEG is baseline: 8 bits, Huffman-coded, one scan; grey or YCbCr; upright; of at most `max_pixels`; with its
    tables, and an end. Its first bytes suffice for that, but for the end; the compressed pixels may still be broken.
    """
    upright = parts.orientation in {None, 1}
    if parts.scans != 1 or not upright or not parts.body.startswith(b"\xff\xd8") or parts.body[-2:] != b"\xff\xd9":
        return None
    try:
        return Header(parts.body).sampling(max_pixels)
    except (NotPlainError, struct.error, IndexError):
        return None


class Header:
    """Header of a JPEG up to its scan; raises NotPlainError, struct.error or IndexError for one that is not plain."""

    def __init__(self, body: bytes) -> None:
        self._frame: bytes | None = None
        self._quantisers: set[int] = set()
        self._codes: set[int] = set()  # class in the upper four bits, number in the lower
        at = 2
        while True:
            mark, marker, length = struct.unpack_from(">BBH", body, at)
            data = body[at + 4 : at + 2 + length]
            check(mark == 0xFF and length >= 2 and len(data) == length - 2)
            at += 2 + length
            if marker == SOS:
                self._scan = data
                return
            self._read(marker, data)

    def _read(self, marker: int, data: bytes) -> None:
        """Read one segment before the scan."""
        if marker == SOF0:
            check(self._frame is None)
            self._frame = data
        elif marker == DQT:
            self._read_quantisers(data)
        elif marker == DHT:
            self._read_codes(data)
        elif marker == ADOBE:
            check(len(data) >= LEAST[ADOBE] and data[ADOBE_TRANSFORM_AT] == YCC_TRANSFORM)
        else:
            check(marker == JFIF or (marker == DRI and len(data) == 2))

    def _read_quantisers(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            check(data[at] <= 3)  # 8 bits, and one of four tables
            table = data[at + 1 : at + 1 + COEFFICIENTS]
            check(len(table) == COEFFICIENTS and 0 not in table)
            self._quantisers.add(data[at])
            at += 1 + COEFFICIENTS

    def _read_codes(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            check(data[at] in {0x00, 0x01, 0x10, 0x11})  # baseline has two tables of each class
            counts = data[at + 1 : at + 17]
            symbols = data[at + 17 : at + 17 + sum(counts)]
            check(len(counts) == 16 and 0 < sum(counts) == len(symbols) <= 256)
            # Codes of n bits take 2**-n of all codes each.
            check(sum(count << 16 - bits for bits, count in enumerate(counts, 1)) <= 1 << 16)
            check(data[at] >= 0x10 or max(symbols) <= MAX_CATEGORY)
            self._codes.add(data[at])
            at += 17 + sum(counts)

    def sampling(self, max_pixels: int) -> Sampling:
        """Return how the colours are sampled, from the frame and the scan."""
        frame, scan = self._frame or b"", self._scan
        bits, height, width, count = struct.unpack_from(">BHHB", frame)
        check(bits == 8 and len(frame) == 6 + 3 * count and 0 < height * width <= max_pixels)
        names, factors, quantisers = (tuple(frame[6 + part :: 3]) for part in range(3))
        check(names == YCBCR or count == 1)
        check(factors in FACTORS and self._quantisers.issuperset(quantisers))
        check(scan[0] == count and len(scan) == 1 + 2 * count + len(WHOLE_SPECTRUM) and scan.endswith(WHOLE_SPECTRUM))
        check(tuple(scan[1 : 1 + 2 * count : 2]) == names)
        for tables in scan[2 : 1 + 2 * count : 2]:  # of the DC coefficients in the upper four bits, and of the others
            check(self._codes.issuperset({tables >> 4, 0x10 | tables & 0xF}))
        return FACTORS[factors]


def check(plain: bool) -> None:
    """Raise NotPlainError unless a property of plain JPEGs holds."""
    if not plain:
        raise NotPlainError
