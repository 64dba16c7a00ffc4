"""Changes of batches and weights: MixUp, CutMix, erasing, averages, accumulation, weights of classes, a teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.zoo import ZOO
from tests.training.small import ALONE, few, trainer
from training import checkpoint
from training.augment import gathered, translate
from training.average import Average
from training.data import DataSet
from training.errors import CheckpointError
from training.input import input_of
from training.known_weights import known_weights
from training.losses import balanced_weights, divergence, map_loss
from training.mixing import Mixing
from training.recipes import Recipe, quick
from training.schedule import finished, plateaus
from training.setup import TrainingRun
from training.teacher import Teacher, check_teacher
from training.train import train

PLAIN = Recipe(source="", lr=0.01, weight_decay=0, batch=8, epochs=2, precision="fp32")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(6, 3, 8, 8) + 1, torch.tensor([0, 1, 2, 3, 0, 1])


def test_without_values_nothing_changes_and_nothing_is_drawn() -> None:
    images, targets = batch()
    state = torch.random.get_rng_state()
    mixed, soft = Mixing(PLAIN, 4)(images, targets)
    assert mixed is images
    assert soft is targets
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mixup_mixes_pictures_and_targets_alike() -> None:
    images, targets = batch()
    mixed, soft = Mixing(replace(PLAIN, mixup=1), 4)(images, targets)
    assert soft.sum(1).tolist() == pytest.approx([1] * 6)
    share = float(soft[1, 1])  # of the second, whose neighbour is of another class
    torch.testing.assert_close(mixed[1], share * images[1] + (1 - share) * images[0])


def test_cutmix_puts_in_a_rectangle() -> None:
    images, targets = batch()
    mixed, soft = Mixing(replace(PLAIN, cutmix=1), 4)(images, targets)
    own = (mixed[1] == images[1]).all(0)
    assert torch.equal(mixed[1][:, ~own], images[0][:, ~own])
    assert float(soft[1, 1]) == pytest.approx(float(own.float().mean()))


def test_erased_rectangles_have_the_mean_colour() -> None:
    images, targets = batch()
    mixed, _ = Mixing(replace(PLAIN, erasing=1), 4)(images.clone(), targets)
    erased = (mixed == 0).all(1).sum((1, 2))
    assert (erased > 0).sum() >= 5  # a place is not always found
    assert ((mixed == images) | (mixed == 0)).all()


def test_an_average_forgets_by_e_in_its_steps() -> None:
    net = nn.BatchNorm2d(2)
    average = Average(net, 10)
    with torch.no_grad():
        net.weight.fill_(2)
        net.running_mean.fill_(4)  # type: ignore[union-attr]
        net.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    for _ in range(10):
        average.update()
    averaged = average.net.state_dict()
    assert averaged["weight"].tolist() == pytest.approx([2 - math.exp(-1)] * 2)
    assert averaged["running_mean"].tolist() == pytest.approx([4 * (1 - math.exp(-1))] * 2)
    assert averaged["num_batches_tracked"] == 7
    assert not any(weight.requires_grad for weight in average.net.parameters())


def test_the_averages_are_measured_and_saved(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    card = ZOO["lenet5_modern"]
    kept = train(TrainingRun(card, replace(PLAIN, ema=0.5), 0, tmp_path / "with"), data, ALONE)
    without = train(TrainingRun(card, PLAIN, 0, tmp_path / "without"), data, ALONE)
    assert [epoch.loss for epoch in kept.epochs] == [epoch.loss for epoch in without.epochs]  # training is the same
    assert kept.weights.sha256 != without.weights.sha256


@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_in_parts_is_the_same_step(balanced: bool, digits: DataSet) -> None:
    """The network has no batch norm, whose statistics are of each part."""
    data = few(digits, 40)
    data = replace(data, train=replace(data.train, targets=data.train.targets.clip(0, 2)))  # most are of one class
    weights = []
    for parts in (1, 3):
        tried = trainer("lenet5_modern", replace(PLAIN, accumulate=parts, balanced=balanced), data)
        loss = tried.step(next(tried.data.batches.epoch(1)))
        weights.append([loss, *tried.net.parameters()])
    for whole, in_parts in zip(*weights, strict=True):
        torch.testing.assert_close(in_parts, whole)


def test_batch_norms_without_weight_decay(digits: DataSet) -> None:
    tried = trainer("resnet20_cifar", replace(PLAIN, norm_decay=False, weight_decay=0.1), few(digits, 40))
    rest, norms = tried.optimizer.param_groups
    assert (rest["weight_decay"], norms["weight_decay"]) == (0.1, 0)
    assert {weight.ndim for weight in norms["params"]} == {1}
    assert len(rest["params"]) + len(norms["params"]) == len(list(tried.net.parameters()))


def test_classes_weigh_alike() -> None:
    targets = np.array([0] * 6 + [1] * 2)
    weights = balanced_weights(targets, 3)
    assert weights[:2].tolist() == pytest.approx([8 / 18, 8 / 6])
    assert weights[2].isfinite()


def test_lenets_loss_takes_soft_targets_and_weights() -> None:
    logits, targets = -torch.tensor([[3.0, 5.0], [4.0, 1.0]]), torch.tensor([0, 1])
    expected = map_loss(logits, targets)
    torch.testing.assert_close(map_loss(logits, F.one_hot(targets).float()), expected)
    torch.testing.assert_close(map_loss(logits, targets, weight=torch.ones(2)), expected)


def test_a_training_ends_after_epochs_without_a_better_top1() -> None:
    recipe = replace(PLAIN, epochs=9, head_epochs=2, stop_after=2)
    assert not finished(recipe, [0.9, 0.9, 0.5, 0.6, 0.6])  # those of the head count for themselves
    assert finished(recipe, [0.9, 0.9, 0.5, 0.6, 0.6, 0.6])
    assert not finished(replace(recipe, stop_after=None), [0.5] * 8)
    assert finished(recipe, [0.1 * number for number in range(9)])
    assert plateaus([0.5] * 5, 2) == 2


def test_a_training_that_ends_early_is_done(digits: DataSet, tmp_path: Path) -> None:
    recipe = replace(PLAIN, lr=0, epochs=9, stop_after=2)
    saved = train(TrainingRun(ZOO["lenet5_modern"], recipe, 0, tmp_path), few(digits, 40), ALONE)
    assert len(saved.epochs) == 3
    assert saved.done
    assert saved.optimizer is None


def test_a_teacher_that_agrees_adds_nothing() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert float(divergence(logits, logits, 4)) == pytest.approx(0, abs=1e-6)
    by_hand = F.kl_div(F.log_softmax(logits / 2, 1), F.softmax(-logits / 2, 1), reduction="batchmean") * 4
    torch.testing.assert_close(divergence(logits, -logits, 2), by_hand)


def test_a_teacher_sees_the_same_picture_in_its_own_way(lenet5_checkpoint: Path, digits: DataSet) -> None:
    known = known_weights(str(lenet5_checkpoint))
    own = input_of(ZOO["resnet20_cifar"], quick(ZOO["resnet20_cifar"], digits), digits)
    teacher = Teacher(known, own)
    assert known.input
    pixels = torch.from_numpy(digits.held_out.pixels(own.preprocess, np.arange(20))).permute(0, 3, 1, 2)
    expected = torch.from_numpy(digits.held_out.targets[:20])
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (own.mean, own.std))
    answers = teacher((pixels - mean) / std).argmax(1)
    assert (answers == expected).float().mean() >= 0.9
    check_teacher(known, digits)
    with pytest.raises(CheckpointError, match=r"--teacher: .* has 10 classes that are not the 3 of mnist5k"):
        check_teacher(known, replace(digits, labels=("a", "b", "c")))


def test_a_taught_training_goes_on_with_its_teacher_only(
    lenet5_checkpoint: Path, digits: DataSet, tmp_path: Path
) -> None:
    run = TrainingRun(
        *(ZOO["lenet5_modern"], replace(PLAIN, distil=0.5, mixup=0.2), 0, tmp_path),
        teacher=str(lenet5_checkpoint),
    )
    saved = train(run, few(digits, 40), ALONE)
    assert saved.teacher
    assert saved.teacher.sha256 == checkpoint.load(lenet5_checkpoint).weights.sha256


def test_cropping_at_once_is_cropping_one_by_one() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (9, 3, 6, 7), dtype=torch.uint8)
    corners = torch.randint(5, (9, 2))
    padded = F.pad(pixels, (2,) * 4, value=1)
    assert torch.equal(gathered(padded, corners, 6, 7), translate(pixels, corners, 2, fill=1, reflect=False))
