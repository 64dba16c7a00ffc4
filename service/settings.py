"""Settings of the server, read from environment variables that start with CONVSERVE_."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engines.published.bucket import check_url
from engines.published.urls import BucketError
from engines.runtimes import registry
from engines.runtimes.engine import GPU_MAX_BATCH, MAX_BATCH, EngineError
from engines.runtimes.machine import accelerator, cores
from engines.runtimes.registry import NO_PRECISION, RUNTIMES, Runtime
from models.names import near_names, suggestion
from service.architectures import read_cards
from service.clients import ClientLimits

EMBEDDED_DATASET = "mnist5k"  # training has a recipe of this data set for every architecture
PREFIX = "CONVSERVE_"
TAG_FORM = "[a-z0-9_]+:[a-z0-9_]+-[0-9a-f]{8}"
MOST_CLIENTS = 256  # each is a label of metrics
DAY_S = 86_400.0  # longest time that a setting may name
TAG = re.compile(r"(?P<architecture>[a-z0-9_]+):(?P<dataset>[a-z0-9_]+)-[0-9a-f]{8}")
# Kubernetes and Docker set such variables for a service or a container that is called convserve.
FROM_OUTSIDE = re.compile(r"SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?|NAME|ENV_\w+")


def listed(value: Any) -> Any:
    """Return the items of a JSON list, or of a text with commas between the items."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith(("[", "{", '"')):
        items = from_json(value)
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError('the form is a,b or ["a", "b"]')
        return items
    items = [item.strip() for item in value.split(",") if item.strip()]
    if not items:
        raise ValueError("the value is empty; unset the variable, or write a,b")
    return items


def paired(value: Any) -> Any:
    """Return the members of a JSON object, or of a text of `name=value` pairs with commas between the pairs."""
    if not isinstance(value, str):
        return value
    form = 'the form is lenet5=lenet5:mnist5k-5c93254d,… or {"lenet5": "lenet5:mnist5k-5c93254d"}'
    if value.lstrip().startswith("{"):
        pairs = from_json(value)
        if not all(isinstance(tag, str) for tag in pairs.values()):
            raise ValueError(form)
        return pairs
    items = [item.partition("=") for item in value.split(",") if item.strip()]
    if not items or not all(equals for _, equals, _ in items):
        raise ValueError(form)
    return {name.strip(): tag.strip() for name, _, tag in items}


def from_json(value: str) -> Any:
    """Parse JSON. Raises ValueError without a part of the value, which may be secret."""
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None


def sendable(secret: SecretStr) -> SecretStr:
    """Return a secret without surrounding spaces. Raises ValueError if no HTTP header can hold the secret."""
    text = secret.get_secret_value().strip()
    if not text:
        raise ValueError("a key or token is empty")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("a key or token has characters other than printable ASCII, which no HTTP header can hold")
    return SecretStr(text)


def of_its_architecture(pins: dict[str, str]) -> dict[str, str]:
    """Return `pins` if each name has the tag of an architecture, and data set, of that name; else raise ValueError."""
    architectures = read_cards() if pins else {}
    for name, tag in pins.items():
        architecture, at, dataset = name.partition("@")
        check_architecture(architecture, architectures)
        match = TAG.fullmatch(tag)
        if not match or match["architecture"] != architecture or (at and match["dataset"] != dataset):
            form = f"{architecture}:{dataset or 'DATASET'}-XXXXXXXX"
            raise ValueError(f"{tag!r} is no tag of {name}; the form is {name}={form}")
    return pins


def of_known_architectures(routes: dict[str, TrafficShare]) -> dict[str, TrafficShare]:
    """Return `routes` if each name is one of an architecture; else raise ValueError: nobody would take the route."""
    architectures = read_cards() if routes else {}
    for name in routes:
        check_architecture(architecture_of(name), architectures)
    return routes


def architecture_of(name: str) -> str:
    """Return the architecture in a model's name: itself, `architecture@dataset`, or a tag."""
    return re.split("[@:]", name)[0]


def check_architecture(name: str, architectures: Collection[str]) -> None:
    """Raise ValueError, with a similar name, if there is no such architecture."""
    if name not in architectures:
        hint = suggestion(near_names(name, architectures)[:1])
        raise ValueError("; ".join(filter(None, [f"there is no architecture {name!r}", hint])))


def of_models(url: str) -> str:
    """Return the URL of a bucket of models. Raises ValueError for another form, or without the package it needs."""
    try:
        return check_url(url)
    except BucketError as error:
        raise ValueError(str(error)) from None


def number_or_auto(most: int) -> WrapValidator:
    """Return a validator with one message for both forms of a value, a number from 1 to `most` and "auto"."""

    def validated(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"a number from 1 to {most}, or auto") from None

    return WrapValidator(validated)


def json_object(value: Any) -> Any:
    """Return the members of a JSON object, or a value that is no text as it is."""
    return from_json(value) if isinstance(value, str) else value


def of_different_keys(clients: dict[str, ClientLimits]) -> dict[str, ClientLimits]:
    """Return `clients` if each has a key of its own and they are few enough for a label; else raise ValueError."""
    if len(clients) > MOST_CLIENTS:
        raise ValueError(f"{len(clients)} clients are more than {MOST_CLIENTS}")
    if len({client.key_sha256 for client in clients.values()}) < len(clients):
        raise ValueError("two clients have the same key_sha256")
    return clients


ClientName = Annotated[str, Field(pattern="^[a-z0-9_-]{1,32}$")]
Secret = Annotated[SecretStr, AfterValidator(sendable)]
Seconds = Annotated[float, Field(gt=0, le=DAY_S)]


def largest_batch() -> int:
    """Return the largest batch that is tried on this machine's device: a GPU gains up to 128 images."""
    return GPU_MAX_BATCH if accelerator() else MAX_BATCH


def decoding_threads() -> int:
    """Return the number of decoding threads: one a core, from 2 to 16, since more only wait for Python's lock."""
    return min(max(cores(), 2), 16)


class TrafficShare(BaseModel):
    """Share of the requests for a name that another model answers (`to`), or whose images it gets too (`shadow`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Annotated[str, Field(pattern=f"^{TAG_FORM}$")] | None = None
    shadow: Annotated[str, Field(pattern=f"^{TAG_FORM}$")] | None = None
    share: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        """Raise ValueError unless one of the two models is named."""
        if (self.to is None) == (self.shadow is None):
            raise ValueError("name either a model that answers, with `to`, or one that is compared, with `shadow`")
        return self


class Settings(BaseSettings):
    """Settings of the server; each field is read from CONVSERVE_<NAME IN CAPITALS>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, hide_input_in_errors=True)

    runtime: Literal[Runtime, "auto"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    load: Literal["start", "first_use"] = "start"
    memory_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    models: Annotated[str, AfterValidator(of_models)] | None = None
    scan_s: Seconds = 10.0
    dataset: Annotated[str, Field(pattern="^[a-z0-9_]+$")] = EMBEDDED_DATASET
    pins: Annotated[dict[str, str], NoDecode, BeforeValidator(paired), AfterValidator(of_its_architecture)] = {}
    routes: Annotated[
        dict[Annotated[str, Field(pattern="^[a-z0-9_@:-]{1,100}$")], TrafficShare],
        NoDecode,
        BeforeValidator(json_object),
        AfterValidator(of_known_architectures),
    ] = {}
    tune: Literal["auto", "off"] = "auto"
    max_batch: Annotated[int, Field(ge=1, le=4096, default_factory=largest_batch)]
    max_waiting: Annotated[int, Field(ge=1, le=65536)] = 1024
    max_images: Annotated[int, Field(ge=1, le=65536)] = 64
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    max_bodies_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    scaled_jpeg: bool = False
    gpu_jpeg: Literal["auto", "off"] = "auto"
    fronts: Annotated[Annotated[int, Field(ge=1, le=256)] | Literal["auto"], number_or_auto(256)] = "auto"
    devices: Annotated[Annotated[int, Field(ge=1, le=64)] | Literal["auto"], number_or_auto(64)] = "auto"
    decoders: Annotated[int, Field(ge=1, le=1024, default_factory=decoding_threads)]
    timeout_s: Seconds = 10.0
    drain_s: Annotated[float, Field(ge=0, le=DAY_S)] = 1.0
    access_log: bool = True
    tracing: bool = False
    api_keys: Annotated[frozenset[Secret], NoDecode, BeforeValidator(listed)] = frozenset()
    clients: Annotated[
        dict[ClientName, ClientLimits], NoDecode, BeforeValidator(json_object), AfterValidator(of_different_keys)
    ] = {}
    admin_token: Secret | None = None
    metrics_public: bool = False

    @property
    def needs_key(self) -> bool:
        """True if a request needs a key, of `api_keys` or of a client."""
        return bool(self.api_keys or self.clients)

    @property
    def invents(self) -> bool:
        """True if the runtime computes nothing, so that every answer is invented."""
        return self.runtime != "auto" and RUNTIMES[self.runtime].precisions == NO_PRECISION

    @property
    def candidates(self) -> frozenset[str]:
        """Tags of versions that `routes` try under a name of their own architecture."""
        tried = ((name, split.to or split.shadow or "") for name, split in self.routes.items())
        return frozenset(tag for name, tag in tried if architecture_of(tag) == architecture_of(name))

    @property
    def images_at_most(self) -> int:
        """Largest number of images in a request: no more than may wait for an engine."""
        return min(self.max_images, self.max_waiting)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Raise ValueError if two settings exclude each other."""
        if self.precision != "auto" and self.runtime != "auto":
            precisions = RUNTIMES[self.runtime].precisions
            if not self.invents and self.precision not in precisions:
                raise ValueError(f"CONVSERVE_PRECISION: {self.runtime} has {', '.join(precisions)}")
        if self.max_bodies_bytes < self.max_body_bytes:
            one = f"CONVSERVE_MAX_BODY_BYTES ({self.max_body_bytes:,})"
            raise ValueError(f"CONVSERVE_MAX_BODIES_BYTES: less than one body, {one}")
        return self


def read_settings() -> Settings:
    """Read the settings from the environment. Raises SystemExit with a line for each variable that is wrong."""
    lines = [line for name in unknown() if (line := misspelt(name))]
    try:
        settings = Settings()
    except ValidationError as error:
        lines += [line_of(item) for item in error.errors(include_input=False, include_context=False)]
    if lines:
        raise SystemExit("\n".join(f"error: {line}" for line in lines))
    return settings


def line_of(item: Any) -> str:
    """Return an error of pydantic's as a line that names the variable, without its value."""
    message = item["msg"].removeprefix("Value error, ")
    if item["loc"][:1] in {("clients",), ("routes",)} and item["loc"][1:]:  # the value itself may be secret
        message = f"{'.'.join(map(str, item['loc'][1:]))}: {message}"
    return f"{PREFIX}{str(item['loc'][0]).upper()}: {message}" if item["loc"] else message


def unknown() -> Iterator[str]:
    """Yield the environment's variables that look like settings, and are none."""
    known = {f"{PREFIX}{field}".upper() for field in Settings.model_fields}
    for name in sorted(os.environ):
        own = name.upper().startswith(PREFIX) and not FROM_OUTSIDE.fullmatch(name[len(PREFIX) :])
        if own and name.upper() not in known:
            yield name


def misspelt(name: str) -> str | None:
    """Return an error if an unknown variable has nearly the name of a setting that is not set, else None."""
    near = get_close_matches(name.upper(), [f"{PREFIX}{field}".upper() for field in Settings.model_fields], 1, 0.85)
    if not near or near[0] in os.environ:
        return None
    return f"{name}: there is no such setting; did you mean {near[0]}?"


def check_runtime(settings: Settings) -> None:
    """Raise SystemExit with one line if the runtime that is named cannot run on this machine."""
    if settings.runtime == "auto":
        return
    try:
        if settings.runtime in {"tensorrt", "tensorrt_rtx"}:
            registry.check(settings.runtime)
        elif not find_spec(RUNTIMES[settings.runtime].library):
            raise EngineError(f"{settings.runtime} is not installed here")
    except EngineError as error:
        raise SystemExit(f"error: CONVSERVE_RUNTIME: {error}") from None
