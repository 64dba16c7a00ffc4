"""Fine-tuning: weights to start from, phases, frozen layers, exact resuming; and three ways compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.published.store import PublishedModel
from models.zoo import ZOO
from tests.training.small import ALONE, few
from training import checkpoint, compare
from training.data import Arrays, DataSet, Images
from training.errors import CheckpointError, RecipeError
from training.input import input_of
from training.known_weights import known_weights
from training.recipes import Recipe, override, quick, recipe_of, shortened
from training.schedule import phases
from training.train import TrainingOptions, TrainingRun, train

LENET, RESNET = ZOO["lenet5_modern"], ZOO["resnet20_cifar"]
TUNE = Recipe(
    source="",
    optimizer="adamw",
    lr=1e-2,
    weight_decay=1e-2,
    batch=10,
    epochs=4,
    head_epochs=2,
    body=0.1,
    warmup_epochs=0.5,
    precision="fp32",
    shift=1,
)


def of_digits(digits: DataSet, wanted: range, to_train: int, held_out: int) -> DataSet:
    """Return the first images of some digits, as many of each, as a data set of these classes."""

    def part(images: Images, count: int) -> Images:
        assert isinstance(images.pictures, Arrays)
        chosen = np.concatenate([np.flatnonzero(images.targets == digit)[:count] for digit in wanted])
        targets = images.targets[chosen] - wanted.start
        return Images(pictures=Arrays(images.pictures.array[chosen]), targets=targets)

    return replace(
        digits,
        labels=tuple(map(str, wanted)),
        train=part(digits.train, to_train),
        held_out=part(digits.held_out, held_out),
    )


@pytest.fixture(scope="module")
def low(digits: DataSet) -> DataSet:
    return of_digits(digits, range(5), 20, 10)


@pytest.fixture(scope="module")
def high(digits: DataSet) -> DataSet:
    return of_digits(digits, range(5, 10), 20, 10)


@pytest.fixture(scope="module")
def source(low: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a LeNet-5 that knows the digits 0 to 4."""
    out = tmp_path_factory.mktemp("source") / "lenet"
    train(TrainingRun(LENET, replace(TUNE, head_epochs=0, body=1, epochs=2), 0, out), low, ALONE)
    return out


def tensors(out: Path) -> dict[str, Tensor]:
    return load_file(out / checkpoint.load(out).weights.file)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of tensors that are not the same to the bit."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_the_head_first_then_all_at_a_tenth_of_the_rate() -> None:
    first, rest = phases(TUNE)
    assert (first.start, first.end, first.head_only, first.recipe.lr) == (0, 2, True, 1e-2)
    assert (rest.start, rest.end, rest.head_only, rest.recipe.epochs) == (2, 4, False, 2)
    assert rest.recipe.lr == pytest.approx(1e-3)
    (only,) = phases(replace(TUNE, freeze="head-only"))
    assert (only.end, only.head_only, only.recipe.lr) == (4, True, 1e-2)
    assert phases(shortened(TUNE, 1)) == phases(replace(shortened(TUNE, 1), head_epochs=0))
    plain = replace(TUNE, head_epochs=0, body=1)
    assert [phase.recipe for phase in phases(plain)] == [plain]
    assert override(TUNE, {"freeze": "head-only", "epochs": 2}).epochs == 2  # no epoch of the others is missing


def test_head_only_leaves_every_other_tensor_to_the_bit(high: DataSet, source: Path, tmp_path: Path) -> None:
    recipe = replace(TUNE, freeze="head-only", epochs=2)
    saved = train(TrainingRun(LENET, recipe, 0, tmp_path, str(source)), high, ALONE)
    assert changed(tensors(source), tensors(tmp_path)) == {"output.weight", "output.bias"}
    assert saved.labels == tuple("56789")
    assert saved.start
    assert saved.start.sha256 == checkpoint.load(source).weights.sha256
    assert saved.input == checkpoint.load(source).input


