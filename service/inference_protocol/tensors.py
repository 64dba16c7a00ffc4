"""Tensors of the Open Inference Protocol: images from the input of a request, and outputs from logits."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batches import Logits
from service.errors import Problem
from service.image_forms import from_base64
from service.inference_protocol.schema import InferenceRequest, RequestedOutput, RequestInput
from service.several_images import ImageInput, too_many

PIXELS, IMAGE = "pixels", "image"  # inputs, of which a request has one
LOGITS, PROBABILITIES = "logits", "probabilities"
OUTPUTS = (LOGITS, PROBABILITIES)
NO_SHARED_MEMORY = "shared memory is not supported; send tensors in the request"
LENGTH = 4  # bytes before each element of a BYTES tensor, which hold the element's length
MAX_SHOWN = 100  # characters of a client's text in an error
Raw = bytes | memoryview


@dataclass(frozen=True)
class Received:
    """Request that was received; `raw` has the binary data of each input, or None for an input in `data`.

    `large` is True for so much JSON that its images are taken out in a thread.
    """

    request: InferenceRequest
    raw: Sequence[Raw | None]
    large: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """Output tensor, with the elements row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: NDArray[np.float32] | list[str]

    def raw(self) -> bytes:
        """Return the elements as binary data: numbers in little-endian order, each text after its length."""
        if isinstance(self.elements, np.ndarray):
            return self.elements.astype("<f4").tobytes()
        texts = [text.encode() for text in self.elements]
        return b"".join(len(text).to_bytes(LENGTH, "little") + text for text in texts)

    def listed(self) -> list[Any]:
        """Return the elements as JSON holds them."""
        if isinstance(self.elements, np.ndarray):
            numbers: list[Any] = self.elements.ravel().tolist()
            return numbers
        return self.elements


def invalid(detail: str) -> Problem:
    """Return problem 400 `invalid_inference_request`."""
    return Problem(400, "invalid_inference_request", detail)


def check_outputs(requested: Sequence[RequestedOutput]) -> None:
    """Raise Problem 400 for a requested output that does not exist, is there twice, or is to be in shared memory."""
    if len({output.name for output in requested}) < len(requested):
        raise invalid("outputs: an output is there twice; name each once")
    for output in requested:
        if output.name not in OUTPUTS:
            raise invalid(f"outputs: there is no {output.name[:MAX_SHOWN]!r}; there are {' and '.join(OUTPUTS)}")
        if output.parameters.shared_memory_region is not None:
            raise invalid(f"outputs: {output.name}: {NO_SHARED_MEMORY}")


def images_of(received: Received, shape: tuple[int, int, int], most: int) -> Sequence[ImageInput]:
    """Return the images in a request's one input: files, or pixels of a model that takes `shape`.

    Raises Problem 400 that names the member of the request that is wrong, Problem 413 for more than `most` images.
    """
    inputs = received.request.inputs
    if len(inputs) != 1:
        raise invalid(f"inputs: {len(inputs)} tensors; send either {PIXELS} or {IMAGE}")
    (tensor,), (raw,) = inputs, received.raw
    if tensor.name not in {PIXELS, IMAGE}:
        raise invalid(f"inputs: there is no {tensor.name[:MAX_SHOWN]!r}; send either {PIXELS} or {IMAGE}")
    if tensor.parameters.shared_memory_region is not None:
        raise invalid(f"{tensor.name}: {NO_SHARED_MEMORY}")
    if raw is None and tensor.data is None:
        raise invalid(f"{tensor.name}: no data; send `data`, or binary data with the parameter binary_data_size")
    needed = list(shape) if tensor.name == PIXELS else []
    form = ", ".join(["n", *map(str, needed)])
    check(tensor, "UINT8" if needed else "BYTES", [needed] if needed else [[], [1]], f"[{form}]")
    if tensor.shape[0] > most:
        raise too_many(most)
    if not tensor.shape[0]:
        return []
    return pixels_of(tensor, raw) if needed else files_of(tensor, raw)


