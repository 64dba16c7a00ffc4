"""Tests of models in a bucket: pushed and pulled whole, or not at all."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from engines.__main__ import main
from engines.published import bucket as buckets
from engines.published import manifest, store
from engines.published.bucket import ModelBucket, check_url, downloads
from engines.published.manifest import Accuracy, ManifestError
from engines.published.store import PublishedModel
from engines.published.urls import BucketError
from tests.serving import ROOT, free_port

# For each number in a line of stdin, a fork pulls from the bucket in argv[1], and is killed by SIGKILL just before that
# change to a file. Prints the changes of a whole pull, and the fork's exit status.
KILLED = """
import os, signal, sys
from engines.published.bucket import ModelBucket
from tests.forks import line_of_a_fork

most = remaining = int(line_of_a_fork())
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}

def hook(event, arguments):
    global remaining
    if event not in CHANGES or (event == "open" and arguments[1] in ("r", "rb")):
        return
    if str(arguments[0]).startswith(os.environ["BENTOML_HOME"]):
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
ModelBucket(sys.argv[1]).pull_new(wait=True)
print(most - remaining, end=" ")
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Yield the URL of an empty bucket of moto's server of S3."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            make_bucket("models")
            yield "s3://models"
        finally:
            server.terminate()


def make_bucket(name: str) -> None:
    """Make a bucket, once the server answers."""
    files = fsspec.filesystem("s3", use_listings_cache=False)
    deadline = time.monotonic() + 30
    while True:
        try:
            files.mkdir(name)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty place in a bucket."""
    if request.param == "file":
        return f"file://{tmp_path}/bucket"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet5: PublishedModel) -> Path:
    """Return an empty model store, in which this test's process pulls."""
    root = tmp_path / "home" / "models"
    root.mkdir(parents=True)
    monkeypatch.setattr(store, "root", lambda: root)
    return root


def put(url: str, name: str, data: bytes) -> None:
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    files.pipe_file(f"{root}/{name}", data)


def test_a_pushed_model_is_pulled_whole_and_once(lenet5: PublishedModel, here: Path, url: str) -> None:
    bucket, tag = ModelBucket(url), lenet5.manifest.tag
    assert bucket.push(lenet5) == list(lenet5.manifest.files)
    assert bucket.push(lenet5) == []
    assert bucket.pull_new(wait=True) == [tag]
    (pulled,) = store.published()
    assert pulled.manifest == lenet5.manifest
    pulled.manifest.check_files(pulled.folder)
    assert [path.name for path in downloads().iterdir()] == ["lock"]
    assert bucket.pull_new(wait=False) == []
    assert ModelBucket(url).pull_new(wait=True) == []
    assert not bucket.pull(tag)


def test_a_model_that_was_published_again_replaces_the_older_one(lenet5: PublishedModel, here: Path, url: str) -> None:
    bucket = ModelBucket(url)
    bucket.push(lenet5)
    bucket.pull_new(wait=True)
    newer = lenet5.manifest.model_copy(update={"created": lenet5.manifest.created.replace(year=2031)})
    assert bucket.push(PublishedModel(lenet5.folder, newer)) == []
    assert bucket.pull_new(wait=True) == [newer.tag]
    assert [model.manifest.created.year for model in store.published()] == [2031]


def test_an_accuracy_that_was_measured_later_is_taken(lenet5: PublishedModel, here: Path, url: str) -> None:
    bucket, later = ModelBucket(url), {"int8": Accuracy(top1=0.9, images=100)}
    bucket.push(lenet5)
    bucket.pull_new(wait=True)
    (pulled,) = store.published()
    own = {"bf16": Accuracy(top1=0.8, images=100)}
    store.keep_accuracy(lenet5.manifest.tag, "bf16", own["bf16"])
    measured = lenet5.manifest.model_copy(update={"accuracy": lenet5.manifest.accuracy | later})
    assert bucket.push(PublishedModel(lenet5.folder, measured)) == []
    assert bucket.pull_new(wait=True) == [measured.tag]
    (changed,) = store.published()
    assert changed.manifest == measured.model_copy(update={"accuracy": lenet5.manifest.accuracy | own | later})
    assert (changed.folder / manifest.ONNX).stat() == (pulled.folder / manifest.ONNX).stat()
    assert ModelBucket(url).pull_new(wait=True) == []