def test_frozen_stages_and_their_statistics_stay_to_the_bit(low: DataSet, high: DataSet, tmp_path: Path) -> None:
    recipe = replace(TUNE, epochs=2, head_epochs=1)
    train(TrainingRun(RESNET, replace(recipe, head_epochs=0, epochs=1), 0, tmp_path / "source"), low, ALONE)
    tuned = TrainingRun(RESNET, replace(recipe, freeze="stage1"), 0, tmp_path / "tuned", str(tmp_path / "source"))
    train(tuned, high, ALONE)
    after, before = tensors(tmp_path / "tuned"), tensors(tmp_path / "source")
    frozen = {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert any(name.endswith("running_mean") for name in frozen)
    assert changed(before, after) == before.keys() - frozen


class EndedError(Exception):
    """End of a training, in the place of a kill after an epoch is saved."""


@pytest.fixture(scope="module")
def whole(high: DataSet, source: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """Return a training that nothing has stopped, with random changes of every kind."""
    recipe = replace(TUNE, ema=0.3, mixup=0.2, cutmix=1, erasing=0.5, accumulate=2, label_smoothing=0.1)
    run = TrainingRun(LENET, recipe, 1, tmp_path_factory.mktemp("whole"), str(source))
    train(run, high, ALONE)
    return run


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_resumed_in_either_phase_and_between_ends_as_without(
    killed_after: int, whole: TrainingRun, high: DataSet, tmp_path: Path
) -> None:
    """Averages, MixUp, CutMix and random erasing go on exactly too."""
    expected, left = checkpoint.load(whole.out), [killed_after]

    def killed(*_: object) -> str:
        left[0] -= 1
        if not left[0]:
            raise EndedError
        return ""

    run = whole._replace(out=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.describe", killed)
        with pytest.raises(EndedError):
            train(run, high, ALONE)
    partial = checkpoint.load(run.out)
    assert len(partial.epochs) == killed_after
    assert (partial.optimizer is None) == (killed_after == 2)  # the next phase has a new one
    resumed = train(run, high, ALONE, TrainingOptions(resume=True))
    assert resumed.weights.sha256 == expected.weights.sha256
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in expected.epochs]


def test_resuming_needs_the_source_no_more(high: DataSet, source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "source"
    source_files = {path.name: path.read_bytes() for path in source.iterdir()}
    moved.mkdir()
    for name, content in source_files.items():
        (moved / name).write_bytes(content)
    run = TrainingRun(LENET, replace(TUNE, epochs=3), 0, tmp_path / "out", str(moved))
    saved = train(run, high, ALONE)
    (moved / checkpoint.FILE).unlink()
    assert train(run, high, ALONE, TrainingOptions(resume=True)) == saved
    with pytest.raises(CheckpointError, match="another start"):
        train(run._replace(start=None), high, ALONE, TrainingOptions(resume=True))


def test_pictures_enter_as_those_that_the_weights_know(low: DataSet, high: DataSet) -> None:
    trained = input_of(LENET, TUNE, low)
    other = replace(high, edge=None, fill=99, mean=(0.4,), std=(0.3,), light_on_dark=False)
    tuned = input_of(LENET, TUNE, other, trained)
    assert tuned == trained
    assert tuned.preprocess.light_on_dark  # which equality leaves out


def test_weights_by_every_name(lenet5: PublishedModel, lenet5_checkpoint: Path, tmp_path: Path) -> None:
    saved, tag = checkpoint.load(lenet5_checkpoint), lenet5.manifest.tag
    for spec in (str(lenet5_checkpoint), tag):
        found = known_weights(spec, "lenet5")
        assert (found.origin.sha256, found.input, found.labels) == (saved.weights.sha256, saved.input, saved.labels)
    for spec, name in (("lenet5@mnist5k", None), ("mnist5k", "lenet5")):
        assert known_weights(spec, name).origin.title.startswith("lenet5:mnist5k-")
    save_file(tensors(lenet5_checkpoint), tmp_path / "weights.safetensors")
    found = known_weights(str(tmp_path / "weights.safetensors"), "lenet5")
    assert (found.labels, found.input) == (None, None)
    assert not changed(tensors(lenet5_checkpoint), found.state)


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ("imagenet", "lenet5", "no published model lenet5@imagenet; `python -m training import` lists"),
        ("mnist5k", "resnet18", "no published model resnet18@mnist5k; libraries have resnet18@imagenet"),
        ("nowhere/checkpoint", "resnet18", "nowhere/checkpoint is no checkpoint's folder, no file"),
        ("resnet19@imagenet", None, "there is no architecture 'resnet19'; "),
        ("SOURCE", "resnet18", "has weights of lenet5_modern, not of resnet18"),
        ("SOURCE/log.jsonl", None, "a file does not say whose weights it has"),
    ],
)
def test_weights_that_are_not_there(spec: str, name: str | None, message: str, source: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        known_weights(spec.replace("SOURCE", str(source)), name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "lenet5_modern",
            {"freeze": "stage9"},
            "freeze: lenet5_modern has none, stem, stage1, .*head-only, not 'stage9'",
        ),
        ("lenet5", {"freeze": "head-only"}, "freeze: lenet5's head has no weights to train"),
        ("lenet5_modern", {"accumulate": 11}, "accumulate: a batch of 10 cannot be computed in 11 parts"),
        ("lenet5_modern", {"distil": 0.5}, "distil: there is no teacher"),
    ],
)
def test_a_recipe_that_does_not_fit(
    name: str, changes: dict[str, object], message: str, low: DataSet, tmp_path: Path
) -> None:
    recipe = replace(TUNE, **changes)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=message):
        train(TrainingRun(ZOO[name], recipe, 0, tmp_path), low, ALONE)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_before_is_read(source: Path, tmp_path: Path) -> None:
    """Older checkpoints have none of the fields of fine-tuning."""
    content = json.loads((source / checkpoint.FILE).read_text())
    for name in ("start", "teacher"):
        del content[name]
    for name in ("freeze", "head_epochs", "body", "ema", "mixup", "cutmix", "erasing", "accumulate", "stop_after"):
        del content["recipe"][name]
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / checkpoint.FILE).write_text(json.dumps(content))
    assert checkpoint.load(tmp_path).done


