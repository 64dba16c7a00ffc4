"""Type stubs for mypy: TensorRT for RTX's, generated from its bindings, and copies of cuda.core's own."""

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
    # cuda.core has types, but one folder below the place where mypy looks for them.
    typed = out / "cuda" / "core"
    shutil.copytree(core / "cu13", typed, ignore=NO_TYPES, dirs_exist_ok=True)
    shutil.copy(core / "__init__.py", typed)
    for path in (typed / "__init__.py", typed / "_memory" / "__init__.py"):  # mypy cannot follow these lists of names
        path.write_text(path.read_text().partition("\n__all__ = [")[0])


def read_off(module: str, path: Path, **environment: str) -> None:
    """Generate the types of a compiled module from its docstrings, and write them to `path`."""
    with TemporaryDirectory() as folder:
        stubgen = Path(sys.executable).with_name("stubgen")
        subprocess.run([stubgen, "--inspect-mode", "-q", "-m", module, "-o", folder], env=environment, check=True)
        text = Path(folder, *module.split(".")).with_suffix(".pyi").read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(parsable(text))


def parsable(text: str) -> str:
    """Remove lines that are not valid Python, such as a parameter without a default after one with a default."""
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
