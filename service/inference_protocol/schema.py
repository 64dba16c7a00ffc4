"""Messages of the Open Inference Protocol: requests as they are checked, and answers, the same over HTTP and gRPC."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.schema import Status

MOST = 2**63 - 1  # largest number that gRPC can carry
FEW = 8  # the most dimensions of a tensor, and tensors in a request: an error for each of a million takes seconds
STATES: dict[Status, str] = {
    "ready": "READY",
    "loading": "LOADING",
    "published": "UNAVAILABLE",
    "failed": "UNAVAILABLE",
}

Size = Annotated[int, Field(ge=0, le=MOST)]


class RequestPart(BaseModel):
    """Part of a request. Unknown members are ignored, as the protocol asks, and a null counts as left out."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, members: Any) -> Any:
        """Return the members that are not null."""
        if not isinstance(members, dict):
            return members
        return {name: value for name, value in members.items() if value is not None}


class RequestParameters(RequestPart):
    """Parameters of a request: `timeout` in microseconds, 0 for none; `priority`, which changes nothing."""

    timeout: Size = 0
    priority: Size = 0
    binary_data_output: bool = False


class InputParameters(RequestPart):
    """Parameters of an input tensor."""

    binary_data_size: Size | None = None
    shared_memory_region: Any = None


class OutputParameters(RequestPart):
    """Parameters of a requested output: `classification` is the number of classes to return."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1, le=MOST)] | None = None
    shared_memory_region: Any = None


class RequestInput(RequestPart):
    """Input tensor: the elements stand in `data`, or as binary data behind the JSON."""

    name: str
    shape: Annotated[list[Size], Field(max_length=FEW)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class RequestedOutput(RequestPart):
    """Output tensor that a client asks for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferenceRequest(RequestPart):
    """Request for an inference. Without `outputs`, all outputs are returned."""

    id: str = ""
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[RequestInput], Field(max_length=FEW)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=FEW)] = []


class IndexRequest(RequestPart):
    """Request for the index of models; `ready` leaves out the models that are not loaded."""

    ready: bool = False


class RepositoryRequest(RequestPart):
    """Request to load or unload a model."""

    parameters: dict[str, Any] = {}


class ResponseOutput(BaseModel):
    """Output tensor of an answer; `data` is left out if the elements follow the JSON as binary data."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] = []


class InferenceResponse(BaseModel):
    """Answer to a request for an inference; `parameters` name the engine's runtime and precision."""

    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, Any]
    outputs: list[ResponseOutput]


class ProtocolError(BaseModel):
    """Error of any route below /v2."""

    error: str


class ServerLiveness(BaseModel):
    """Liveness of the server: always true."""

    live: bool


class ServerReadiness(BaseModel):
    """Readiness of the server or of a model."""

    ready: bool


class ModelReadiness(ServerReadiness):
    """Readiness of a model: true if the model is loaded."""

    name: str


class ServerMetadata(BaseModel):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, datatype and shape of a tensor; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Published versions of a model, with the inputs, of which a request has one, and the outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigOutput(BaseModel):
    """Output in a model's configuration; `dims` leave out the batch."""

    name: str
    data_type: str
    dims: list[int]


class ConfigInput(ConfigOutput):
    """Input in a model's configuration."""

    optional: bool


class ModelConfig(BaseModel):
    """Configuration of a model, as far as Triton's tools read it."""

    name: str
    platform: str
    max_batch_size: int
    input: list[ConfigInput]
    output: list[ConfigOutput]
    dynamic_batching: dict[str, Any] = {}


class StatisticDuration(BaseModel):
    """Number of images, and nanoseconds in total."""

    count: int = 0
    ns: int = 0


class InferStatistics(BaseModel):
    """Totals of a model's images. `compute_input` is decoding; there is no cache."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration = StatisticDuration()
    cache_miss: StatisticDuration = StatisticDuration()


class ModelStatistics(BaseModel):
    """Totals of a model since the server started; `last_inference` is in milliseconds since 1970, 0 for never."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics


class ServerStatistics(BaseModel):
    """Totals of each model that was asked for."""

    model_stats: list[ModelStatistics]


class IndexEntry(BaseModel):
    """Published model with its state, and the reason for the state."""

    name: str
    version: str
    state: str
    reason: str


def schema_of(kind: type[BaseModel]) -> Any:
    """Return the JSON schema of a message, without references, for OpenAPI."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        members = {**parts.get(value.get("$ref", "").removeprefix("#/$defs/"), {}), **value}
        return {name: inlined(member) for name, member in members.items() if name != "$ref"}

    return inlined(schema)
