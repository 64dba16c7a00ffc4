"""Training repeats, resumes exactly, and loses nothing when killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from models.stochastic_depth import StochasticBlock
from models.zoo import ZOO
from tests.conftest import Run
from tests.serving import ROOT
from training import checkpoint
from training.__main__ import main
from training.augment import translate
from training.campaign import campaign
from training.data import Arrays, DataSet, Images, load
from training.errors import CheckpointError, DivergedError, TrainingError
from training.input import input_of
from training.processes import Processes
from training.recipes import PAPERS, Recipe, modern, paper, quick, recipe_of, shortened
from training.results import read
from training.train import CURVES, LOG, TrainingOptions, TrainingRun, train
from training.trainer import PreparedData, Trainer, learning_rate, make_net, map_loss

ALONE = Processes(0, 1, torch.device("cpu"))


def few(digits: DataSet, images: int) -> DataSet:
    """The first of every class, as many held out as trained on."""
    assert isinstance(digits.train.pictures, Arrays)
    step = len(digits.train) // images
    part = Images(pictures=Arrays(digits.train.pictures.array[::step]), targets=digits.train.targets[::step])
    return replace(digits, train=part, held_out=part)


def trainer(name: str, recipe: Recipe, data: DataSet) -> Trainer:
    torch.manual_seed(0)
    net = make_net(ZOO[name], 10, recipe)
    prepared = PreparedData(data, recipe, input_of(ZOO[name], recipe, data), 0, ALONE)
    return Trainer(net, recipe, prepared, ALONE)


def test_lenet5_reaches_97_percent(lenet5_checkpoint: Path) -> None:
    saved = checkpoint.load(lenet5_checkpoint)
    assert saved.done
    assert saved.epochs[-1].top1 >= 0.97
    assert saved.optimizer is None
    log = [json.loads(line) for line in (lenet5_checkpoint / LOG).read_text().splitlines()]
    assert log == [epoch.model_dump() for epoch in saved.epochs]
    assert {path.name for path in lenet5_checkpoint.iterdir()} == {checkpoint.FILE, LOG, CURVES, saved.weights.file}


def arguments(out: Path, *more: str) -> list[str]:
    return ["training", "lenet5", "--epochs", "2", "--seed", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def uninterrupted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "uninterrupted"
    run(*arguments(out))
    return out


def test_killed_and_resumed_ends_as_if_never_stopped(run: Run, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", *arguments(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert "epoch 1/2" in process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    partial = checkpoint.load(out)
    assert len(partial.epochs) == 1
    assert partial.optimizer
    assert "epoch 2/2" in run(*arguments(out, "--resume")).stdout
    resumed, expected = checkpoint.load(out), checkpoint.load(uninterrupted)
    assert resumed.weights.sha256 == expected.weights.sha256
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in expected.epochs]
    assert len((out / LOG).read_text().splitlines()) == 2


def test_a_finished_run_is_left_alone(run: Run, uninterrupted: Path) -> None:
    before = checkpoint.load(uninterrupted)
    assert "has all its 2 epochs" in run(*arguments(uninterrupted, "--resume")).stdout
    assert checkpoint.load(uninterrupted) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--resume goes on with it"),
        (["--resume", "--seed", "4"], "another seed"),
        (["--resume", "--epochs", "3"], "another recipe"),
    ],
)
def test_another_run_is_not_overwritten(run: Run, uninterrupted: Path, more: list[str], message: str) -> None:
    done = run(*arguments(uninterrupted, *more), check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    # where tests run in the background the signal is ignored, and their children inherit that
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = heed + "runpy.run_module('training', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *arguments(tmp_path / "out")[1:]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.endswith("stopped; --resume goes on from the last whole epoch\n")
    assert checkpoint.load(tmp_path / "out").epochs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenet6"], "no architecture 'lenet6'"),
        ([], "which architecture?"),
        (["--family", "lenets"], "no family 'lenets'; there are alexnet"),
        (["lenet5", "--data", "imagenet"], "ImageNet is not in data/imagenet"),
        (["lenet5", "--data", "cifar10"], "python -m training download cifar10"),
        (["lenet5", "--set", "rate=1"], "a recipe has no 'rate'; it has"),
        (["lenet5", "--set", "lr=fast"], "lr: Input should be a valid number"),
        (["lenet5", "--set", "batch=0"], "batch: Input should be greater than or equal to 1"),
        (["lenet5", "--set", "optimizer=nesterov", "--set", "momentum=0"], "momentum: nesterov needs some"),
        (["inception_v3", "--set", "edge=32"], "edge: inception_v3 takes 75 pixels at least, not 32"),
        (["lenet5", "resnet18", "--out", "here"], "--out is of one architecture"),
        (["lenet5", "--set", "dropout=1.5"], "dropout: Input should be less than 1"),
        (["alexnet", "--set", 'init_ones=["conv9"]'], "init_ones: alexnet has no layer conv9"),
        (["lenet5", "--max-minutes", "0"], "--max-minutes must be more than 0"),
        (["bench", "lenet6"], "no architecture 'lenet6'"),
        (["lenet5", "--epochs", "0"], "--epochs must be at least 1"),
        (["publish", "nowhere"], "nowhere is no checkpoint"),
    ],
)
def test_a_wrong_command_is_a_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(words)
    assert exited.value.code
    assert message in capsys.readouterr().err + str(exited.value.code)


def test_a_damaged_checkpoint_is_named(run: Run, uninterrupted: Path, tmp_path: Path) -> None:
    weights = checkpoint.load(uninterrupted).weights.file
    for path in uninterrupted.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / weights).write_bytes(b"other")
    with pytest.raises(CheckpointError, match=f"{weights} is damaged"):
        checkpoint.load(tmp_path)
    (tmp_path / weights).unlink()
    with pytest.raises(CheckpointError, match=f"{weights} is missing"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"checkpoint.json is damaged"):
        checkpoint.load(tmp_path)


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


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_imagenet"])
def test_nin_starts_alive(name: str, digits: DataSet) -> None:
    """With biases of 0, a class's map is nothing for any image from the start, and has no gradient."""
    tried = trainer(name, quick(ZOO[name], digits), digits)
    pixels, _, _ = next(tried.data.batches.epoch(1))
    assert tried.net(tried.data.normalise(pixels)).gt(0).any(dim=0).all()


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw", "rmsprop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_ends_as_if_never_stopped(optimizer: str, precision: str, digits: DataSet, tmp_path: Path) -> None:
    """Also for momentum of weights that lie channels last in memory."""
    data = few(digits, 40)
    recipe = replace(quick(ZOO["resnet20_cifar"], data), batch=8, epochs=2, lr=0.01)
    recipe = replace(recipe, optimizer=optimizer, precision=precision)  # type: ignore[arg-type]
    check_resumed(data, recipe, tmp_path)