def test_a_file_that_was_changed_is_never_served(
    lenet5: PublishedModel, here: Path, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, folder = ModelBucket(url), lenet5.manifest.tag.replace(":", "/")
    monkeypatch.setattr(buckets, "RETRY_S", 0.0)
    bucket.push(lenet5)
    put(url, f"{folder}/{manifest.ONNX}", b"half of it")
    with caplog.at_level(logging.WARNING, "bentoml.convserve"):
        assert bucket.pull_new(wait=True) == []
        assert bucket.pull_new(wait=True) == []
    (warned,) = [record.getMessage() for record in caplog.records]  # once
    assert f"{manifest.ONNX} of {lenet5.manifest.tag} is not the file that was pushed" in warned
    assert list(bucket.errors.values()) == [warned.removeprefix("not pulled: ")]
    assert store.published() == []
    assert not list(downloads().glob(f"*/{manifest.ONNX}"))  # half a file is not kept
    put(url, f"{folder}/{manifest.ONNX}", (lenet5.folder / manifest.ONNX).read_bytes())
    monkeypatch.setattr(buckets, "RETRY_S", 60.0)
    assert bucket.pull_new(wait=True) == []  # the last try is less than a minute ago
    monkeypatch.setattr(buckets, "RETRY_S", 0.0)
    assert bucket.pull_new(wait=True) == [lenet5.manifest.tag]
    assert bucket.errors == {}


def test_a_push_that_was_interrupted_is_not_seen_and_a_pull_goes_on(
    lenet5: PublishedModel, here: Path, url: str
) -> None:
    bucket, tag = ModelBucket(url), lenet5.manifest.tag
    put_folder = f"{url}/{tag.replace(':', '/')}"
    fsspec.core.url_to_fs(url)[0].makedirs(fsspec.core.url_to_fs(put_folder)[1], exist_ok=True)
    put(put_folder, manifest.ONNX, b"")
    assert bucket.models() == {}
    assert bucket.pull_new(wait=True) == []
    bucket.push(lenet5)
    unfinished = downloads() / tag.replace(":", "-")
    unfinished.mkdir()
    (unfinished / manifest.WEIGHTS).write_bytes(b"the first half")
    (unfinished / "of-an-older-version").touch()
    assert bucket.pull(tag)
    (pulled,) = store.published()
    pulled.manifest.check_files(pulled.folder)
    assert not (pulled.folder / "of-an-older-version").exists()


@pytest.mark.parametrize("name", ["../../evil", "..", "", "a/b", "a\0b", ".hidden", "model.yaml"])
def test_names_in_a_manifest_do_not_become_paths(lenet5: PublishedModel, here: Path, tmp_path: Path, name: str) -> None:
    url = f"file://{tmp_path}/bucket"
    bucket = ModelBucket(url)
    bucket.push(lenet5)
    fields = json.loads(lenet5.manifest.model_dump_json())
    fields["files"][name] = fields["files"][manifest.ONNX]
    put(url, f"{lenet5.manifest.tag.replace(':', '/')}/{manifest.FILE}", json.dumps(fields).encode())
    with pytest.raises(ManifestError, match=re.escape(f"{name!r} is no name of a file")):
        bucket.pull(lenet5.manifest.tag)
    assert store.published() == []


def test_a_model_that_no_store_takes_keeps_no_other_back(
    lenet5: PublishedModel, here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket, tag = ModelBucket(f"file://{tmp_path}/bucket"), lenet5.manifest.tag
    bucket.push(lenet5)
    root = tmp_path / "bucket"
    shutil.copytree(root / "lenet5", root / "l_")  # BentoML takes no such name; it comes first
    changed = json.loads(lenet5.manifest.model_dump_json()) | {"architecture": "l_"}
    (root / "l_" / lenet5.folder.name / manifest.FILE).write_text(json.dumps(changed))
    assert bucket.pull_new(wait=True) == [tag]
    assert ["BentoMLException: Invalid Tag l_:" in error for error in bucket.errors.values()] == [True]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["not pulled"]


def test_a_time_without_its_zone_is_refused(lenet5: PublishedModel, here: Path, tmp_path: Path) -> None:
    url, name = f"file://{tmp_path}/bucket", f"{lenet5.manifest.tag.replace(':', '/')}/{manifest.FILE}"
    bucket = ModelBucket(url)
    bucket.push(lenet5)
    fields = json.loads(lenet5.manifest.model_dump_json()) | {"created": "2031-01-01T00:00:00"}
    put(url, name, json.dumps(fields).encode())
    with pytest.raises(ManifestError, match="created: Input should have timezone info"):
        bucket.pull(lenet5.manifest.tag)
    assert bucket.pull_new(wait=True) == []
    assert len(bucket.errors) == 1


@pytest.mark.slow
def test_a_kill_at_any_change_leaves_no_model_or_a_whole_one(lenet5: PublishedModel, tmp_path: Path) -> None:
    url, home = f"file://{tmp_path}/bucket", tmp_path / "home"
    (home / "models").mkdir(parents=True)
    ModelBucket(url).push(lenet5)
    environment = os.environ | {"BENTOML_HOME": str(home)}
    folder = home / "models" / "lenet5" / lenet5.folder.name
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, url],
        cwd=ROOT,
        env=environment,
        text=True,
        bufsize=1,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        for step in range(1, 100):
            print(step, file=process.stdin)
            *changes, status = map(int, process.stdout.readline().split())
            if folder.exists():
                manifest.load(folder).check_files(folder)
            if changes:
                break
            assert status == -signal.SIGKILL
        assert step > 10
        assert status == 0
        manifest.load(folder).check_files(folder)
        process.stdin.close()


def test_the_command_pushes_and_pulls_by_name(
    lenet5: PublishedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["engines", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    url, tag = f"file://{tmp_path}/bucket", lenet5.manifest.tag
    assert command("push", "lenet5", "--models", url) == (0, f"{tag}: {len(lenet5.manifest.files)} files pushed\n")
    assert command("push", "lenet5", "--models", url) == (0, f"{tag}: there already\n")
    monkeypatch.setenv("CONVSERVE_MODELS", url)
    assert command("pull", "lenet5@mnist5k") == (0, f"{tag}: here already\n")
    monkeypatch.setattr(store, "root", lambda: tmp_path / "home" / "models")
    (tmp_path / "home" / "models").mkdir(parents=True)
    assert command("pull") == (0, f"{tag}: pulled\n")
    assert command("pull", "vgg16") == (f"error: vgg16 is not in {url}; there are {tag}", "")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("models", "the form is s3://"),
        ("s3://", "the form is s3://"),
        ("ftp://host/models", "the form is s3://"),
        ("gs://models", r"gs:// needs gcsfs, which is not installed: pip install '.\[gcs\]'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_remedy(url: str, reason: str) -> None:
    with pytest.raises(BucketError, match=reason):
        check_url(url)


def test_a_web_server_is_read_and_never_written(lenet5: PublishedModel) -> None:
    with pytest.raises(BucketError, match="can only be read"):
        ModelBucket("http://127.0.0.1:9/models").push(lenet5)
    with pytest.raises(BucketError, match=r"http://127\.0\.0\.1:9/models: "):
        ModelBucket("http://127.0.0.1:9/models").pull_new(wait=True)
