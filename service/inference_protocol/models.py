"""Models as the Open Inference Protocol shows them: names, metadata, configuration and states; and the server."""

from __future__ import annotations

from service import VERSION
from service.context import ServerContext
from service.inference_protocol.schema import (
    STATES,
    ConfigInput,
    ConfigOutput,
    IndexEntry,
    ModelConfig,
    ModelMetadata,
    ModelReadiness,
    ServerMetadata,
    TensorMetadata,
)
from service.inference_protocol.tensors import IMAGE, OUTPUTS, PIXELS, invalid
from service.loading import ServedModel

NAME = "convserve"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
PLATFORM = "onnx_onnxv1"  # as the protocol calls a published ONNX file, whatever runtime opens the file
ANY = -1  # size of a dimension: the number of images


def server_metadata() -> ServerMetadata:
    """Return the name, version and extensions of the server."""
    return ServerMetadata(name=NAME, version=VERSION, extensions=EXTENSIONS)


def full_name(name: str, version: str) -> str:
    """Return the name of a model with a version of the protocol's, which is a tag behind its colon; "" for none."""
    return f"{name}:{version}" if version else name


def split(tag: str) -> tuple[str, str]:
    """Return the name and version of a tag."""
    name, _, version = tag.partition(":")
    return name, version


async def find(server: ServerContext, name: str) -> ServedModel:
    """Return the model for a full tag, `architecture@dataset` or an architecture. Raises Problem 404 or 409."""
    return await server.catalog.fresh(lambda: server.catalog.find(name))


async def metadata(server: ServerContext, name: str) -> ModelMetadata:
    """Return the metadata of a model. Raises Problem as `find` does."""
    model = await find(server, name)
    architecture = model.manifest.architecture
    classes = len(model.manifest.labels)
    return ModelMetadata(
        name=architecture,
        versions=[split(other.manifest.tag)[1] for other in server.catalog.published(architecture)],
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name=PIXELS, datatype="UINT8", shape=[ANY, *model.manifest.preprocess.shape]),
            TensorMetadata(name=IMAGE, datatype="BYTES", shape=[ANY]),
        ],
        outputs=[TensorMetadata(name=output, datatype="FP32", shape=[ANY, classes]) for output in OUTPUTS],
    )


async def config(server: ServerContext, name: str) -> ModelConfig:
    """Return the configuration of a model. Raises Problem as `find` does."""
    model = await find(server, name)
    shape, classes = list(model.manifest.preprocess.shape), len(model.manifest.labels)
    return ModelConfig(
        name=model.manifest.architecture,
        platform=PLATFORM,
        max_batch_size=server.settings.images_at_most,
        input=[
            ConfigInput(name=PIXELS, data_type="TYPE_UINT8", dims=shape, optional=True),
            ConfigInput(name=IMAGE, data_type="TYPE_STRING", dims=[1], optional=True),
        ],
        output=[ConfigOutput(name=output, data_type="TYPE_FP32", dims=[classes]) for output in OUTPUTS],
    )


async def readiness(server: ServerContext, name: str) -> ModelReadiness:
    """Return the readiness of a model: true if it is loaded. Raises Problem as `find` does."""
    model = await find(server, name)
    return ModelReadiness(name=model.manifest.architecture, ready=model.chosen.queue is not None)


async def index(server: ServerContext, ready: bool) -> list[IndexEntry]:
    """Return every published model with its state; with `ready`, only the models that are loaded."""
    await server.catalog.rescan()
    entries = []
    for tag, model in server.catalog.models.items():
        name, version = split(tag)
        slot = model.chosen
        reason = slot.error or ("a request that names the model loads it" if slot.status == "published" else "")
        if slot.queue or not ready:
            entries.append(IndexEntry(name=name, version=version, state=STATES[slot.status], reason=reason))
    return entries


async def load(server: ServerContext, name: str, parameters: list[str]) -> None:
    """Load a model, unless loaded already. Raises Problem 400 for any of the parameters, which would bring a model."""
    if parameters:
        raise invalid("parameters: models are not sent; publish the model, then load it without parameters")
    await server.device.queue(await find(server, name))


async def unload(server: ServerContext, name: str) -> None:
    """Unload all engines of a model. Raises Problem 409 while one is loading, and as `find` does."""
    await server.device.unload(await find(server, name))
