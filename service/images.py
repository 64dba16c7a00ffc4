"""From the bytes of a request to a network's pixels, whoever sent them."""

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
SMALL = 8192, 64 * 64  # bytes and pixels: a fraction of a millisecond
MEDIUM = 128 * 1024, 640 * 480  # some milliseconds
MAX_SCANS = 200  # of a progressive JPEG; cameras and editors write ten, and each costs a pass over all pixels
LEARNING = 0.1  # how far one image moves what is expected of the next

bound_pillow()


def opened(body: bytes, max_pixels: int) -> ImageFile:
    """A picture of which only the header has been read: by its content, whatever it was called.

    Problem 400 if it is empty or broken, 413 if it has too many pixels, 415 if it is of no format we take.
    """
    if not body:
        raise Problem(400, "empty_image", "the body is empty; send the bytes of an image")
    if not body.startswith(SIGNATURES) and not (body[:4] == b"RIFF" and body[8:12] == b"WEBP"):
        raise Problem(415, "unsupported_format", f"not an image of a format we take: {', '.join(FORMATS)}")
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
    """Problem 400 or 415 if to decode it would take far longer than its pixels and bytes let expect."""
    if picture.format == "JPEG" and body.count(b"\xff\xda") > MAX_SCANS:
        raise Problem(400, "broken_image", f"the image cannot be decoded: it has more than {MAX_SCANS} scans")
    if any(tile.codec_name == "bmp_rle" for tile in picture.tile):  # Pillow does it in Python, some pixels one by one
        raise Problem(415, "unsupported_format", "a BMP must not be compressed")


def decode(picture: ImageFile, preprocesses: Sequence[Preprocess], *, scaled: bool) -> list[Pixels]:
    """What each makes of the picture, upright, of a GIF the first frame; a JPEG's perhaps `scaled` down.

    Problem 400 if it is broken.
    """
    try:
        if scaled:
            draft(picture, preprocesses)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # or it would be copied, turned or not
        return [preprocess(picture) for preprocess in preprocesses]
    except Exception as error:  # Pillow raises nearly anything on bytes made to break it
        raise broken(error) from error


def broken(error: Exception) -> Problem:
    """Convert an error of Pillow's into problem 400 `broken_image`."""
    return Problem(400, "broken_image", f"the image cannot be decoded: {error}")


class Decoders:
    """A pool of threads that decode; how many wait is bounded by those who admit requests."""

    def __init__(self, threads: int, max_pixels: int) -> None:
        self._threads = threads
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._under_way = 0
        self.mean_s = 0.0  # of those that were decoded off the event loop

    def wait_s(self) -> float:
        """In how many seconds a thread will be free, if those under way are like those before."""
        return self.mean_s * self._under_way / self._threads

    def forget(self) -> None:
        """Trust what was seen less: what is refused for its time shows no other."""
        self.mean_s *= 1 - LEARNING

    async def __call__(
        self, body: bytes, content_type: str, preprocesses: Sequence[Preprocess], *, scaled: bool, alone: bool
    ) -> tuple[list[Pixels], float]:
        """What each makes of the image in a request's body, and how many ms that took.

        A small picture, and one of some size if nobody else asks, is decoded at once, since to go to a thread and back
        takes its time; all others off the event loop. A Problem as of `image_of`, `opened` and `decode`.
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
        # a request may be given up; its thread goes on
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
