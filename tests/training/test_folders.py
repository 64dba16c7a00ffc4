"""Folders of pictures as people have them: nested, with hidden files, odd names, and pictures of every kind."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engines.published.preprocess import Preprocess
from loadtest.peers.photos import find_photos
from loadtest.traffic import read_images
from models.zoo import ZOO
from training import checkpoint
from training.__main__ import main
from training.data import Files, Images, load, write_images
from training.data.images import PictureError, from_files
from training.errors import DataError
from training.recipes import recipe_of


def write(path: Path, seed: int = 0) -> None:
    """Save noise as a picture, in new folders where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Folder with four pictures each of the classes blue and red."""
    root = tmp_path / "two"
    for label in ("blue", "red"):
        for number in range(4):
            write(root / label / f"{number}.png", number + 10 * (label == "red"))
    return root


def count(images: Images) -> int:
    assert isinstance(images.pictures, Files)
    return len(images.pictures.paths)


# Odd EXIF, and errors in the middle of an epoch


def test_odd_exif_does_not_end_a_training(two: Path) -> None:
    for path in (two / "red").iterdir():
        Image.open(path).save(path, exif=b"Exif\0\0zzzz")
    data = load(f"folder:{two}")
    assert count(data.train) + count(data.held_out) == 8
    assert data.train.pixels(Preprocess(mode="RGB", resize_edge=40, crop=40)).std() > 0


def test_a_picture_that_goes_during_an_epoch_is_named_in_one_line(two: Path) -> None:
    gone = two / "red" / "0.png"
    images = from_files([(str(gone), 0)])
    gone.unlink()
    with pytest.raises(PictureError, match=r"^\S*red/0.png: .*No such file") as raised:
        images.pictures[0]
    # As torch passes on an error of a worker process.
    passed_on = f"Caught PictureError in worker 0.\nTraceback …\ntraining.data.images.PictureError: {raised.value}\n"
    assert str(PictureError(passed_on)) == str(raised.value)


# Scales


def pgm(path: Path, pixels: NDArray[np.uint16]) -> None:
    path.write_bytes(b"P5 20 20 65535\n" + pixels.astype(">u2").tobytes())


def test_pictures_of_16_bits_are_not_white(two: Path) -> None:
    for number, path in enumerate(two.rglob("*.png")):
        pgm(path.with_suffix(".pgm"), np.full((20, 20), 5000 + 10_000 * (number % 2), np.uint16))
        path.unlink()
    data = load(f"folder:{two}")
    pixels = data.train.pixels(Preprocess(mode="L", resize_edge=20, crop=20))
    assert {*np.unique(pixels)} <= {19, 58}


def test_pictures_without_a_scale_are_named_and_left_out(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("F", (9, 9), 7).save(two / "red" / "float.tiff")
    Image.new("I", (9, 9), 7).save(two / "red" / "long.tiff")
    data = load(f"folder:{two}")
    assert count(data.train) + count(data.held_out) == 8
    skipped = capsys.readouterr().err
    assert re.search(r"skipped .*red/float.tiff: its pixels are floats", skipped)
    assert re.search(r"skipped .*red/long.tiff: its pixels are 32-bit", skipped)


def test_pictures_that_are_all_alike_are_warned_of(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in two.rglob("*.png"):
        Image.new("RGB", (9, 9), (200, 200, 200)).save(path)
    load(f"folder:{two}")
    assert capsys.readouterr().err.count("the pixels of all pictures are nearly the same") == 1


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr", "LA", "RGBA"])
def test_pictures_of_every_mode_can_be_written(two: Path, tmp_path: Path, mode: str) -> None:
    for path in two.rglob("*.png"):
        picture = Image.open(path).convert(mode)
        path.unlink()
        picture.save(path.with_suffix(".tiff"))
    write_images(load(f"folder:{two}"), tmp_path / "out")
    assert len(read_images(tmp_path / "out")) == 2


# Hidden files and folders

HIDDEN = [".ipynb_checkpoints/x.png", "__MACOSX/x.png", "._0.png", ".cache/deep/x.png", "deep/@eaDir/x.png"]


@pytest.mark.parametrize("hidden", [*(f"red/{path}" for path in HIDDEN), ".x/x.png", "__MACOSX/x.png", "@eaDir/x.png"])
def test_what_is_hidden_is_passed_over(two: Path, hidden: str) -> None:
    write(two / hidden)
    data = load(f"folder:{two}")
    assert data.labels == ("blue", "red")
    assert count(data.train) + count(data.held_out) == 8
    assert len(read_images(two)) == 8


def test_a_folder_below_a_class_is_read(two: Path) -> None:
    write(two / "red" / "deep" / "down" / "x.png")
    assert sum(count(half) for half in (load(f"folder:{two}").train, load(f"folder:{two}").held_out)) == 9


def test_hidden_photos_are_not_sent(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg"):
        write(tmp_path / name)
    assert find_photos(tmp_path) == [tmp_path / "a.jpg"]


# Classes elsewhere


@pytest.mark.parametrize("inside", ["images", "images/all", "train", "train/images"])
def test_one_class_names_the_folder_that_has_the_classes(two: Path, tmp_path: Path, inside: str) -> None:
    shutil.copytree(two, tmp_path / "d" / inside)
    with pytest.raises(DataError, match=re.escape(f"d/{inside} has one per class: --data folder:")):
        load(f"folder:{tmp_path / 'd'}")


def test_a_folder_beside_the_classes_own_names_theirs(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "d" / "images")
    (tmp_path / "d" / "annotations").mkdir()
    with pytest.raises(DataError, match=r"no picture in annotations; .*d/images has one per class"):
        load(f"folder:{tmp_path / 'd'}")


def test_one_class_is_an_error(two: Path) -> None:
    shutil.rmtree(two / "blue")
    with pytest.raises(DataError, match="there is one folder, red, with 4 pictures; put the pictures of each class"):
        load(f"folder:{two}")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation"), ("TRAIN", "val")])
def test_halves_are_found_by_other_names_too(two: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        shutil.copytree(two, tmp_path / "d" / name)
    data = load(f"folder:{tmp_path / 'd'}")
    assert (data.labels, count(data.train), count(data.held_out)) == (("blue", "red"), 8, 8)
    assert data.split == f"folders {names[0]} and {names[1]}"


# Names that are not UTF-8


def test_names_that_are_not_utf_8_are_trained_on_and_written(two: Path, tmp_path: Path) -> None:
    odd = two / os.fsdecode(b"gr\xfcn")
    (two / "red").rename(odd)
    for path in list(odd.iterdir()):
        path.rename(odd / os.fsdecode(b"\xe4" + path.name.encode()))
    (odd / os.fsdecode(b"\xf6.png")).write_bytes(b"no picture")
    out = tmp_path / "checkpoint"
    arguments = ["lenet5", "--data", f"folder:{two}", "--recipe", "quick", "--set", "batch=4", "--epochs", "1"]
    main([*arguments, "--out", str(out)])
    assert checkpoint.load(out).labels == ("blue", r"gr\xfcn")
    assert json.loads((out / "checkpoint.json").read_text())["labels"] == ["blue", r"gr\xfcn"]
    write_images(load(f"folder:{two}"), tmp_path / "images")
    assert {image.label for image in read_images(tmp_path / "images")} == {"blue", r"gr\xfcn"}
    assert {image.label for image in read_images(two)} == {"blue", r"gr\xfcn"}


def test_a_folder_whose_path_is_not_utf_8_is_named(two: Path) -> None:
    odd = two.with_name(os.fsdecode(b"gr\xfcn"))
    two.rename(odd)
    with pytest.raises(DataError, match=r"gr\\xfcn: the folder's path is not UTF-8; rename it"):
        load(f"folder:{odd}")


def test_the_split_of_names_in_utf_8_is_the_one_of_before(two: Path) -> None:
    for path in list(two.rglob("*.png")):
        path.rename(path.with_name(f"ä{path.name}"))
    assert load(f"folder:{two}").split.endswith(SPLIT)


SPLIT = "c04ec4fd"


# Layouts that are no classes, and files that are no pictures


@pytest.mark.parametrize("halves", [("training_set", "test_set"), ("images", "masks"), ("val", "test")])
def test_folders_that_hold_the_same_folders_are_no_classes(halves: tuple[str, str], tmp_path: Path) -> None:
    for name in halves:
        for label in ("cats", "dogs"):
            write(tmp_path / "d" / name / label / "0.png")
    with pytest.raises(DataError, match="hold the same folders, so they are no classes"):
        load(f"folder:{tmp_path / 'd'}")


def test_a_class_may_be_named_train(two: Path) -> None:
    (two / "red").rename(two / "train")
    assert load(f"folder:{two}").labels == ("blue", "train")


def test_endings_of_every_picture_are_known_and_others_are_counted(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two / "red" / "0.png").rename(two / "red" / "0.jfif")
    (two / "red" / "1.png").rename(two / "red" / "1.heic")
    (two / "red" / "notes.txt").touch()
    data = load(f"folder:{two}")
    assert count(data.train) + count(data.held_out) == 7
    assert capsys.readouterr().err == "left out of red, by ending: 1 of .heic, 1 of .txt\n"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_in_lab_become_grey_and_colour(mode: Literal["L", "RGB"], two: Path) -> None:
    Image.new("LAB", (40, 40), (128, 0, 0)).save(two / "red" / "lab.tif")
    data = load(f"folder:{two}")
    assert count(data.train) + count(data.held_out) == 9
    assert data.train.pixels(Preprocess(mode=mode, resize_edge=40, crop=40)).std() > 0


# Sizes


@pytest.mark.parametrize(("sizes", "edge"), [({(28, 28)}, 28), ({(28, 28), (20, 28)}, None), ({(200, 200)}, None)])
def test_small_squares_are_not_cropped_as_photos_are(
    sizes: set[tuple[int, int]], edge: int | None, tmp_path: Path
) -> None:
    root = tmp_path / "signs"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number, size in enumerate(sorted(sizes) * 2):
            Image.new("L", size, 9 * number + 90 * (label == "b")).save(root / label / f"{number}.png")
    data = load(f"folder:{root}")
    assert data.edge == edge
    assert (recipe_of(ZOO["lenet5_modern"], data, "tune").area is None) == bool(edge)


def test_padding_has_the_level_of_the_pictures_border(tmp_path: Path) -> None:
    root = tmp_path / "signs"
    for label, ink in (("a", 0), ("b", 90)):
        (root / label).mkdir(parents=True)
        picture = Image.new("L", (28, 28), 250)
        picture.paste(ink, (4, 4, 24, 24))
        for number in range(3):
            picture.save(root / label / f"{number}.png")
    assert load(f"folder:{root}").fill == 250
