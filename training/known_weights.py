"""Trained weights by the name that a command line has for them: a folder, a file, a published model, or a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from engines.published.manifest import WEIGHTS, sha256
from models.names import near_names, suggestion
from models.zoo import ZOO
from training import checkpoint
from training.checkpoint import Origin
from training.data import DataSet
from training.errors import CheckpointError
from training.input import Input


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Trained weights: a state dict under this project's names, and what is known of the network's training.

    `labels`, `input` and `dataset` are None for a file, `input` only if no library publishes weights of the network.
    """

    architecture: str
    origin: Origin
    state: dict[str, Tensor]
    labels: tuple[str, ...] | None
    input: Input | None
    dataset: str | None

    def has_classes_of(self, data: DataSet) -> bool:
        """Return True if the weights are for the classes of `data`, in the same order."""
        # ImageNet's classes have one order and several spellings.
        if self.dataset == data.name == "imagenet":
            return len(self.labels or ()) == len(data.labels)
        return self.labels == data.labels


def known_weights(spec: str, name: str | None = None) -> KnownWeights:
    """Return the weights that `spec` names; of the architecture `name`, or of any.

    `spec` is a checkpoint's folder, ARCHITECTURE@DATASET, a published model's tag, or, with `name`, a file or DATASET
    alone. Raises CheckpointError if there are none, or if they are of another architecture.
    """
    path = Path(spec)
    if (path / checkpoint.FILE).exists() or (path.is_dir() and "/" in spec):
        known = of_checkpoint(path, spec)
    elif path.is_file():
        if name is None:
            raise CheckpointError(f"{spec}: a file does not say whose weights it has; name a checkpoint or a model")
        known = of_file(path, spec, name)
    else:
        known = of_name(spec if name is None or {*spec} & {"@", ":"} else f"{name}@{spec}", spec)
    if name and known.architecture != name:
        raise CheckpointError(f"{spec} has weights of {known.architecture}, not of {name}")
    return known


def of_checkpoint(folder: Path, spec: str) -> KnownWeights:
    """Return a checkpoint's weights, those of its last epoch so far."""
    saved = checkpoint.load(folder)
    if saved.architecture not in ZOO:
        raise CheckpointError(f"{folder}: there is no architecture {saved.architecture}")
    return KnownWeights(
        architecture=saved.architecture,
        origin=Origin(spec=spec, title=f"{saved.architecture} on {saved.dataset}", sha256=saved.weights.sha256),
        state=load_file(folder / saved.weights.file),
        labels=saved.labels,
        input=saved.input,
        dataset=saved.dataset,
    )


def of_file(path: Path, spec: str, name: str) -> KnownWeights:
    """Return the weights of an architecture in a file, whose keys are this project's or the library's."""
    from training.pretrained import published, under_own_names
    from training.state_dict import read

    card = ZOO[name]
    return KnownWeights(
        architecture=name,
        origin=Origin(spec=spec, title=path.name, sha256=sha256(path)),
        state=under_own_names(card, read(path)),
        labels=None,
        input=published(card).input if card.weights else None,
        dataset=None,
    )


def of_name(wanted: str, spec: str) -> KnownWeights:
    """Return the weights of a published model, of a tag or the newest ARCHITECTURE@DATASET, else a library's."""
    architecture, _, dataset = wanted.partition("@")
    if ":" not in wanted and architecture not in ZOO:
        hint = suggestion(near_names(architecture, ZOO)) or "`python -m models` lists them"
        raise CheckpointError(f"{spec} is no folder and no file, and there is no architecture {architecture!r}; {hint}")
    if found := of_store(wanted, spec):
        return found
    card = ZOO.get(architecture)
    if card and card.weights:
        from training.pretrained import download, published, under_own_names

        offer = published(card)
        if offer.data == dataset:
            print(f"{offer.name}: {offer.licence}\n{offer.source}", flush=True)
            return KnownWeights(
                architecture=architecture,
                origin=Origin(spec=spec, title=f"{offer.library} {offer.name}", sha256=offer.sha256),
                state=under_own_names(card, download(card)),
                labels=offer.labels,
                input=offer.input,
                dataset=offer.data,
            )
        other = f"; libraries have {architecture}@{offer.data}"
    else:
        other = "; `python -m training import` lists the networks that libraries have weights of"
    raise CheckpointError(f"{spec} is no checkpoint's folder, no file, and no published model {wanted}{other}")


def of_store(wanted: str, spec: str) -> KnownWeights | None:
    """Return the weights of a published model by its tag, or of the newest ARCHITECTURE@DATASET; None without one."""
    from engines.published import store

    models = [
        model
        for model in store.published()
        if wanted in (model.manifest.tag, f"{model.manifest.architecture}@{model.manifest.dataset}")
    ]
    if not models:
        return None
    model = max(models, key=lambda each: each.manifest.created)
    manifest, file = model.manifest, model.folder / WEIGHTS
    if manifest.architecture not in ZOO:
        raise CheckpointError(f"{manifest.tag}: there is no architecture {manifest.architecture}")
    if "input" not in manifest.provenance or sha256(file) != manifest.files[WEIGHTS].sha256:
        raise CheckpointError(f"{manifest.tag}: its weights or their input are not known: publish the model again")
    return KnownWeights(
        architecture=manifest.architecture,
        origin=Origin(spec=spec, title=manifest.tag, sha256=manifest.files[WEIGHTS].sha256),
        state=load_file(file),
        labels=manifest.labels,
        input=TypeAdapter(Input).validate_python(manifest.provenance["input"]),
        dataset=manifest.dataset,
    )
