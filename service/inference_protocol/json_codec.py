"""Requests and answers over HTTP: JSON, and binary data behind the JSON (Triton's extension)."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Response
from pydantic import ValidationError
from pydantic_core import to_json

from service.errors import Problem
from service.inference_protocol.inference import InferenceAnswer
from service.inference_protocol.schema import InferenceRequest
from service.inference_protocol.tensors import Raw, Received, invalid

HEADER = "Inference-Header-Content-Length"  # bytes of the JSON in a body with binary data
LARGE = 256 * 1024  # bytes of JSON that is parsed in a thread, and of JSON that is no inference at most
MAX_VALUES = 400_000  # in JSON: the pixels of the largest image, and to spare; parsing takes some 20 ms
MAX_FAULTS = 3  # in an error


async def parsed(body: bytes, header: str | None) -> Received:
    """Parse a body; `header` is the value of Inference-Header-Content-Length, or None without the header.

    Raises Problem 400 that names the member that is wrong, Problem 413 for too many values in JSON.
    """
    size = json_bytes(header, len(body))
    if size > LARGE:
        return await asyncio.to_thread(parse, body, size)
    return parse(body, size)


def json_bytes(header: str | None, body_bytes: int) -> int:
    """Return the length of the JSON at the start of a body. Raises Problem 400 for an impossible header."""
    if header is None:
        return body_bytes
    if not (header.isascii() and header.isdecimal() and len(header) < 20):
        raise invalid(f"{HEADER}: not a number of bytes")
    if not 0 < int(header) <= body_bytes:
        raise invalid(f"{HEADER}: {int(header):,} bytes of JSON; the body has {body_bytes:,}")
    return int(header)


def parse(body: bytes, size: int) -> Received:
    """Parse a body with `size` bytes of JSON. Raises Problem as `parsed` does."""
    text = body[:size]
    if text.count(b",") > MAX_VALUES:
        detail = f"JSON with more than {MAX_VALUES:,} values; send the tensor as binary data"
        raise Problem(413, "body_too_large", detail)
    try:
        request = InferenceRequest.model_validate_json(text)
    except ValidationError as error:
        raise invalid(faults(error)) from None
    raw: list[Raw | None] = []
    rest, start = memoryview(body), size
    for tensor in request.inputs:
        length = tensor.parameters.binary_data_size
        raw.append(None if length is None else rest[start : start + length])
        start += length or 0
    if start != len(body):
        detail = f"the sizes in binary_data_size are {start - size:,} bytes; behind the JSON are {len(body) - size:,}"
        raise invalid(f"{detail}; {HEADER} says where the JSON ends")
    return Received(request, raw, large=size > LARGE)


def faults(error: ValidationError) -> str:
    """Return the first faults of a request, each with the member's name."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FAULTS]
    return "; ".join(": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]])) for item in found)


def response_of(answer: InferenceAnswer) -> Response:
    """Return an answer as JSON, with the outputs behind it that the client wants as binary data."""
    wanted = {output.name: output.parameters.binary_data for output in answer.request.outputs}
    outputs: list[dict[str, Any]] = []
    raw = []
    for tensor in answer.outputs:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        binary = wanted.get(tensor.name)
        if answer.request.parameters.binary_data_output if binary is None else binary:
            raw.append(tensor.raw())
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = tensor.listed()
        outputs.append(output)
    members = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        **({"id": answer.request.id} if answer.request.id else {}),
        "parameters": answer.parameters,
        "outputs": outputs,
    }
    text = to_json(members)
    if not raw:
        return Response(text, media_type="application/json")
    headers = {HEADER: str(len(text))}
    return Response(b"".join([text, *raw]), media_type="application/octet-stream", headers=headers)
