"""Trainer: losses, resuming exactly, divergence, and a budget of time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.zoo import ZOO
from tests.training.small import ALONE, few, pictures, trainer
from training import checkpoint
from training.augment import translate
from training.campaign import campaign
from training.data import DataSet, load
from training.errors import DivergedError, TrainingError
from training.losses import map_loss
from training.recipes import PAPERS, Recipe, quick
from training.results import read
from training.train import TrainingOptions, TrainingRun, train


def test_the_map_loss_by_hand() -> None:
    # equation 9: y_correct + log(exp(-j) + sum of exp(-y)), the logits being -y
    distances = torch.tensor([[3.0, 5.0]])
    expected = 3 + torch.log(torch.exp(torch.tensor(-33.6)) + torch.exp(-distances).sum())
    assert map_loss(-distances, torch.tensor([0])).item() == pytest.approx(expected.item())


def test_auxiliary_heads_train_by_their_weight(digits: DataSet) -> None:
    data = few(digits, 4)

    def gradients(weight: float) -> dict[str, torch.Tensor]:
        recipe = replace(quick(ZOO["googlenet"], data), lr=0, precision="fp32", batch=4, auxiliary=weight)
        trained = trainer("googlenet", recipe, data)
        trained.train_epoch(1)
        named = trained.net.named_parameters()
        return {name: parameter.grad for name, parameter in named if parameter.grad is not None}

    without, single, double = gradients(0), gradients(0.3), gradients(0.6)
    for head in ("aux1.fc2.weight", "aux2.fc2.weight"):
        assert without[head].abs().max() == 0
        assert single[head].abs().max() > 0
        torch.testing.assert_close(double[head], 2 * single[head])
    torch.testing.assert_close(double["fc.weight"], without["fc.weight"])
    assert not torch.equal(double["conv1.conv.weight"], without["conv1.conv.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw", "rmsprop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_ends_as_if_never_stopped(optimizer: str, precision: str, digits: DataSet, tmp_path: Path) -> None:
    """Momentum of weights that are channels last in memory is restored too."""
    data = few(digits, 40)
    recipe = replace(quick(ZOO["resnet20_cifar"], data), batch=8, epochs=2, lr=0.01)
    recipe = replace(recipe, optimizer=optimizer, precision=precision)  # type: ignore[arg-type]
    check_resumed(data, recipe, tmp_path)


def test_resumed_with_random_parts_of_photos(tmp_path: Path) -> None:
    """Random crops are drawn in worker processes."""
    pictures(tmp_path / "photos")
    data = load(f"folder:{tmp_path / 'photos'}")
    recipe = Recipe(source="", edge=32, lr=0.01, weight_decay=0, batch=4, epochs=2, area=(0.3, 1), trivial=True)
    check_resumed(data, recipe, tmp_path)


def check_resumed(data: DataSet, recipe: Recipe, tmp_path: Path) -> None:
    expected = train(TrainingRun(ZOO["resnet20_cifar"], recipe, 1, tmp_path / "whole"), data, ALONE)

    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    run = TrainingRun(ZOO["resnet20_cifar"], recipe, 1, tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.describe", killed)  # after the first epoch is saved
        with pytest.raises(KilledError):
            train(run, data, ALONE)
    assert len(checkpoint.load(tmp_path / "killed").epochs) == 1
    resumed = train(run, data, ALONE, TrainingOptions(resume=True))
    assert resumed.weights.sha256 == expected.weights.sha256


def test_momentum_of_blocks_that_were_dropped_at_first(digits: DataSet) -> None:
    data = few(digits, 40)
    tried = trainer("resnet110_sd", replace(PAPERS["stochastic_depth"], batch=4), data)
    before = {name: parameter.clone() for name, parameter in tried.net.named_parameters()}
    for batch in tried.data.batches.epoch(1):
        tried.step(batch)
    assert not any(parameter.equal(before[name]) for name, parameter in tried.net.named_parameters())


def test_a_loss_that_is_no_number_stops_and_says_what_to_try(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 200)
    recipe = replace(quick(ZOO["resnet20_cifar"], data), batch=10, lr=1e30, warmup_epochs=0)
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) in epoch 1.*--set lr=1e\+29.*warmup_epochs=1"):
        train(TrainingRun(ZOO["resnet20_cifar"], recipe, 0, tmp_path), data, ALONE)
    assert not list(tmp_path.iterdir())


def test_one_that_diverges_leaves_the_others_theirs(digits: DataSet, tmp_path: Path) -> None:
    data, file = few(digits, 200), tmp_path / "results.jsonl"
    diverging, other = ZOO["resnet20_cifar"], ZOO["lenet5_modern"]
    runs = [
        TrainingRun(diverging, replace(quick(diverging, data), batch=10, lr=1e30, warmup_epochs=0), 0, tmp_path / "a"),
        TrainingRun(other, replace(quick(other, data), batch=10, epochs=1), 0, tmp_path / "b"),
    ]
    with pytest.raises(TrainingError, match="resnet20_cifar on mnist5k, seed 0"):
        campaign(runs, data, ALONE, file=file)
    (row,) = read(file)
    assert row.architecture == "lenet5_modern"
    campaign(runs[1:], data, ALONE, file=file)  # is there: not trained again


def test_a_result_by_other_values_is_named_with_them(
    digits: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file, card = few(digits, 40), tmp_path / "results.jsonl", ZOO["lenet5_modern"]
    recipe = replace(quick(card, data), batch=10, epochs=4, warmup_epochs=2)
    run = TrainingRun(card, recipe, 0, tmp_path / "a")
    campaign([run], data, ALONE, TrainingOptions(max_minutes=1e-9), file)
    campaign([run], data, ALONE, file=file)  # of one epoch, for want of time, yet the same
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"by the recipe {recipe.source!r}")
    other = run._replace(recipe=replace(recipe, freeze="head-only", lr=0.5))
    told = f"with lr {recipe.lr!r}, not 0.5, freeze 'none', not 'head-only'; another --results takes both"
    with pytest.raises(TrainingError, match=told):
        campaign([other], data, ALONE, file=file)
    campaign([run, other], data, ALONE, file=file)
    assert told in capsys.readouterr().out
    assert len(read(file)) == 1


def test_a_budget_draws_the_schedule_together(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    run = TrainingRun(ZOO["resnet20_cifar"], quick(ZOO["resnet20_cifar"], data), 0, tmp_path)
    saved = train(run, data, ALONE, TrainingOptions(max_minutes=1e-9))
    assert saved.done
    assert saved.recipe
    assert len(saved.epochs) == saved.recipe.epochs == 1
    assert train(run, data, ALONE, TrainingOptions(resume=True, max_minutes=9)) == saved


def test_translation_moves_by_whole_pixels_and_fills() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(200, 1, 5, 5, dtype=torch.uint8)
    pixels[:, 0, 2, 2] = 9
    moved = translate(pixels, torch.randint(5, (200, 2)), 2, fill=1, reflect=False)
    assert moved.shape == pixels.shape
    assert ((moved == 9).sum((1, 2, 3)) == 1).all()
    places = {tuple(place) for place in (moved[:, 0] == 9).nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in range(5) for column in range(5)}
    assert moved.eq(1).any()
    reflected = translate(
        torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5), torch.zeros(1, 2, dtype=torch.int64), 2, 1, reflect=True
    )
    assert reflected[0, 0, 0].int().tolist() == [12, 11, 10, 11, 12]
