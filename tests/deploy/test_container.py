"""Tests of the Containerfile and the workflow that builds it, as far as they can be without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.serving import ROOT

CONTAINER = ROOT / "deploy" / "container"
TEXT = (CONTAINER / "Containerfile").read_text()
TARGETS = ("cpu", "cuda")


def test_what_is_copied_is_there_and_is_what_the_service_imports() -> None:
    copied = [line.split()[1:-1] for line in TEXT.splitlines() if line.startswith("COPY") and "--from" not in line]
    sources = {source for line in copied for source in line}
    locks = {source for source in sources if source.startswith("deploy/container/requirements")}
    assert locks == {"deploy/container/requirements.txt", "deploy/container/requirements-cuda.txt"}
    included = {path.strip("/") for path in yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]}
    assert {source.strip("/") for source in sources - locks} == included
    assert all((ROOT / source).exists() for source in sources - locks)
    ignored = (CONTAINER / "Containerfile.dockerignore").read_text().split()
    assert all(f"!{source.partition('/')[0]}" in ignored for source in sources - locks)


@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements", ["s3", "gcs"]), ("requirements-cuda", ["s3", "gcs", "tensorrt", "gpu-jpeg"])]
)
def test_a_lock_has_what_the_project_needs(lock: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    text = (CONTAINER / f"{lock}.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(locked[requirement.name]), f"{requirement}: make lock"
    assert "://" not in text


def test_both_targets_run_without_rights() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE)
    bases = {name: base for base, name in stages}
    for target in TARGETS:
        assert bases[target] == "server"
        assert "USER" not in TEXT.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
    server = TEXT.partition(" AS server\n")[2].partition("\nFROM ")[0]
    assert "\nUSER 10001:10001\n" in server
    assert server.index("USER 10001") > server.index("RUN useradd")


def test_the_workflow_builds_and_tests_both_targets() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "images.yml").read_text())
    image = workflow["jobs"]["image"]
    assert image["strategy"]["matrix"]["target"] == list(TARGETS)
    commands = [step.get("run", "") for step in image["steps"]]
    assert any(command.startswith("deploy/container/smoke_test.sh convserve:") for command in commands)


def test_no_action_is_named_by_a_tag_that_can_be_moved() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for action in re.findall(r"uses: (.+)", path.read_text()):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action)


@pytest.mark.parametrize(("name", "job"), [("images", "publish"), ("release", "release")])
def test_only_the_job_that_publishes_may_write(name: str, job: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in workflow["jobs"].items() if "permissions" in job] == [job]
    tags_alone = workflow[True] == {"push": {"tags": ["v*"]}}  # `on`, as YAML reads it
    assert tags_alone or workflow["jobs"][job]["if"] == "startsWith(github.ref, 'refs/tags/v')"


@pytest.mark.parametrize("name", ["supply_chain", "release"])
def test_targets_that_workflows_make_exist(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    targets = re.findall(r"make -o \.venv/dev\.installed (\w+)", text)
    assert targets
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    ("linter", "paths"),
    [
        ("hadolint", ["deploy/container/Containerfile"]),
        ("shellcheck", ["deploy/container/smoke_test.sh", "deploy/slurm/train.sbatch"]),
    ],
)
def test_a_linter_finds_nothing(linter: str, paths: list[str]) -> None:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    executable = shutil.which(linter, path=programs)
    if not executable:
        pytest.skip(f"{linter} is not installed")
    done = subprocess.run([executable, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
