"""The import rules of the house, held by reading the code: arrows point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"models", "engines", "training", "service", "loadtest", "tests"}
MAY_IMPORT = {
    "models": {"models"},
    "engines": {"engines"},
    "training": {"training", "models", "engines"},
    "service": {"service", "engines"},
    "loadtest": {"loadtest"},
    "loadtest/peers": {"loadtest", "engines"},
}
WITHOUT_TORCH = {"engines", "service", "loadtest"}
EXCEPTIONS = {"engines/runtimes/torch.py": {"models", "torch"}}
FILES = sorted({path.relative_to(ROOT).as_posix() for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")})


def imported(node: ast.AST) -> Iterator[str]:
    """Top-level packages that are imported when the code under `node` runs."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield str(node.module).split(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    folder = max((folder for folder in MAY_IMPORT if file.startswith(f"{folder}/")), key=len)
    names = set(imported(ast.parse((ROOT / file).read_text()))) - EXCEPTIONS.get(file, set())
    assert names & FOLDERS <= MAY_IMPORT[folder]
    if file.split("/", maxsplit=1)[0] in WITHOUT_TORCH or file == "models/card.py":
        assert not names & {"torch", "torchvision"}


def test_the_rules_see_an_import_in_a_function() -> None:
    assert set(imported(ast.parse("def f():\n  from training.data import mnist5k\n  import torch.nn"))) == {
        "training",
        "torch",
    }


def test_the_server_imports_no_torch() -> None:
    code = "import service.app, engines.runtimes.openvino, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