def check(tensor: RequestInput, datatype: str, each: list[list[int]], form: str) -> None:
    """Raise Problem 400 unless a tensor has the datatype, and its shape is a number of images, then one of `each`."""
    if tensor.datatype != datatype:
        raise invalid(f"{tensor.name}: the datatype is {tensor.datatype[:MAX_SHOWN]!r}; send {datatype}")
    if not tensor.shape or tensor.shape[1:] not in each:
        raise invalid(f"{tensor.name}: the shape is {tensor.shape}; the model takes {form}")


def pixels_of(tensor: RequestInput, raw: Raw | None) -> list[ImageInput]:
    """Return the pixels of each image, (height, width, channels). Raises Problem 400 for data of another size."""
    values: Raw | array[int] = raw if raw is not None else uint8_of(tensor.data or [], len(tensor.shape))
    if len(values) != prod(tensor.shape):
        raise invalid(f"{PIXELS}: {len(values):,} elements; the shape {tensor.shape} has {prod(tensor.shape):,}")
    return list(np.frombuffer(values, np.uint8).reshape(tensor.shape))


def uint8_of(data: list[Any], dimensions: int) -> array[int]:
    """Return the numbers of `data`, which may be nested once for each dimension. Raises Problem 400 for other values.

    An array of Python's, not of NumPy's: one long text among the values would make NumPy reserve its length for each.
    """
    try:
        for _ in range(dimensions - 1):
            if data and all(isinstance(row, list) for row in data):
                data = list(chain.from_iterable(data))
        return array("B", data)
    except (TypeError, OverflowError):
        raise invalid(f"{PIXELS}: data: send whole numbers from 0 to 255, flat or nested as the shape") from None


def files_of(tensor: RequestInput, raw: Raw | None) -> list[ImageInput]:
    """Return the file of each image; texts are base64. Raises Problem 400 for another number of files."""
    if raw is not None:
        return elements_of(raw, tensor.shape[0])
    data = tensor.data or []
    if len(tensor.shape) == 2 and data and isinstance(data[0], list):
        data = [item for row in data for item in (row if isinstance(row, list) else [row])]
    if len(data) != tensor.shape[0]:
        raise invalid(f"{IMAGE}: data has {len(data):,} elements; the shape is {tensor.shape}")
    if not all(isinstance(item, str | bytes) for item in data):
        raise invalid(f"{IMAGE}: data: send the base64 of a file as each element")
    return [item if isinstance(item, bytes) else from_base64(item) for item in data]


def elements_of(raw: Raw, count: int) -> list[ImageInput]:
    """Return the elements of a BYTES tensor's binary data. Raises Problem 400 unless there are `count`."""
    elements: list[ImageInput] = []
    start = 0
    while start + LENGTH <= len(raw) and len(elements) < count:
        end = start + LENGTH + int.from_bytes(raw[start : start + LENGTH], "little")
        elements.append(bytes(raw[start + LENGTH : end]))
        start = end
    if start != len(raw) or len(elements) != count:
        form = "each element is its length, 4 bytes in little-endian order, and its bytes"
        raise invalid(f"{IMAGE}: the binary data is not {count} elements; {form}")
    return elements


def outputs_of(logits: Logits, labels: tuple[str, ...], requested: Sequence[RequestedOutput]) -> list[OutputTensor]:
    """Return the requested outputs, or all, of logits (n, classes)."""
    tensors = []
    for output in requested or [RequestedOutput(name=name) for name in OUTPUTS]:
        values = logits if output.name == LOGITS else probabilities(logits)
        if count := output.parameters.classification:
            tensors.append(classified(output.name, values, labels, min(count, len(labels))))
        else:
            tensors.append(OutputTensor(output.name, "FP32", values.shape, values))
    return tensors


def probabilities(logits: Logits) -> NDArray[np.float32]:
    """Return the softmax of each row."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float32] = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def classified(name: str, values: NDArray[np.float32], labels: tuple[str, ...], count: int) -> OutputTensor:
    """Return the `count` largest values of each row as texts `value:index:label`."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    largest = np.take_along_axis(values, best, 1)
    texts = [
        f"{value:.9g}:{index}:{labels[index]}"
        for value, index in zip(largest.ravel().tolist(), best.ravel().tolist(), strict=True)
    ]
    return OutputTensor(name, "BYTES", best.shape, texts)
