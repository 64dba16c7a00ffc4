"""From the bytes of a request to a picture, whoever sent them."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

from service.errors import Problem

# Pillow's names, and how such files begin
FORMATS = {
    "BMP": b"BM",
    "GIF": b"GIF8",
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG",
    "WEBP": b"RIFF",
}


def decode(body: bytes, max_pixels: int) -> Image.Image:
    """The picture, upright, of a GIF the first frame; by content, whatever it was called.

    Problem 400 if it is empty or broken, 413 if it has too many pixels, 415 if it is of no format we take.
    """
    if not body:
        raise Problem(400, "empty_image", "the body is empty; send the bytes of an image")
    if not body.startswith(tuple(FORMATS.values())):
        raise Problem(415, "unsupported_format", f"not an image of a format we take: {', '.join(FORMATS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(body), formats=tuple(FORMATS))
            if picture.width * picture.height <= max_pixels:
                picture.load()
                return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow's decoders raise nearly anything on bytes made to break them
        raise Problem(400, "broken_image", f"the image cannot be decoded: {error}") from error
    raise Problem(413, "too_many_pixels", f"the image has more than {max_pixels:,} pixels")
