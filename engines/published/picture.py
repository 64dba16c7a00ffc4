"""Reading of pictures: from a file's bytes to an upright picture, the same for training, evaluation and serving."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from engines.published.essentials import ORIENTATION, Essentials, essentials, orientation_of
from engines.published.preprocess import check_scale

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
KEPT_BELOW, KEPT = 32 * 1024**2, 128 * 1024**2  # bytes: of a piece, glibc's most; of all freed pieces at the heap's end
STATED = "orientation"  # key of `info`, in which Pillow keeps what it read beside the pixels
BITS, WHITE_IS_ZERO, XMP, SAMPLE_FORMAT, SIGNED = 258, (262, 0), 700, 339, 2  # tags of TIFF, and values

# Pillow decodes JPEGs too: simplejpeg was no faster on the way to the input pixels, see docs/benchmarks.md, Decoding.


def read_picture(path: Path) -> Image.Image:
    """Read a file's picture, upright. Raises nearly anything, as Pillow does on broken files."""
    return upright(open_picture(essentials(path.read_bytes())))


def open_picture(
    parts: Essentials, formats: tuple[str, ...] | None = None, source: Callable[[bytes], IO[bytes]] = io.BytesIO
) -> ImageFile:
    """Return a picture after reading only its header, through the file that `source` makes of bytes; see `upright`."""
    try:
        picture = Image.open(source(parts.body), formats=formats)
    except UnidentifiedImageError:
        raise UnidentifiedImageError("cannot identify image file") from None  # Pillow names an object in memory
    orientation = parts.orientation or orientation_of(picture.info.get("exif"), picture.info.get("xmp"))
    if isinstance(picture, TiffImageFile):
        orientation = orientation_of_tiff(picture)
        # Pillow's own would read all of EXIF, fail where EXIF is odd, and turn the picture.
        picture.load_end = lambda: None  # type: ignore[method-assign]
    picture.info[STATED] = orientation
    return picture


def orientation_of_tiff(picture: TiffImageFile) -> int | None:
    """Return the orientation of a TIFF's own tag, else of its XMP, or None."""
    stated = picture.tag_v2.get(ORIENTATION)
    if isinstance(stated, int) and 1 <= stated <= 8:
        return stated
    xmp = picture.tag_v2.get(XMP)
    return orientation_of(None, xmp if isinstance(xmp, bytes | str) else None)


def upright(picture: ImageFile) -> Image.Image:
    """Decode a picture that `open_picture` opened, and return it turned as EXIF says, its greys of a known scale.

    Raises ValueError for pixels without a known scale, and nearly anything, as Pillow does, for a broken picture.
    """
    raw = picture.tile[0].args if picture.tile else None
    raw_mode = str(raw[0] if isinstance(raw, tuple) and raw else raw)
    picture.load()
    if isinstance(picture, TiffImageFile):
        picture._size = picture.im.size  # Pillow swapped the edges, for the turn that was left out
    transparent = picture.info.get("transparency")
    if transparent is not None and (scaled := of_eight_bits(transparent, raw_mode)) is not None:
        picture.info["transparency"] = scaled
    scaled_picture = with_known_scale(picture)
    turn = TURNS.get(picture.info[STATED])
    return scaled_picture if turn is None else scaled_picture.transpose(turn)


def of_eight_bits(transparent: object, raw_mode: str) -> object | None:
    """Return a PNG's transparent colour on the scale of the decoded pixels, where Pillow leaves the file's scale."""
    if isinstance(transparent, int) and raw_mode in {"L;2", "L;4"}:
        return transparent * (85 if raw_mode == "L;2" else 17)
    if isinstance(transparent, tuple) and raw_mode.startswith("RGB;16"):
        return tuple(value >> 8 for value in transparent)
    return None


def with_known_scale(picture: ImageFile) -> Image.Image:
    """Return a picture of more than 8 bits of grey as 0 to 65,535, black to white, and every other as it is.

    Raises ValueError for 32-bit and signed integers and for floats, whose black and white no file states.
    """
    if picture.mode == "I" and picture.format == "PPM":  # Pillow has scaled every maximum to 65,535
        return Image.fromarray(np.asarray(picture).astype(np.uint16))
    check_scale(picture)
    if isinstance(picture, TiffImageFile) and SIGNED in picture.tag_v2.get(SAMPLE_FORMAT, ()):
        raise ValueError("signed pixels have no known scale")
    if picture.mode.startswith("I;16") and isinstance(picture, TiffImageFile):
        grey = np.asarray(picture).astype(np.uint32)
        bits = picture.tag_v2.get(BITS, (16,))[0]
        grey = np.round(grey * (65535 / (2**bits - 1)))
        if picture.tag_v2.get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:
            grey = 65535 - grey
        return Image.fromarray(grey.astype(np.uint16))
    return picture


def keep_freed_memory() -> None:
    """Let the C library keep the memory of pictures for the next ones, unless `MALLOC_MMAP_THRESHOLD_` is set.

    glibc gets more than 128 KiB from the system, in zeroed pages, and gives it back, until a larger piece was freed
    once, as when a large network is loaded. A process without such a network took 2.7 ms for a photo instead of 1.95.
    """
    library = ctypes.CDLL(None)
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ and hasattr(library, "mallopt"):  # another C library has none
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BELOW)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
