"""Decoding of untrusted image bytes into the input pixels of networks."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from engines.published.preprocess import Preprocess, draft
from service.body import image_of
from service.errors import Problem
from service.framework_patches import bound_pillow
from service.scheduler import Pixels

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SIGNATURES = (b"BM", b"GIF8", b"\xff\xd8\xff", b"\x89PNG")
SMALL = 8192, 64 * 64  # bytes and pixels; such an image decodes in a fraction of a millisecond
MEDIUM = 128 * 1024, 640 * 480  # bytes and pixels; such an image decodes in some milliseconds
MAX_SCANS = 200  # in a progressive JPEG; cameras and editors write ten, and each costs a pass over all pixels
LEARNING = 0.1  # share by which one image moves the mean

bound_pillow()


def opened(body: bytes, max_pixels: int) -> ImageFile:
    """Return a picture after reading only its header. The content decides the format, not a file name or media type.

    Raises Problem 400 if the body is empty or broken, 413 for too many pixels, 415 for an unsupported format.
    """
    if not body:
        raise Problem(400, "empty_image", "the body is empty; send the bytes of an image")
    if not body.startswith(SIGNATURES) and not (body[:4] == b"RIFF" and body[8:12] == b"WEBP"):
        raise Problem(415, "unsupported_format", f"not an image in a supported format: {', '.join(FORMATS)}")
    try:
        picture = Image.open(io.BytesIO(body), formats=FORMATS)
        if picture.width * picture.height <= max_pixels:
            check_cost(picture, body)
            return picture
    except Problem:
        raise
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow raises nearly anything on bytes made to break it
        raise broken(error) from error
    raise Problem(413, "too_many_pixels", f"the image has more than {max_pixels:,} pixels")


def check_cost(picture: ImageFile, body: bytes) -> None:
    """Raise Problem 400 or 415 if decoding would take far longer than the picture's size suggests."""
    if picture.format == "JPEG" and body.count(b"\xff\xda") > MAX_SCANS:
        raise Problem(400, "broken_image", f"the image cannot be decoded: it has more than {MAX_SCANS} scans")
    if any(tile.codec_name == "bmp_rle" for tile in picture.tile):  # Pillow decodes RLE in Python, slowly
        raise Problem(415, "unsupported_format", "a BMP must not be compressed")


def decode(picture: ImageFile, preprocesses: Sequence[Preprocess], *, scaled: bool) -> list[Pixels]:
    """Decode a picture upright, a GIF's first frame, and return the input pixels for each of `preprocesses`.

    `scaled` decodes a JPEG at a reduced size. Raises Problem 400 if the picture is broken.
    """
    try:
        if scaled:
            draft(picture, preprocesses)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # otherwise Pillow copies even a picture that needs no turn
        return [preprocess(picture) for preprocess in preprocesses]
    except Exception as error:  # Pillow raises nearly anything on bytes made to break it
        raise broken(error) from error


def broken(error: Exception) -> Problem:
    """Convert an error of Pillow's into problem 400 `broken_image`."""
    return Problem(400, "broken_image", f"the image cannot be decoded: {error}")


class Decoders:
    """Pool of threads that decode images. The scheduler's admission bounds the number of waiting images."""

    def __init__(self, threads: int, max_pixels: int) -> None:
        self._threads = threads
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._under_way = 0
        self.mean_s = 0.0  # moving average over images decoded in a thread

    def wait_s(self) -> float:
        """Return the expected seconds until a thread is free, from the mean decoding time."""
        return self.mean_s * self._under_way / self._threads

    def forget(self) -> None:
        """Reduce the mean decoding time by a tenth.

        Without this, requests that are refused for the expected time would never lead to a new observation.
        """
        self.mean_s *= 1 - LEARNING

    async def __call__(
        self, body: bytes, content_type: str, preprocesses: Sequence[Preprocess], *, scaled: bool, alone: bool
    ) -> tuple[list[Pixels], float]:
        """Decode a body's image; return its pixels for each of `preprocesses`, and the milliseconds this took.

        A small picture, or a medium one if no other request is in progress (`alone`), is decoded on the event loop,
        since the way to a thread and back takes longer. Raises Problem as `image_of`, `opened` and `decode` do.
        """
        started = perf_counter()
        most_bytes, most_pixels = MEDIUM if alone else SMALL
        if len(body) <= most_bytes:
            picture = opened(image_of(body, content_type), self._max_pixels)
            if picture.width * picture.height <= most_pixels:
                return decode(picture, preprocesses, scaled=scaled), (perf_counter() - started) * 1000
        loop = asyncio.get_running_loop()
        job = self._pool.submit(self._decode, body, content_type, preprocesses, scaled)
        self._under_way += 1
        # A cancelled request does not stop its thread, so the job itself reports its end.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        pixels, seconds = await asyncio.wrap_future(job)
        self.mean_s += LEARNING * (seconds - self.mean_s)
        return pixels, (perf_counter() - started) * 1000

    def _ended(self) -> None:
        self._under_way -= 1

    def _decode(
        self, body: bytes, content_type: str, preprocesses: Sequence[Preprocess], scaled: bool
    ) -> tuple[list[Pixels], float]:
        started = perf_counter()
        pixels = decode(opened(image_of(body, content_type), self._max_pixels), preprocesses, scaled=scaled)
        return pixels, perf_counter() - started
