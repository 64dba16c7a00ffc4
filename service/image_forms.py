"""Forms of a body with several images: parts of a form, JSON with base64, and raw pixels."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np
from fastapi import Request
from multipart import MultipartError
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.multipart import parse_options_header

from service.body import MAX_PARTS, PART, parts_of
from service.errors import Problem
from service.images import is_picture
from service.loading import ServedModel
from service.several_images import ImageInput, too_many

SHAPE = re.compile(r" *\d{1,6} *(, *\d{1,6} *){2,3}")
LARGE = 256 * 1024  # bytes of a body that is parsed in a thread


class ImagesBody(BaseModel):
    """Body of JSON with several images, each a file in base64."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    images: list[str]


def shape_of(request: Request, model: ServedModel) -> tuple[int, ...] | None:
    """Return the shape of raw pixels by the header X-Shape: (height, width, channels), for several (n, height, …).

    Return None without the header. Raises Problem 422 `wrong_shape` if the model takes another shape.
    """
    header = request.headers.get("x-shape")
    if header is None:
        return None
    shape = tuple(map(int, header.split(","))) if SHAPE.fullmatch(header) else ()
    needed = model.manifest.preprocess.shape
    if shape[-3:] != needed or 0 in shape:
        form = ",".join(map(str, needed))
        detail = f"X-Shape: {model.manifest.tag} takes {form}, or n,{form} for n images"
        raise Problem(422, "wrong_shape", detail)
    return shape


async def images_of(request: Request, body: bytes, shape: tuple[int, ...] | None, most: int) -> list[ImageInput] | None:
    """Return the images of a body with several files or raw pixels of a shape; None for a body or form with one file.

    Raises Problem 413 `too_many_images` for a form or JSON with more than `most`, Problem 422 `wrong_shape` if the
    pixels are not of the shape, and Problem 400 `broken_json`.
    """
    if shape:
        return raw_pixels(body, shape)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if body.count(b"--" + boundary) <= 2:  # one part, and the end
            return None
        work: Callable[[], list[ImageInput] | None] = partial(files_of_form, body, boundary, most)
    elif kind == b"application/json" and body and not is_picture(body):
        work = partial(files_of_json, body, most)
    else:
        return None
    return await asyncio.to_thread(work) if len(body) > LARGE else work()


def raw_pixels(body: bytes, shape: tuple[int, ...]) -> list[ImageInput]:
    """Return the images of raw pixels, without a copy. Raises Problem 422 if the body has another length."""
    if len(body) != prod(shape):
        detail = f"X-Shape: {','.join(map(str, shape))} has {prod(shape):,} bytes; the body has {len(body):,}"
        raise Problem(422, "wrong_shape", detail)
    return list(np.frombuffer(body, np.uint8).reshape(-1, *shape[-3:]))


def files_of_form(body: bytes, boundary: bytes, most: int) -> list[ImageInput] | None:
    """Return the parts `image` of a form, or None if fewer than two have bytes or the form is broken.

    The way of one image reports what is broken.
    """
    files: list[ImageInput] = []
    broken = False
    try:
        for name, content in parts_of(body, boundary, MAX_PARTS + most):
            if name == PART:
                files.append(content)
    except MultipartError:
        broken = True
    if len(files) > most:
        raise too_many(most)
    return files if sum(map(bool, files)) > 1 and not broken else None


def files_of_json(body: bytes, most: int) -> list[ImageInput]:
    """Return the files of JSON, and a problem in place of each that is no base64.

    Raises Problem 400 `broken_json`, Problem 413 `too_many_images` for more values than `most` images can have.
    """
    if body.count(b",") > 2 * most:  # base64 has no comma, and the start of a data URL has one
        raise too_many(most)
    try:
        texts = ImagesBody.model_validate_json(body).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        said = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise Problem(400, "broken_json", f'{said}; the form is {{"images": ["base64 of a file", …]}}') from error
    return [from_base64(text) for text in texts]


def from_base64(text: str) -> ImageInput:
    """Decode base64, which may have line breaks, or return the problem."""
    try:
        return b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        return Problem(400, "broken_base64", f"the image is not in base64: {error}")