@pytest.mark.slow
def test_tuned_beats_scratch_by_five_points(digits: DataSet, tmp_path: Path) -> None:
    """Source are the digits 0 to 4, target 5 to 9 with 20 pictures of each class."""
    low = of_digits(digits, range(5), 400, 20)
    source = tmp_path / "source"
    train(TrainingRun(RESNET, shortened(quick(RESNET, low), 4), 0, source), low, ALONE)
    high = of_digits(digits, range(5, 10), 20, 100)
    recipe = replace(recipe_of(RESNET, high, "tune"), precision="fp32")
    ways = compare.runs(TrainingRun(RESNET, recipe, 0, tmp_path / "compared", str(source)), high, [0])
    assert list(ways) == ["from scratch", "head only", "tuned"]
    table = compare.compare(ways, high, ALONE)
    top1s = {way: checkpoint.load(run.out).epochs[-1].top1 for way, (run,) in ways.items()}
    assert top1s["tuned"] > top1s["from scratch"] + 0.05, table
    assert len({checkpoint.load(run.out).split for (run,) in ways.values()}) == 1
    assert table.count("\n") == 5


def test_the_tune_recipe_suits_every_size(digits: DataSet) -> None:
    recipe = recipe_of(RESNET, few(digits, 100), "tune")
    assert recipe.batch == 8
    assert recipe.head_epochs * 4 == pytest.approx(recipe.epochs, abs=4)
    assert not recipe.flip
