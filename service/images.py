"""From the bytes of a request to a network's pixels, whoever sent them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from engines.preprocess import Preprocess
from service.errors import Problem

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SIGNATURES = (b"BM", b"GIF8", b"\xff\xd8\xff", b"\x89PNG")


def to_pixels(body: bytes, preprocess: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """What `preprocess` makes of the picture, upright, of a GIF the first frame; by content, whatever it was called.

    Problem 400 if it is empty or broken, 413 if it has too many pixels, 415 if it is of no format we take.
    """
    if not body:
        raise Problem(400, "empty_image", "the body is empty; send the bytes of an image")
    if not body.startswith(SIGNATURES) and not (body[:4] == b"RIFF" and body[8:12] == b"WEBP"):
        raise Problem(415, "unsupported_format", f"not an image of a format we take: {', '.join(FORMATS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(body), formats=FORMATS)
            if picture.width * picture.height <= max_pixels:
                picture.load()
                return preprocess(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow raises nearly anything on bytes made to break it
        raise Problem(400, "broken_image", f"the image cannot be decoded: {error}") from error
    raise Problem(413, "too_many_pixels", f"the image has more than {max_pixels:,} pixels")
