"""Essential parts of an encoded picture: the pixels and the orientation, without what decoding does not need.

Profiles, comments, previews, texts, further pictures of a file: Pillow reads each of them, fails where one is odd, and
takes time and memory where there are many. None of them changes the pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

ORIENTATION = 0x0112  # tag of EXIF and TIFF
INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF's integer types, as struct writes them
IN_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")
MAX_TEXT = 2**16  # bytes of a text that are read; only the first text of a kind is, so that many cost nothing
MAX_PARTS = 50_000  # segments, chunks or blocks, each of which is read in Python: a PNG of 400 MB has as many

# A marker of a JPEG with a length after it, or the end of the picture; 00 and FF are no markers, others have no length.
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
EOI, SOS, EXIF_OR_XMP = 0xD9, 0xDA, 0xE1
FIRST_WITH_LENGTH = 0xC0  # libjpeg has no length for lower markers within a scan: scans could hide in what it seems
JFIF, ADOBE = 0xE0, 0xEE  # segments that change the colours, and their least lengths
LEAST = {JFIF: 14, ADOBE: 12}
BLOCK = re.compile(rb"[!,;]")  # of a GIF: an extension, a picture, the end; Pillow skips other bytes one by one
PROFILE, PNG_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"  # keywords of texts; the first is ImageMagick's
TEXTS = {PROFILE, PNG_XMP}
METADATA = {*range(0xE0, 0xF0), 0xFE}
ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


@dataclass(frozen=True)
class Essentials:
    """Bytes of a picture that decoding needs, and what they hold.

    `orientation` is EXIF's number, 1 to 8, or None if nothing states one that can be read. `scans` counts a JPEG's.
    """

    body: bytes
    orientation: int | None = None
    scans: int = 0
    arithmetic: bool = False


def essentials(body: bytes) -> Essentials:
    """Return the essential parts of a JPEG, PNG or GIF; other pictures are returned whole.

    Raises ValueError if a picture has more than MAX_PARTS parts.
    """
    if body.startswith(b"\xff\xd8"):
        return of_jpeg(body)
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return of_png(body)
    if body.startswith((b"GIF87a", b"GIF89a")):
        return of_gif(body)
    return Essentials(body)


def of_jpeg(body: bytes) -> Essentials:
    """Return a JPEG without its metadata, and without what follows the end of its first picture, as in an MPO."""
    kept, exif, xmp = [body[:2]], b"", b""
    at, scans, first_scan, arithmetic = 2, 0, None, False
    for part in count():
        check_parts(part)
        if not (found := MARKER.search(body, at)) or (marker := found[1][0]) == EOI:
            break
        start, at = found.start(), found.end()
        if first_scan is None or marker >= FIRST_WITH_LENGTH:
            at += max(2, int.from_bytes(body[at : at + 2]))
        arithmetic |= marker in ARITHMETIC
        if marker == SOS:
            scans += 1
            first_scan = start if first_scan is None else first_scan
        if first_scan is not None:
            continue
        data = body[start + 4 : at]
        if marker == EXIF_OR_XMP and data.startswith(b"Exif\0"):
            exif = exif or data[6:]  # the orientation is in the first of several
        elif marker == EXIF_OR_XMP and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or data
        if marker not in METADATA or len(data) >= LEAST.get(marker, len(body)):
            kept.append(body[start:at])
    if first_scan is not None:
        kept.append(body[first_scan : found.end() if found else len(body)])
    return Essentials(b"".join(kept), orientation_of(exif, xmp), scans, arithmetic)


def of_png(body: bytes) -> Essentials:
    """Return a PNG's critical chunks and its transparency, up to its end."""
    kept, exif = [body[:8]], b""
    texts: dict[bytes, tuple[bytes, bytes]] = {}
    at, kind = 8, b""
    for part in count():
        check_parts(part)
        if kind == b"IEND" or at + 8 > len(body):
            break
        length, kind = struct.unpack_from(">I4s", body, at)
        start, at = at, at + 12 + length
        critical = not kind[0] & 0x20
        if critical or kind == b"tRNS" or not kind.isalpha():
            kept.append(body[start:at])
        elif kind == b"eXIf":
            exif = exif or body[start + 8 : at - 4]
        elif kind in {b"iTXt", b"tEXt", b"zTXt"}:
            keyword = body[start + 8 : start + 38].partition(b"\0")[0]
            if keyword in TEXTS:
                texts.setdefault(keyword, (kind, body[start + 8 : at - 4]))
    exif = exif or raw_profile(text_of(*texts.get(PROFILE, (b"", b""))))
    xmp = text_of(*texts.get(PNG_XMP, (b"", b"")))
    return Essentials(b"".join(kept), orientation_of(exif, xmp))


def of_gif(body: bytes) -> Essentials:
    """Return a GIF without comments and other extensions before its first picture."""
    at = 13 + (3 << (body[10] & 7) + 1 if len(body) > 10 and body[10] & 0x80 else 0)
    kept, blocks = [body[:at]], 0
    for part in count():
        check_parts(part)
        if not (found := BLOCK.search(body, at)) or found[0] != b"!":
            break
        start, at = found.start(), found.start() + 2
        while at < len(body) and body[at]:
            blocks += 1
            check_parts(blocks)
            at += 1 + body[at]
        at += 1
        if body[start + 1 : start + 2] == b"\xf9":  # transparency
            kept.append(body[start:at])
    kept.append(body[found.start() :] if found else b"")
    return Essentials(b"".join(kept))


def check_parts(number: int) -> None:
    """Raise ValueError if a picture has more than MAX_PARTS parts."""
    if number > MAX_PARTS:
        raise ValueError(f"it has more than {MAX_PARTS:,} parts")


def text_of(kind: bytes, data: bytes) -> bytes:
    """Return at most MAX_TEXT bytes of the text in a PNG's text chunk; empty if it cannot be read."""
    _, _, text = data.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":  # two flags, a language, a translated keyword
        text = text[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(text, MAX_TEXT) if packed else text[:MAX_TEXT]
    except zlib.error:
        return b""


def raw_profile(text: bytes) -> bytes:
    """Return the bytes that ImageMagick wrote as hex, after a line break, a name and a length; empty if odd."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def orientation_of(exif: bytes | None, xmp: bytes | str | None) -> int | None:
    """Return the orientation that EXIF states, else XMP, or None: what cannot be read is passed over."""
    stated = next((value for value in exif_orientations(exif or b"") if 1 <= value <= 8), None)
    if stated is None and (found := IN_XMP.search(xmp.encode() if isinstance(xmp, str) else xmp or b"")):
        stated = int(found[1])
    return stated


def exif_orientations(exif: bytes) -> Iterator[int]:
    """Yield the integers of EXIF's first directory with the orientation's tag; stop where it cannot be read."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", exif, entry)
            if tag == ORIENTATION and kind in INTEGERS:
                yield struct.unpack_from(order + INTEGERS[kind], exif, entry + 8)[0]
    except struct.error:
        return
