"""Data as tables of paths and labels and as tar shards, and oddities that are told."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.published.preprocess import Preprocess
from training.data import DataSet, Files, Members, load, write_images
from training.data.images import PictureError
from training.errors import DataError


def picture(seed: int) -> bytes:
    """Return the bytes of a PNG with noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Folder with eight pictures, none in a folder of a class."""
    root = tmp_path / "Birds"
    root.mkdir()
    for number in range(8):
        (root / f"{number}.png").write_bytes(picture(number))
    return root


ROWS = [f"{number}.png,{'blue tit' if number % 2 else 'robin'}" for number in range(8)]


def names(data: DataSet) -> tuple[set[str], set[str]]:
    train, held_out = data.train.pictures, data.held_out.pictures
    assert isinstance(train, Files)
    assert isinstance(held_out, Files)
    return {path.name for path in train.paths}, {path.name for path in held_out.paths}


@pytest.mark.parametrize(
    "lines",
    [
        ["path,label", *ROWS],
        ["\ufefffilename;class", *(row.replace(",", ";") for row in ROWS), ""],
        ["species\tother\timage", *("\t".join([row.split(",")[1], "x", row.split(",")[0]]) for row in ROWS)],
        ROWS,
    ],
)
def test_a_table_has_columns_by_name_or_none(lines: list[str], flat: Path) -> None:
    (flat / "list.csv").write_text("\n".join(lines))
    data = load(f"csv:{flat / 'list.csv'}")
    assert (data.name, data.labels) == ("list", ("blue tit", "robin"))
    train, held_out = names(data)
    assert train | held_out == {f"{number}.png" for number in range(8)}
    assert not train & held_out
    assert {data.labels[target] for target in data.held_out.targets} == {"blue tit", "robin"}
    for images in (data.train, data.held_out):
        assert isinstance(images.pictures, Files)
        for path, target in zip(images.pictures.paths, images.targets, strict=True):
            assert data.labels[target] == ("blue tit" if int(path.stem) % 2 else "robin")


def test_a_folder_with_a_file_of_labels_is_as_a_table(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flat / "labels.csv").write_text(
        "\n".join(["path,label,split", *(f"{row},train" for row in ROWS[:6]), *(f"{row},val" for row in ROWS[6:])])
    )
    data = load(f"folder:{flat}")
    assert "labels are those of labels.csv" in capsys.readouterr().err
    assert (data.name, data.spec) == ("birds", f"folder:{flat}")
    assert names(data)[1] == {"6.png", "7.png"}
    assert data.split == "column of the table: 6 to train on, 2 held out"
    assert load(f"csv:{flat / 'labels.csv'}").name == "birds"  # `labels` would say nothing


def test_pictures_are_written_into_their_folder_whatever_the_labels(flat: Path, tmp_path: Path) -> None:
    (flat / "list.csv").write_text("\n".join(["path,label", *ROWS]).replace("robin", "..").replace("blue tit", "a/b"))
    write_images(load(f"csv:{flat / 'list.csv'}"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"-", "a-b"}
    assert {path.name for path in tmp_path.iterdir()} == {"Birds", "out"}


def test_numbers_are_classes_in_their_order(flat: Path) -> None:
    (flat / "list.csv").write_text(
        "path,label\n" + "\n".join(f"{number}.png,{number % 2 * 8 + 2}" for number in range(8))
    )
    assert load(f"csv:{flat / 'list.csv'}").labels == ("2", "10")
    (flat / "list.csv").write_text(
        "path,label\n" + "\n".join(f"{number}.png,{'7' * (1 + 5000 * (number % 2))}" for number in range(8))
    )
    assert load(f"csv:{flat / 'list.csv'}").labels == ("7", 5001 * "7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no comma, semicolon or tab"),
        ("photo,bird\n0.png,robin\n", "line 1: columns are named path and label, and perhaps split, not photo, bird"),
        ("path,label\n0.png,robin\n1.png\n", "line 3: a row has a path and a label"),
        ("path,label\n0.png,robin\n1.png,robin\n", "the table has 1 classes, two at least"),
        ("path,label\n0.png,robin\n9.png,tit\n", "1 of 2 pictures are not there, such as 9.png in line 3"),
        (f"path,label\n0.png,robin\n{300 * 'x'},tit\n", "1 of 2 pictures are not there, such as x"),
        ("path,label,split\n0.png,robin,\n1.png,tit,train\n", "line 2: a row has a path and a label, and a half"),
        ("path,label,split\n0.png,robin,fold1\n1.png,tit,train\n", "halves are train and val, not fold1"),
        ("path,label,split\n0.png,robin,val\n1.png,tit,train\n", "no picture to train on in robin"),
        ("path,label,split\n0.png,robin,train\n1.png,tit,train\n", "no picture is held out"),
        ("path,label\n0.png,robin\n1.png,tit\n", "each class has a single picture; two are needed"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_line(text: str, message: str, flat: Path) -> None:
    (flat / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(f"csv:{flat / 'list.csv'}")


# Tar shards


def shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(numbers: range) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in numbers:
        files[f"a/{number:04}.png"] = picture(number)
        files[f"a/{number:04}.cls"] = f"{number % 2}\n".encode()
        files[f"a/{number:04}.seg.png"] = picture(100 + number)
    return files


def test_shards_are_halves_by_their_names_and_classes_have_theirs(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    shard(root / "birds-train-0000.tar", samples(range(6)))
    shard(root / "birds-train-0001.tar", samples(range(6, 8)))
    shard(root / "birds-val-0000.tar", samples(range(8, 12)))
    (root / "classes.txt").write_text("robin\nblue tit\n")
    data = load(f"tar:{root}")
    assert (data.name, data.labels, len(data.train), len(data.held_out)) == ("shards", ("robin", "blue tit"), 8, 4)
    assert isinstance(data.train.pictures, Members)
    assert data.train.targets.tolist() == [0, 1] * 4
    expected = np.asarray(Image.open(io.BytesIO(picture(7))))
    assert (np.asarray(data.train.pictures[7]) == expected).all()
    assert data.train.pixels(Preprocess(mode="RGB", resize_edge=16, crop=16)).shape == (8, 16, 16, 3)
    (root / "birds-train-0001.tar").unlink()
    with pytest.raises(PictureError, match=r"birds-train-0001\.tar, at byte "):
        data.train.pictures[7]


def test_one_shard_with_labels_in_json_is_split_by_name(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for number in range(8):
        files[f"{number}.json"] = json.dumps({"label": "robin" if number % 2 else "tit"}).encode()
        files[f"{number}.png"] = picture(number)
    shard(tmp_path / "birds.tar", files)
    data, again = load(f"tar:{tmp_path / 'birds.tar'}"), load(f"tar:{tmp_path / 'birds.tar'}")
    assert (data.name, data.labels, data.split) == ("birds", ("robin", "tit"), again.split)
    assert len(data.train) + len(data.held_out) == 8
    assert {*data.held_out.targets.tolist()} == {0, 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.png": picture(0)}, "0 has a picture and no label: 0.cls holds a class's number"),
        ({"0.png": picture(0), "0.json": b'{"label": null}'}, "0 has a picture and no label"),
        ({"0.png": picture(0), "0.json": 10_000 * b"["}, "0 has a picture and no label"),
        ({"0.png": picture(0), "0.cls": b"1"}, "the shards have 1 classes, two at least"),
    ],
)
def test_a_shard_that_lacks_labels_is_a_line(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    shard(tmp_path / "birds.tar", files)
    with pytest.raises(DataError, match=message):
        load(f"tar:{tmp_path / 'birds.tar'}")


def test_what_is_no_shard_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no "):
        load(f"tar:{tmp_path / 'nowhere.tar'}")
    with pytest.raises(DataError, match=r"has no \.tar files"):
        load(f"tar:{tmp_path}")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"packed\.tar is no plain tar file"):
        load(f"tar:{tmp_path / 'packed.tar'}")


# Oddities


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Folder with twenty pictures each of the classes blue and red."""
    root = tmp_path / "colours"
    for start, label in ((0, "blue"), (50, "red")):
        (root / label).mkdir(parents=True)
        for number in range(20):
            (root / label / f"{number}.png").write_bytes(picture(start + number))
    return root


