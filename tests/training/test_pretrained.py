"""Published weights become a checkpoint that answers as the library does, preprocessing included."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torchvision.models import get_model, get_model_weights

from engines.published.manifest import sha256
from engines.published.preprocess import Preprocess
from engines.runtimes.openvino import OpenVINOEngine
from models.zoo import ZOO
from tests.conftest import Run, only_model
from tests.serving import serving
from training import checkpoint
from training.errors import CheckpointError
from training.pretrained import download, import_weights, of_known_file, offers, published

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


def photo(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


@torch.no_grad()
def randomised(net: nn.Module) -> nn.Module:
    """Batch norms as training leaves them, none an identity."""
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return net.eval()


def library(name: str) -> tuple[nn.Module, Any]:
    """The library's network with random weights, and its transforms."""
    weights = ZOO[name].weights
    assert weights
    torch.manual_seed(0)
    if weights.library == "torchvision":
        entry = next(iter(cast(Any, get_model_weights(weights.model))))
        # what loading the published weights would set
        more = {"transform_input": True, "init_weights": True} if weights.model in {"googlenet", "inception_v3"} else {}
        return randomised(get_model(weights.model, weights=None, **more)), entry.transforms()
    net = timm.create_model(weights.model, pretrained=False)
    return randomised(net), create_transform(**resolve_data_config({}, model=net))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "name",
    [
        # resnet18 is served below
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("se_resnet50", "googlenet_bn_tv", "densenet121", "inception_v3", "inception_v4")
        ),
    ],
)
@torch.no_grad()
def test_the_same_logits_of_the_same_photos(name: str, run: Run, tmp_path: Path) -> None:
    theirs, transform = library(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    imported = run("training", "import", name, "--file", tmp_path / "weights.pth", "--out", tmp_path / "checkpoint")
    assert re.search(r"BSD-3-Clause|apache-2.0", imported.stdout)
    home = tmp_path / "bentoml"
    done = run("training", "publish", tmp_path / "checkpoint", "--precisions", "fp32", BENTOML_HOME=str(home))
    assert f"published {name}:imagenet-" in done.stdout
    model = only_model(home)
    engine = OpenVINOEngine(model.folder / "model.onnx", "fp32")
    for picture in map(photo, PHOTOS):
        expected = theirs(transform(picture).unsqueeze(0)).numpy()
        found = engine.infer(model.manifest.preprocess(picture)[None])
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    assert model.manifest.accuracy == {}
    assert model.manifest.provenance["imported"]["name"] == "weights.pth"


@torch.no_grad()
def test_imported_weights_are_served(run: Run, tmp_path: Path) -> None:
    theirs, transform = library("resnet18")
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    run("training", "import", "resnet18", "--file", tmp_path / "weights.safetensors", "--out", tmp_path / "checkpoint")
    home = str(tmp_path / "bentoml")
    run("training", "publish", tmp_path / "checkpoint", "--precisions", "fp32", BENTOML_HOME=home)
    photo("chelsea").save(tmp_path / "chelsea.png")
    with serving(BENTOML_HOME=home) as (client, _):
        body = (tmp_path / "chelsea.png").read_bytes()
        answer = client.post("/classify", params={"model": "resnet18@imagenet", "top_k": 3}, content=body)
        described = client.get("/models/resnet18").json()
    assert answer.status_code == httpx.codes.OK, answer.text
    values, indices = theirs(transform(photo("chelsea")).unsqueeze(0)).softmax(1)[0].topk(3)
    found = {prediction["index"]: prediction["probability"] for prediction in answer.json()["predictions"]}
    assert found == pytest.approx(dict(zip(indices.tolist(), values.tolist(), strict=True)), rel=1e-2)
    assert [row["superclass"] for row in answer.json()["superclasses"]]
    assert described["models"][0]["accuracy"] == {}


def test_a_file_that_holds_more_than_weights_is_not_loaded(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(CheckpointError, match="holds more than weights"):
        import_weights("resnet18", tmp_path / "harmful.pth", None, tmp_path / "checkpoint")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("resnet18", {"conv1.weight": torch.zeros(2)}, "does not fit resnet18"),
        ("resnet18", [1, 2], "holds no state dict"),
        ("resnet20_cifar", {"odd.weight": torch.zeros(2), "b": torch.zeros(2)}, "does not fit resnet20_cifar"),
        ("resnet20_cifar", ZOO["resnet18"].build(10).state_dict(), "does not fit resnet20_cifar"),
        ("lenet5", {}, "no library known here has lenet5; they have alexnet_owt"),
    ],
)
def test_weights_that_do_not_fit(name: str, content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        import_weights(name, tmp_path / "weights.pth", None, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read" if name != "lenet5" else "no library"):
        import_weights(name, tmp_path / "missing.pth", None, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.slow
def test_a_file_of_ones_own_with_the_data_it_was_trained_on(run: Run, lenet5_checkpoint: Path, tmp_path: Path) -> None:
    trained = checkpoint.load(lenet5_checkpoint)
    file, out = lenet5_checkpoint / trained.weights.file, tmp_path / "checkpoint"
    run("training", "import", "lenet5", "--file", file, "--data", "mnist5k", "--out", out)
    imported = checkpoint.load(out)
    assert (imported.labels, imported.input) == (trained.labels, trained.input)
    report = run("training", "evaluate", out, "--picture", tmp_path / "confusion.png").stdout
    assert re.search(rf"top-1 +{trained.epochs[-1].top1:.2%}", report)
    said = run("training", "publish", out, BENTOML_HOME=str(tmp_path / "bentoml")).stdout
    assert "no INT8 graph: the training images of imported weights are not known; --calibrate NAME[:PATH] names" in said
    assert re.search(r"published lenet5:mnist5k-.*: top-1 9\d.*; fp32, bf16, fp16, ", said)


def test_a_file_has_the_published_accuracy_only_if_it_is_the_librarys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, offer = tmp_path / "weights.pth", published(ZOO["resnet18"])
    file.write_bytes(b"any")
    assert offer.sha256 == "f37072fd"  # torchvision's name of the file: resnet18-f37072fd.pth
    assert of_known_file(file, offer).top1 is None
    assert "does not begin with f37072fd, so the published top-1 is not taken" in capsys.readouterr().out
    assert of_known_file(file, replace(offer, sha256=None)).top1 is None
    known = of_known_file(file, replace(offer, sha256=sha256(file)[:8]))
    assert (known.library, known.top1) == ("torchvision", 69.758)
    assert "is the library's file" in capsys.readouterr().out


@pytest.fixture
def for_cifar(tmp_path: Path) -> Path:
    """File as pytorch_resnet_cifar10 has it, with random weights."""
    net = ZOO["resnet20_cifar"].build(10)
    file = tmp_path / "resnet20.th"
    wrapped = {f"module.{key.replace('fc.', 'linear.')}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": wrapped, "best_prec1": 91.78}, file)
    with zipfile.ZipFile(file) as saved:
        parts = {name: saved.read(name) for name in saved.namelist()}
    with zipfile.ZipFile(file, "w") as saved:  # as saved on a GPU
        for name, content in parts.items():
            saved.writestr(name, content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    return file


def test_weights_for_cifar_are_fetched_and_checked(
    for_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.pretrained.IDELBAYEV", tmp_path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    card = ZOO["resnet20_cifar"]
    assert card.weights
    other = for_cifar.rename(tmp_path / card.weights.model)
    with pytest.raises(CheckpointError, match="invalid hash value"):
        download(card)
    named = other.rename(tmp_path / f"resnet20-{sha256(other)[:8]}.th")
    fetched = download(replace(card, weights=replace(card.weights, model=named.name)))
    assert {"module.conv1.weight", "module.linear.weight"} <= fetched.keys()


def test_a_file_of_weights_for_cifar_is_known_by_its_hash(
    for_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = for_cifar
    monkeypatch.setattr("training.pretrained.digits", lambda name: sha256(file)[:8])
    saved = import_weights("resnet20_cifar", file, None, tmp_path / "checkpoint")
    assert saved.imported
    assert (saved.imported.top1, saved.imported.top5, saved.dataset, saved.labels[3]) == (91.73, None, "cifar10", "cat")
    assert "pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th" in capsys.readouterr().out


def test_old_densenets_keys_are_known() -> None:
    weights = ZOO["densenet121"].weights
    assert weights
    old = "features.denseblock1.denselayer1.norm.1.weight"
    assert weights.translate({old: 1}) == {"features.denseblock1.denselayer1.norm1.weight": 1}


def test_every_variant_with_weights_is_listed_with_a_licence() -> None:
    rows = offers().splitlines()[2:]
    assert len(rows) == sum(card.weights is not None for card in ZOO.values())
    assert all(re.search(r"BSD-[23]-Clause|apache-2.0", row) for row in rows)


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (341, 257), (1024, 683)])
def test_resizing_rounds_as_torchvisions(size: tuple[int, int]) -> None:
    preprocess = Preprocess(mode="RGB", resize_edge=256, crop=224)
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    entry: Any = get_model_weights("resnet18").DEFAULT
    transforms = entry.transforms()
    ours = (preprocess(picture) / 255 - np.array(transforms.mean)) / np.array(transforms.std)
    assert np.abs(ours - transforms(picture).permute(1, 2, 0).numpy()).max() < 2 / 255 / 0.2
