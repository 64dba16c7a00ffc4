"""Test that TensorRT's own types have every name that the engines use, except those of TensorRT for RTX alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.serving import ROOT
from tests.stubs import read_off, write

CALLERS = tuple(f"engines/runtimes/tensorrt/{name}.py" for name in ("library", "plan", "fold", "engine", "executor"))
ONLY_FOR_RTX = {
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeCache",
    "REQUIRE_USER_ALLOCATION",
    "create_runtime_cache",
    "dynamic_shapes_kernel_specialization_strategy",
    "num_compute_capabilities",
    "set_compute_capability",
    "set_runtime_cache",
}
# Loading TensorRT's bindings needs these functions of its libraries (2 GB), but nothing calls them: stubs suffice.
NEEDED = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getInferLibVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the types of both libraries and of cuda.core."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("tensorrt")
    (folder / "none.c").write_text("\n".join(f"void {name}(void) {{}}" for name in FUNCTIONS))
    for library in NEEDED:
        name = f"{library}.so.11"
        command = (compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", folder / "none.c", "-o", folder / name)
        subprocess.run(command, check=True)
    stubs = folder / "stubs"
    write(stubs)
    read_off("tensorrt_bindings.tensorrt", stubs / "tensorrt.pyi", LD_LIBRARY_PATH=str(folder))
    return stubs


@pytest.mark.slow  # half a minute of mypy
def test_tensorrt_has_every_name_that_engines_use(stubs: Path) -> None:
    folder = stubs.parent
    for package in ("engines", "models"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in CALLERS:
        text = (ROOT / name).read_text()
        assert "    import tensorrt_rtx as trt" in text
        (folder / name).write_text(text.replace("import tensorrt_rtx as trt", "import tensorrt as trt"))
    settings = (ROOT / "pyproject.toml").read_text()
    settings = settings.replace('"cuda.core.*", "tensorrt_rtx"', '"cuda.core.*", "tensorrt", "tensorrt_rtx"')
    (folder / "pyproject.toml").write_text(settings.replace(".venv/stubs", "stubs"))
    with suppress(FileNotFoundError):  # what mypy knows of the libraries saves twenty seconds
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *CALLERS], cwd=folder, capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert errors, done.stdout + done.stderr
    missing = [
        re.findall(r'"(?:trt\.)?(\w+)"(?: is not defined)?  \[(?:attr|name)-defined\]$', line) for line in errors
    ]
    assert {name for names in missing for name in names} == ONLY_FOR_RTX, done.stdout
    assert all(missing), done.stdout