def test_nothing_is_told_of_plain_folders(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(f"folder:{classes}")
    assert capsys.readouterr().err == ""


def test_doubles_across_the_split_and_across_classes_are_told(
    classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, held_out = names(load(f"folder:{classes}"))
    data = load(f"folder:{classes}")
    assert isinstance(data.held_out.pictures, Files)
    assert isinstance(data.train.pictures, Files)
    original, double = data.held_out.pictures.paths[0], data.train.pictures.paths[0]
    double.write_bytes(original.read_bytes())
    assert original.name in held_out
    load(f"folder:{classes}")
    told = capsys.readouterr().err
    assert f"1 of {len(data.held_out)} held-out pictures are trained on too, so top-1 says too much: " in told
    assert f"{original} = {double}" in told
    other = classes / ("red" if original.parent.name == "blue" else "blue") / "more.png"
    other.write_bytes(original.read_bytes())
    load(f"folder:{classes}")
    assert "pictures are in two classes or more: " in capsys.readouterr().err


def test_unbalanced_classes_are_told_with_the_remedy(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2, 20):
        (classes / "red" / f"{number}.png").unlink()
    load(f"folder:{classes}")
    assert "pictures of blue, 1 of red: --set balanced=true weighs all classes alike" in capsys.readouterr().err


def test_a_class_with_one_picture_is_trained_on_and_told(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (classes / "green").mkdir()
    (classes / "green" / "0.png").write_bytes(picture(99))
    data = load(f"folder:{classes}")
    assert data.labels == ("blue", "green", "red")
    assert (data.train.targets == 1).sum() == 1
    assert not (data.held_out.targets == 1).any()
    assert "a single picture in green: trained on, and measured by no held-out picture" in capsys.readouterr().err


def tiff(path: Path, channels: int) -> None:
    """Write a grey TIFF whose other channels are neither colours nor transparency."""
    width, height = 24, 20
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: channels, 278: height}
    values[279] = width * height * channels
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(values))
    path.write_bytes(header + entries + bytes(4) + bytes(values[279]))


def test_more_than_three_channels_are_refused_in_a_line(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for channels in (4, 6):
        tiff(classes / "red" / f"{channels}.tif", channels)
    data = load(f"folder:{classes}")
    assert len(data.train) + len(data.held_out) == 40
    told = capsys.readouterr().err
    for channels in (4, 6):
        assert f"{channels}.tif: it has {channels} channels; grey or three colours are read" in told
