"""Recipes: schedules, the papers' numbers, and the networks' first weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.residual import ResidualBlock
from models.stochastic_depth import StochasticBlock
from models.zoo import ZOO
from tests.training.small import trainer
from training.data import DataSet, Images, load
from training.recipes import PAPERS, Kind, default_kind, modern, paper, quick, recipe_of, shortened
from training.recipes.small_data import for_few_images
from training.schedule import learning_rate
from training.trainer import make_net


def test_the_rate_warms_up_to_its_peak_and_ends_at_zero(digits: DataSet) -> None:
    recipe = quick(ZOO["lenet5"], digits)
    assert learning_rate(recipe, 0.5) == recipe.lr / 2
    assert learning_rate(recipe, recipe.warmup_epochs) == recipe.lr
    assert learning_rate(recipe, (recipe.epochs + recipe.warmup_epochs) / 2) == pytest.approx(recipe.lr / 2)
    assert learning_rate(recipe, recipe.epochs) == pytest.approx(0)
    assert learning_rate(replace(recipe, epochs=1), 1.0) == recipe.lr


def test_the_rate_falls_as_the_papers_say() -> None:
    cifar = PAPERS["resnet_cifar"]  # 64,000 steps, falls at 32,000 and 48,000
    assert [learning_rate(cifar, share * cifar.epochs) for share in (0.5, 0.51, 0.76)] == pytest.approx(
        [0.1, 0.01, 0.001]
    )
    inception = PAPERS["inception_v3"]
    assert learning_rate(inception, 2) == pytest.approx(0.045 * 0.94)
    rising, flat = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.5, 0.6, 0.4, 0.5]
    vgg = PAPERS["vgg"]
    assert learning_rate(vgg, 6, rising) == pytest.approx(0.01)
    assert learning_rate(vgg, 11, rising + flat) == pytest.approx(0.001)
    assert learning_rate(vgg, 16, rising + flat + flat) == pytest.approx(0.0001)
    assert learning_rate(vgg, 60, rising + 6 * flat) == pytest.approx(0.00001)  # "decreased 3 times"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("alexnet", ("sgd", 0.01, 128, 5e-4, 90)),  # paper, section 5
        ("vgg16", ("sgd", 0.01, 256, 5e-4, 74)),  # section 3.1
        ("vgg16_bn", ("sgd", 0.1, 256, 1e-4, 90)),  # torchvision: "trained with the default parameters", 8 x 32
        ("alexnet_owt", ("sgd", 0.01, 256, 1e-4, 90)),
        ("inception_v3", ("rmsprop", 0.045, 32, 4e-5, 100)),  # section 8
        ("resnet50", ("sgd", 0.1, 256, 1e-4, 120)),  # section 3.4
        ("resnet20_cifar", ("sgd", 0.1, 128, 1e-4, 164)),  # section 4.2: 64,000 steps
        ("wrn_28_10", ("nesterov", 0.1, 128, 5e-4, 200)),  # section 3
        ("densenet121", ("nesterov", 0.1, 256, 1e-4, 90)),  # section 4.2
        ("densenet_40_12", ("nesterov", 0.1, 64, 1e-4, 300)),
        ("resnext50_32x4d", ("nesterov", 0.1, 256, 1e-4, 100)),
        ("senet154", ("sgd", 0.6, 1024, 1e-4, 100)),  # section 6.1
    ],
)
def test_the_papers_numbers(name: str, values: tuple[object, ...]) -> None:
    recipe = PAPERS[ZOO[name].recipe]
    assert (recipe.optimizer, recipe.lr, recipe.batch, recipe.weight_decay, recipe.epochs) == values


def test_a_shorter_training_draws_its_schedule_together() -> None:
    short = shortened(PAPERS["resnet"], 12)
    assert (short.epochs, short.patience) == (12, 1)
    modern_short = shortened(modern(ZOO["resnet18"], load("mnist5k")), 10)
    assert modern_short.warmup_epochs == pytest.approx(0.5)
    inception = PAPERS["inception_v3"]
    last = learning_rate(inception, inception.epochs)
    assert learning_rate(shortened(inception, 7), 7) == pytest.approx(last)


def test_digits_are_not_mirrored(digits: DataSet) -> None:
    photos = replace(digits, name="photos")
    for kind in ("paper", "quick", "modern"):
        assert recipe_of(ZOO["resnet20_cifar"], photos, kind).flip
        assert not recipe_of(ZOO["resnet20_cifar"], digits, kind).flip


def test_survival_is_the_recipes() -> None:
    assert PAPERS["stochastic_depth"].survival == 0.5
    net = make_net(ZOO["resnet110_sd"], 10, replace(PAPERS["stochastic_depth"], survival=0.2))
    assert [module.survival for module in net.modules() if isinstance(module, StochasticBlock)][-1] == pytest.approx(
        0.2
    )


def test_the_network_starts_as_the_recipe_says() -> None:
    net = make_net(ZOO["alexnet"], 10, replace(PAPERS["alexnet"], dropout=0.25))
    assert net.get_parameter("conv2.weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert net.get_parameter("conv2.bias").eq(1).all()
    assert net.get_parameter("conv3.bias").eq(0).all()
    assert {module.p for module in net.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("name", ["resnet20_cifar", "se_resnet50", "resnext29_8x64d"])
def test_residual_blocks_start_as_their_shortcuts(name: str) -> None:
    net = make_net(ZOO[name], 10, replace(PAPERS["resnet_cifar"], zero_init_residual=True))
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
    assert blocks
    assert not any(block.last_norm.weight.any() for block in blocks)
    block = next(block for block in blocks if isinstance(block.downsample, torch.nn.Identity))
    inputs = torch.rand(2, block.outputs, 8, 8)
    assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_imagenet"])
def test_nin_starts_alive(name: str, digits: DataSet) -> None:
    """Biases of 0 would leave the map of a class at 0 for every image, without a gradient."""
    tried = trainer(name, quick(ZOO[name], digits), digits)
    pixels, _, _ = next(tried.data.batches.epoch(1))
    assert tried.net(tried.data.normalise(pixels)).gt(0).any(dim=0).all()


@pytest.mark.parametrize("name", ZOO)
def test_every_paper_has_a_recipe_that_says_its_source(name: str, digits: DataSet) -> None:
    recipe = paper(ZOO[name], digits)
    assert recipe.source
    assert (recipe.area is None) or (recipe.shorter_edge is None)
    modules = dict(make_meta(name).named_modules())
    assert set(recipe.init_ones) <= modules.keys()


def make_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return ZOO[name].build(10)


@pytest.mark.parametrize("images", [2000, 4000, 1_281_167])
def test_a_recipe_is_the_same_for_every_large_data_set(images: int, digits: DataSet) -> None:
    for kind in ("paper", "quick", "modern"):
        recipe = recipe_of(ZOO["resnet18"], digits, kind)
        assert for_few_images(recipe, images, photos=True) == recipe


@pytest.mark.parametrize("images", [8, 54, 180, 1000])
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "inception_v3", "lenet5"])
@pytest.mark.parametrize("kind", ["paper", "quick", "modern"])
def test_few_images_get_steps_enough_at_a_lower_rate(images: int, name: str, kind: Kind, digits: DataSet) -> None:
    large = recipe_of(ZOO[name], digits, kind)
    few = for_few_images(large, images, photos=True)
    assert few.area or few.shorter_edge
    assert for_few_images(large, images, photos=False).area == large.area
    steps = max(1, images // few.batch)
    assert steps >= 8 or few.batch == 8
    assert steps * few.epochs >= 300
    assert few.epochs >= large.epochs
    power = 1 if few.optimizer in {"sgd", "nesterov"} else 0.5
    assert few.lr / large.lr == pytest.approx((few.batch / large.batch) ** power)
    assert few.source.endswith(f"; batch, rate and epochs for {images:,} training images")


def test_the_default_recipe_follows_the_size_of_the_data(digits: DataSet) -> None:
    assert default_kind(digits) == "quick"
    many = Images(pictures=digits.train.pictures, targets=np.zeros(10_000, np.int64))
    assert default_kind(replace(digits, train=many)) == "paper"
