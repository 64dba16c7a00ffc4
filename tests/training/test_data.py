"""Data sets: each format is read correctly, and errors name the problem."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from tests.conftest import Run
from training import checkpoint
from training.data import Arrays, DataSet, Files, Images, load
from training.errors import DataError


def arrays(digits: DataSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    train, held_out = digits.train.pictures, digits.held_out.pictures
    assert isinstance(train, Arrays)
    assert isinstance(held_out, Arrays)
    return train.array, held_out.array


def test_four_thousand_to_train_and_a_thousand_held_out_evenly(digits: DataSet) -> None:
    assert np.bincount(digits.train.targets).tolist() == [400] * 10
    assert np.bincount(digits.held_out.targets).tolist() == [100] * 10


def test_no_held_out_picture_is_trained_on(digits: DataSet) -> None:
    train, held_out = ({picture.tobytes() for picture in part} for part in arrays(digits))
    assert len(held_out) == 1000
    assert not held_out & train


def test_the_split_is_the_one_that_published_accuracies_speak_of(digits: DataSet) -> None:
    _, held_out = arrays(digits)
    digest = hashlib.sha256(held_out.tobytes() + digits.held_out.targets.tobytes()).hexdigest()
    assert digest.startswith("eceb9c013d977c80")


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """MNIST's own format: magic number, dimensions, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())
    with gzip.open(path.with_name(f"{path.name}.gz"), "wb") as file:
        file.write(header + array.tobytes())


@pytest.mark.parametrize(
    ("name", "library", "label"), [("mnist", "MNIST", "7"), ("fashion_mnist", "FashionMNIST", "Sneaker")]
)
def test_mnists_files(name: str, library: str, label: str, digits: DataSet, tmp_path: Path) -> None:
    for part, images in (("train", digits.train), ("t10k", digits.held_out)):
        assert isinstance(images.pictures, Arrays)
        folder = tmp_path / library / "raw"
        write_idx(folder / f"{part}-images-idx3-ubyte", images.pictures.array)
        write_idx(folder / f"{part}-labels-idx1-ubyte", images.targets.astype(np.uint8))
    data = load(f"{name}:{tmp_path}")
    assert (data.name, data.labels[7], data.edge) == (name, label, 28)
    assert (data.train.targets == digits.train.targets).all()
    assert data.held_out.pictures[3].tobytes() == digits.held_out.pictures[3].tobytes()


def write_cifar(folder: Path, files: dict[str, int], labels: str, classes: int) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for name, images in files.items():
        pixels = random.integers(0, 256, (images, 3 * 32 * 32), dtype=np.uint8)
        content = {"data": pixels, labels: [index % classes for index in range(images)]}
        (folder / name).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifars_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    classes = 10 if name == "cifar10" else 100
    names = [f"class {index}" for index in range(classes)]
    files = {file: 20 for file, _ in [*library.train_list, *library.test_list]}
    folder = tmp_path / library.base_folder
    write_cifar(folder, files, "labels" if classes == 10 else "fine_labels", classes)
    (folder / library.meta["filename"]).write_bytes(pickle.dumps({library.meta["key"]: names}))
    # the checksums are those of the real files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).exists())
    data = load(f"{name}:{tmp_path}")
    assert data.labels == tuple(names)
    assert (len(data.train), len(data.held_out)) == (20 * len(library.train_list), 20)
    picture = data.train.pictures[0]
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    first = pickle.loads((folder / library.train_list[0][0]).read_bytes())["data"][0]
    assert np.asarray(picture)[0, 1, 2] == first[2 * 1024 + 1]  # row 0, column 1, blue


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve crops each of three of scikit-image's photos, in a folder a photo."""
    root = tmp_path_factory.mktemp("data") / "My Photos"
    random = np.random.default_rng(0)
    for name in ("astronaut", "coffee", "rocket"):
        pixels = getattr(skimage.data, name)()
        (root / name).mkdir(parents=True)
        for number in range(12):
            top, left = (int(random.integers(0, size - 160)) for size in pixels.shape[:2])
            Image.fromarray(pixels[top : top + 150, left : left + 160]).save(root / name / f"{number:02}.jpg")
    return root


def test_imagenets_folders(photos: Path, tmp_path: Path) -> None:
    names = {f"n0000000{index}": (f"class {index}", "synonym") for index in range(3)}
    torch.save((names, ["n00000000"]), tmp_path / "meta.bin")
    for part in ("train", "val"):
        for wnid, source in zip(names, sorted(photos.iterdir()), strict=True):
            shutil.copytree(source, tmp_path / part / wnid)
    data = load(f"imagenet:{tmp_path}")
    assert data.labels == ("class 0", "class 1", "class 2")
    assert len(data.train) == len(data.held_out) == 36
    assert data.train.pictures[0].size == (160, 150)
    data.check_train()


