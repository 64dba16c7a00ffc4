"""Types for mypy, of modules that come without: TensorRT for RTX's, read off its bindings, and cuda.core's own."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

NO_TYPES = shutil.ignore_patterns("*.so", "*.pxd", "_cpp", "_include", "__pycache__")


def write(out: Path) -> None:
    """Write `tensorrt_rtx.pyi` and `cuda/core` into the folder `out`."""
    read_off("tensorrt_rtx_bindings.tensorrt_rtx", out / "tensorrt_rtx.pyi")
    core = Path(str(distribution("cuda-core").locate_file("cuda/core")))
    # it is typed, but in a folder below where mypy looks
    typed = out / "cuda" / "core"
    shutil.copytree(core / "cu13", typed, ignore=NO_TYPES, dirs_exist_ok=True)
    shutil.copy(core / "__init__.py", typed)
    for path in (typed / "__init__.py", typed / "_memory" / "__init__.py"):  # lists of names that mypy cannot follow
        path.write_text(path.read_text().partition("\n__all__ = [")[0])


def read_off(module: str, path: Path, **environment: str) -> None:
    """Write the types of a compiled module, as its docstrings give them."""
    with TemporaryDirectory() as folder:
        stubgen = Path(sys.executable).with_name("stubgen")
        subprocess.run([stubgen, "--inspect-mode", "-q", "-m", module, "-o", folder], env=environment, check=True)
        text = Path(folder, *module.split(".")).with_suffix(".pyi").read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(parsable(text))


def parsable(text: str) -> str:
    """Without the lines that are no Python, such as a parameter without a default after one that has one."""
    while True:
        try:
            ast.parse(text)
        except SyntaxError as error:
            lines = text.splitlines(keepends=True)
            del lines[(error.lineno or 1) - 1]
            text = "".join(lines)
        else:
            return text


if __name__ == "__main__":
    write(Path(sys.argv[1]))
