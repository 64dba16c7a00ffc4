"""Messages of gRPC, made of the compiled inference.proto, and their conversion.

The descriptors are in a pool of their own, since clients in the same process, as in tests, have other descriptors of
the same names, and loading them needs no certain version of protobuf, unlike generated code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from pydantic import BaseModel, ValidationError

from service.errors import Problem
from service.inference_protocol import wire
from service.inference_protocol.inference import InferenceAnswer
from service.inference_protocol.json_codec import MAX_VALUES, faults
from service.inference_protocol.schema import (
    FEW,
    InferenceRequest,
    InputParameters,
    OutputParameters,
    RequestParameters,
    RequestPart,
)
from service.inference_protocol.tensors import Received, invalid

SERVICE = "inference.GRPCInferenceService"
COMPILED = Path(__file__).with_name("inference.binpb")


class Classes(NamedTuple):
    """Classes of the request and the answer of a method, and the bounds of the request."""

    request: Any
    answer: Any
    bounds: wire.Bounds


@cache
def pool() -> Any:
    """Return the pool with the protocol's descriptors."""
    descriptors = DescriptorPool()
    for file in FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        descriptors.Add(file)
    return descriptors


@cache
def classes() -> dict[str, Classes]:
    """Return the classes of the messages by method."""
    service = pool().FindServiceByName(SERVICE)
    return {
        method.name: Classes(
            GetMessageClass(method.input_type), GetMessageClass(method.output_type), wire.bounds(method.input_type)
        )
        for method in service.methods
    }


def decoded(method: str, data: bytes) -> Any:
    """Return the request in a message. Raises Problem 400 for bytes that are no such message, 413 beyond its bounds."""
    about = classes()[method]
    try:
        wire.check(data, about.bounds)
        return about.request.FromString(data)
    except DecodeError:
        raise invalid(f"the message is no {method}Request") from None


def encoded(method: str, answer: BaseModel | dict[str, Any]) -> bytes:
    """Return an answer as a message of the method."""
    members = answer.model_dump() if isinstance(answer, BaseModel) else answer
    serialized: bytes = ParseDict(members, classes()[method].answer()).SerializeToString()
    return serialized


def received(message: Any) -> Received:
    """Return the request in a ModelInferRequest.

    Raises Problem 400 that names the member that is wrong, Problem 413 for too many values in `contents`.
    """
    if max(map(len, (message.inputs, message.outputs, message.raw_input_contents))) > FEW:
        raise invalid(f"inputs, outputs, raw_input_contents: send at most {FEW} of each")
    if sum(len(elements) for tensor in message.inputs for _, elements in tensor.contents.ListFields()) > MAX_VALUES:
        detail = f"contents: more than {MAX_VALUES:,} values; send raw_input_contents"
        raise Problem(413, "body_too_large", detail)
    members = {
        "id": message.id,
        "parameters": parameters(message.parameters, RequestParameters),
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape[: FEW + 1]),
                "datatype": tensor.datatype,
                "parameters": parameters(tensor.parameters, InputParameters),
                "data": contents(tensor),
            }
            for tensor in message.inputs
        ],
        "outputs": [
            {"name": output.name, "parameters": parameters(output.parameters, OutputParameters)}
            for output in message.outputs
        ],
    }
    try:
        request = InferenceRequest.model_validate(members)
    except ValidationError as error:
        raise invalid(faults(error)) from None
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"raw_input_contents: {len(raw)}, one is needed for each of {len(request.inputs)} inputs")
    if raw and any(tensor.data is not None for tensor in request.inputs):
        raise invalid("inputs: send either contents or raw_input_contents")
    return Received(request, raw or [None] * len(request.inputs))


def parameters(sent: Mapping[str, Any], known: type[RequestPart]) -> dict[str, Any]:
    """Return those of the `known` parameters that have a value."""
    found = [(name, sent[name]) for name in known.model_fields if name in sent]
    return {name: getattr(value, choice) for name, value in found if (choice := value.WhichOneof("parameter_choice"))}


def contents(tensor: Any) -> list[Any] | None:
    """Return the elements of an input's contents, or None if it has none."""
    if not tensor.HasField("contents"):
        return None
    return [element for _, elements in tensor.contents.ListFields() for element in elements]


def encoded_answer(answer: InferenceAnswer) -> bytes:
    """Return an answer as a ModelInferResponse, with the tensors as binary data, which all clients read."""
    message = classes()["ModelInfer"].answer(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.request.id
    )
    for name, value in answer.parameters.items():
        message.parameters[name].string_param = value
    for tensor in answer.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensor.raw())
    serialized: bytes = message.SerializeToString()
    return serialized