def test_imagenets_validation_images_suffice_to_evaluate(photos: Path, tmp_path: Path) -> None:
    torch.save(({"n00000000": ("astronaut", "spaceman")}, ["n00000000"]), tmp_path / "meta.bin")
    shutil.copytree(photos / "astronaut", tmp_path / "val" / "n00000000")
    data = load(f"imagenet:{tmp_path}")
    assert (data.labels, len(data.held_out), len(data.train)) == (("astronaut",), 12, 0)
    with pytest.raises(DataError, match="no images to train on, only 12 held-out ones"):
        data.check_train()
    (tmp_path / "train" / "n00000001").mkdir(parents=True)
    with pytest.raises(DataError, match=r"the training images of ImageNet in .* cannot be used: .*n00000001"):
        load(f"imagenet:{tmp_path}")
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"the training images of ImageNet in .* cannot be used: .*corrupted"):
        load(f"imagenet:{tmp_path}")


def test_a_folder_is_split_once(photos: Path) -> None:
    data, again = load(f"folder:{photos}"), load(f"folder:{photos}")
    assert data.name == "my_photos"
    assert data.labels == ("astronaut", "coffee", "rocket")
    assert (np.bincount(data.train.targets) + np.bincount(data.held_out.targets)).tolist() == [12] * 3
    assert np.bincount(data.held_out.targets).min() >= 1
    assert isinstance(data.train.pictures, Files)
    assert isinstance(data.held_out.pictures, Files)
    assert not {*data.train.pictures.paths} & {*data.held_out.pictures.paths}
    assert data.held_out.pictures == again.held_out.pictures
    assert all(0 < value < 1 for value in (*data.mean, *data.std))


def test_a_folder_may_have_its_own_split(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "train")
    shutil.copytree(photos, tmp_path / "val")
    assert len(load(f"folder:{tmp_path}").held_out) == 36
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(DataError, match="has a folder train, and none of val"):
        load(f"folder:{tmp_path}")
    (tmp_path / "other").rename(tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "rocket")
    with pytest.raises(DataError, match="rocket in one of train, val only"):
        load(f"folder:{tmp_path}")


def test_broken_pictures_are_listed_and_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    whole = (photos / "coffee" / "00.jpg").read_bytes()
    (tmp_path / "coffee" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rocket" / "01.png").write_bytes(b"no picture")
    (tmp_path / "rocket" / "notes.txt").write_text("not looked at")
    data = load(f"folder:{tmp_path}")
    assert len(data.train) + len(data.held_out) == 35
    skipped = capsys.readouterr().err
    assert re.search(r"skipped .*coffee/00.jpg: image file is truncated", skipped)
    assert re.search(r"skipped .*rocket/01.png: cannot identify image file", skipped)
    assert skipped.count("skipped") == 2


def test_a_new_picture_leaves_the_others_on_their_side(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")

    def names(images: Images) -> set[str]:
        assert isinstance(images.pictures, Files)
        return {str(path) for path in images.pictures.paths}

    before = load(f"folder:{tmp_path / 'photos'}")
    for number in range(100, 110):
        shutil.copy(tmp_path / "photos" / "coffee" / "00.jpg", tmp_path / "photos" / "coffee" / f"{number}.jpg")
    after = load(f"folder:{tmp_path / 'photos'}")
    assert len(after.train) + len(after.held_out) == 46
    assert not names(before.train) & names(after.held_out)
    if names(after.held_out) != names(before.held_out):
        with pytest.raises(DataError, match="has changed"):
            after.check_split(before.split)


def test_pictures_are_turned_as_their_exif_says(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    for path in (tmp_path / "photos" / "rocket").iterdir():
        Image.open(path).save(path, exif=exif)
    data = load(f"folder:{tmp_path / 'photos'}")
    sizes = {data.labels[target]: data.train.pictures[index].size for index, target in enumerate(data.train.targets)}
    assert sizes == {"astronaut": (160, 150), "coffee": (160, 150), "rocket": (150, 160)}


def test_an_empty_class_is_an_error(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "teapot").mkdir()
    with pytest.raises(DataError, match="no picture in teapot"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar10:nowhere", "nowhere has no cifar10; get it: python -m training download cifar10:nowhere"),
        ("imagenet:nowhere", "image-net.org/download"),
        ("folder:nowhere", "there is no folder nowhere"),
        ("folder", "folder:PATH"),
        ("svhn", "no data set 'svhn'; there are mnist5k"),
    ],
)
def test_a_data_set_that_is_not_there(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load(spec)


def test_photos_are_trained_on_and_published(run: Run, photos: Path, tmp_path: Path) -> None:
    """The workers' path: pictures decoded and changed at random, the same twice."""
    arguments = ["training", "resnet18", "--data", f"folder:{photos}", "--recipe", "paper", "--seed", "5"]
    arguments += ["--set", "edge=64", "--set", "batch=8", "--set", "lr=0.01", "--epochs", "1"]
    run(*arguments, "--out", tmp_path / "whole")
    run(*arguments, "--out", tmp_path / "again")
    saved = checkpoint.load(tmp_path / "whole")
    assert checkpoint.load(tmp_path / "again").weights.sha256 == saved.weights.sha256
    assert saved.dataset == "my_photos"
    assert saved.split.startswith("about a tenth of each class held out, by name: ")
    assert saved.recipe
    assert saved.recipe.area is None
    assert saved.recipe.shorter_edge == (256, 480)
    done = run(
        "training", "publish", tmp_path / "whole", "--precisions", "fp32", BENTOML_HOME=str(tmp_path / "bentoml")
    )
    assert "published resnet18:my_photos-" in done.stdout
