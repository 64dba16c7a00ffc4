"""Manifest of a published model: the facts that hold on every machine, in `manifest.json` beside the files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.published.preprocess import Preprocess
from models.cost import Complexity

FILE = "manifest.json"
WEIGHTS = "checkpoint.safetensors"
ONNX = "model.onnx"
INT8 = "model.int8.onnx"
# A runtime converts the fp32 file to bf16 when it opens the file.
GRAPHS = {"fp32": ONNX, "bf16": ONNX, "fp16": "model.fp16.onnx", "int8": INT8}
VERIFICATION = "verification.safetensors"
# The protocols by which authors of weights measure, and their images; each network has its own input, as it has when
# it serves.
PROTOCOLS = {"imagenet": ("ImageNet validation, one centre crop", 50_000), "cifar10": ("CIFAR-10 test", 10_000)}

Name = Annotated[str, Field(pattern="^[a-z0-9_]+$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ManifestError(Exception):
    """Raised for a published model whose manifest is missing or invalid, or whose files differ from the manifest."""


class Record(BaseModel):
    """Immutable base of all records; an undeclared field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Accuracy(Record):
    """Top-1 accuracy, 0 to 1, on held-out images, and the number of images."""

    top1: Annotated[float, Field(ge=0, le=1)]
    images: int


class AuthorsAccuracy(Record):
    """Top-1 accuracy, 0 to 1, that the authors of imported weights published for fp32, and how many images they took.

    Accuracies are comparable if their `protocol` is the same; `source` names the weights and their address.
    """

    top1: Annotated[float, Field(ge=0, le=1)]
    images: int
    protocol: str
    source: str


class Calibration(Record):
    """Calibration of the INT8 graph: number of training images, method, and parts left in float.

    `in_float` names layers kept in float; `outputs_in_float` also keeps the outputs of all other layers in float.
    """

    images: int
    method: str
    outputs_in_float: bool = False
    in_float: tuple[str, ...]


class File(Record):
    """Identity of a published file: hash and size."""

    sha256: Sha256
    bytes: int


class Manifest(Record):
    """Manifest: identity, labels, preprocessing, accuracy by precision, cost at its input, provenance, files.

    `accuracy` was measured by this project, `published` by the authors of weights that a library publishes.
    """

    format: Literal[2] = 2
    architecture: Name
    dataset: Name
    labels: tuple[str, ...]
    preprocess: Preprocess
    accuracy: dict[str, Accuracy]
    # Left out if unknown, so that older versions, which refuse the field, still serve such a model.
    published: Annotated[AuthorsAccuracy | None, Field(exclude_if=lambda value: value is None)] = None
    calibration: Calibration | None = None
    complexity: Complexity
    provenance: dict[str, Any]
    created: AwareDatetime  # models are sorted by it, and Python compares no time zone with none
    files: dict[str, File]

    @model_validator(mode="before")
    @classmethod
    def published_by_authors(cls, fields: Any) -> Any:
        """Add `published` to the fields if their provenance has its top-1 in percent, as older manifests do too."""
        match fields:
            case {"provenance": {"imported": {"library": str(), "name": str(), "top1": float(top1)} as origin}}:
                source = f"{origin['library']} {origin['name']}, {origin.get('source')}"
                protocol, images = PROTOCOLS.get(str(fields.get("dataset")), PROTOCOLS["imagenet"])
                found = {"top1": round(top1 / 100, 6), "images": images, "protocol": protocol, "source": source}
                return {"published": found, **fields}
        return fields

    @property
    def tag(self) -> str:
        """Tag of the model in the model store: see `tag`."""
        return tag(self.architecture, self.dataset, self.files[WEIGHTS].sha256)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in which the published graphs can run."""
        return tuple(precision for precision, graph in GRAPHS.items() if graph in self.files)

    def graph_bytes(self, precision: str) -> int:
        """Return the bytes of the graph in a precision, weights included; without such a graph those of the weights.

        The fp32 graph refers to the checkpoint's tensors, except in models that older versions published.
        """
        graph = self.files.get(GRAPHS.get(precision, ONNX))
        if graph is None:  # torch reads the checkpoint
            return self.files[WEIGHTS].bytes
        return max(graph.bytes, self.files[WEIGHTS].bytes) if graph == self.files[ONNX] else graph.bytes

    def check_files(self, folder: Path) -> None:
        """Raise ManifestError unless every file can be read and has its published SHA-256."""
        for name, expected in self.files.items():
            try:
                found = sha256(folder / name)
            except FileNotFoundError:
                raise ManifestError(f"{self.tag}: {name} is missing; publish the model again") from None
            except OSError as error:
                raise ManifestError(f"{self.tag}: {name} cannot be read: {error.strerror}") from error
            if found != expected.sha256:
                raise ManifestError(f"{self.tag}: {name} is not the file that was published; publish the model again")


def tag(architecture: str, dataset: str, weights_sha256: str) -> str:
    """Return the tag, `<architecture>:<dataset>-<first 8 hex digits of the weights' SHA-256>`."""
    return f"{architecture}:{dataset}-{weights_sha256[:8]}"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(folder: Path) -> Manifest:
    """Read the manifest of a folder. Raises ManifestError if the file is missing or invalid."""
    try:
        data = (folder / FILE).read_bytes()
    except OSError as error:
        raise ManifestError(f"{folder}: no readable {FILE}: {error.strerror}") from error
    return parse(data, str(folder))


def parse(data: bytes, place: str) -> Manifest:
    """Parse a manifest, which was read in a `place`. Raises ManifestError if the manifest is invalid."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        fault = f"{where}: {first['msg']}" if where else first["msg"]
        raise ManifestError(f"{place}: {FILE} is not valid: {fault}") from error
    if not {WEIGHTS, ONNX} <= manifest.files.keys():
        raise ManifestError(f"{place}: {FILE} is not valid: it lists no {WEIGHTS} or no {ONNX}")
    if INT8 in manifest.files and not manifest.calibration:
        raise ManifestError(f"{place}: {FILE} is not valid: {INT8} has no calibration record; publish the model again")
    return manifest
