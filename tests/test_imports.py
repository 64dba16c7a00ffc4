"""Tests of the import rules, by reading the code: imports point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = {"models", "engines", "training", "service", "loadtest", "convserve_client", "tests"}
# Plain code without torch, which service, and in part engines and loadtest, share with models.
PLAIN = {"models.card", "models.closed_pipe", "models.cost", "models.names"}
MAY_IMPORT = {
    "models": {"models"},
    "engines": {"engines", "models.closed_pipe", "models.cost"},
    "training": {"training", "models", "engines"},
    "service": {"service", "engines", *PLAIN},
    "loadtest": {"loadtest", "models.closed_pipe"},
    "loadtest/landscape": {"loadtest", "engines"},
    "loadtest/peers": {"loadtest", "engines"},
    "loadtest/protocols": {"loadtest", "service"},  # the messages of gRPC
    "loadtest/scale": {"loadtest", "service"},  # the scheduler itself is simulated
    "convserve_client": {"convserve_client"},
}
WITHOUT_TORCH = ("engines/", "service/", "loadtest/", *(f"{name.replace('.', '/')}.py" for name in PLAIN))
EXCEPTIONS = {
    "engines/runtimes/torch.py": {"models", "torch"},
    "engines/runtimes/torch_gpu.py": {"torch"},
    "loadtest/peers/torch_network.py": {"torch"},
}
FILES = sorted({path.relative_to(ROOT).as_posix() for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")})


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that are imported when the code under `node` runs: `from a.b import c` yields a.b.c."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def within(name: str, packages: Iterable[str]) -> bool:
    """Return True if a dotted name is one of the modules or packages, or lies in one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    folder = max((folder for folder in MAY_IMPORT if file.startswith(f"{folder}/")), key=len)
    names = set(imported(ast.parse((ROOT / file).read_text())))
    names = {name for name in names if not within(name, EXCEPTIONS.get(file, ()))}
    assert not [name for name in names if within(name, FOLDERS) and not within(name, MAY_IMPORT[folder])]
    if file.startswith(WITHOUT_TORCH):
        assert not [name for name in names if within(name, ("torch", "torchvision"))]


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_data_imports_nothing_else_of_the_project(name: str) -> None:
    names = imported(ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text()))
    assert not [name for name in names if within(name, FOLDERS) and not within(name, PLAIN)]


def test_the_client_imports_httpx_alone() -> None:
    files = (ROOT / "convserve_client").glob("*.py")
    names = {name.partition(".")[0] for file in files for name in imported(ast.parse(file.read_text()))}
    assert names - sys.stdlib_module_names == {"convserve_client", "httpx"}


def test_the_rules_see_an_import_in_a_function() -> None:
    assert set(imported(ast.parse("def f():\n  from training.data import mnist5k\n  import torch.nn"))) == {
        "training.data.mnist5k",
        "torch.nn",
    }
    assert within("torch.nn", ["torch"])
    assert not within("models.cards", PLAIN)


def test_the_server_imports_no_torch() -> None:
    code = "import service.app, engines.runtimes.openvino, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_openvino_reports_nothing_to_its_makers() -> None:
    code = "import loadtest.peers.compare, service.app, openvino, sys; print(sys.modules['openvino_telemetry'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout == "None\n"


def test_a_bento_has_every_file_of_models_that_the_service_imports() -> None:
    included = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    of_models = {path.strip("/") for path in included if path.startswith("/models/")}
    assert of_models == {"models/__init__.py", *(f"{name.replace('.', '/')}.py" for name in PLAIN)}


@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith("__init__.py")])
def test_the_page_on_architecture_has_a_line_for_each_file(file: str) -> None:
    folder, _, path = file.partition("/")
    section = (ROOT / "docs" / "architecture.md").read_text().partition(f"\n### {folder}/\n")[2].partition("\n### ")[0]
    assert f"| `{path}` |" in section