def test_resumed_with_random_parts_of_photos(tmp_path: Path) -> None:
    """Drawn in worker processes."""
    pictures(tmp_path / "photos")
    data = load(f"folder:{tmp_path / 'photos'}")
    recipe = Recipe(source="", edge=32, lr=0.01, weight_decay=0, batch=4, epochs=2, area=(0.3, 1), trivial=True)
    check_resumed(data, recipe, tmp_path)


def pictures(root: Path) -> None:
    for label, name in (("cat", "chelsea"), ("cup", "coffee")):
        (root / label).mkdir(parents=True)
        for number in range(6):
            picture = Image.fromarray(getattr(skimage.data, name)()).resize((40 + number, 40))
            picture.save(root / label / f"{number}.png")


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
    recipe = replace(quick(ZOO["resnet20_cifar"], data), batch=10, epochs=1)
    runs = [
        TrainingRun(ZOO["resnet20_cifar"], replace(recipe, lr=1e30, warmup_epochs=0), 0, tmp_path / "a"),
        TrainingRun(ZOO["lenet5_modern"], recipe, 0, tmp_path / "b"),
    ]
    with pytest.raises(TrainingError, match="resnet20_cifar on mnist5k, seed 0"):
        campaign(runs, data, ALONE, file=file)
    (row,) = read(file)
    assert row.architecture == "lenet5_modern"
    campaign(runs[1:], data, ALONE, file=file)  # is there: not trained again


def test_a_budget_draws_the_schedule_together(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    run = TrainingRun(ZOO["resnet20_cifar"], quick(ZOO["resnet20_cifar"], data), 0, tmp_path)
    saved = train(run, data, ALONE, TrainingOptions(max_minutes=1e-9))
    assert saved.done
    assert saved.recipe
    assert len(saved.epochs) == saved.recipe.epochs == 1
    assert train(run, data, ALONE, TrainingOptions(resume=True, max_minutes=9)) == saved


def test_two_processes_are_as_one_with_the_same_batch(tmp_path: Path) -> None:
    """No dropout and no batch norm, whose statistics are each process's own."""
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command += [*arguments(tmp_path / str(processes)), "--set", "batch=500"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1
    one, two = (checkpoint.load(tmp_path / str(processes)) for processes in (1, 2))
    assert [epoch.loss for epoch in two.epochs] == pytest.approx([epoch.loss for epoch in one.epochs], rel=1e-5)
    assert [epoch.top1 for epoch in two.epochs] == pytest.approx([epoch.top1 for epoch in one.epochs], abs=0.002)


def test_two_processes_drop_blocks_each_its_own_and_go_on(tmp_path: Path) -> None:
    pictures(tmp_path / "photos")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"]
    command += ["resnet110_sd", "--recipe", "quick", "--data", f"folder:{tmp_path / 'photos'}", "--epochs", "2"]
    command += ["--set", "edge=8", "--set", "batch=4", "--out", str(tmp_path / "out"), "--resume"]
    command += ["--results", str(tmp_path / "results.jsonl")]
    for said in ("epoch 2/2", "results.jsonl has resnet110_sd on photos, seed 0"):
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(said) == 1
    assert len(read(tmp_path / "results.jsonl")) == 1


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
