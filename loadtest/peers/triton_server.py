"""Triton with its Python backend and dynamic batching: `python -m loadtest.peers.triton_server PORT`.

The server is the one in the wheel nvidia-pytriton, of which nothing else is used; its other dependencies need NumPy 1.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from loadtest.peers.launch import ROOT
from loadtest.peers.model import MAX_BATCH, WORKERS

# Bytes travel as UINT8, since the wheel's Python backend reads strings by a layout of NumPy 1. The kind of an instance
# is only passed on to the model, whose network is on $PEER_DEVICE.
CONFIG = """
backend: "python"
max_batch_size: {batch}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ -1 ] allow_ragged_batch: true }} ]
output [
  {{ name: "label" data_type: TYPE_UINT8 dims: [ -1 ] }},
  {{ name: "probability" data_type: TYPE_FP32 dims: [ 1 ] }}
]
instance_group [ {{ kind: KIND_CPU count: {workers} }} ]
dynamic_batching {{ }}
"""
# Triton's Python process does not heed PYTHONPATH.
MODEL = """
import sys
sys.path[:0] = {paths}
from loadtest.peers.triton_model import TritonPythonModel
"""


def wheel() -> Path:
    """Return the folder of the package pytriton."""
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        sys.exit("error: nvidia-pytriton is not installed here: pip install --no-deps nvidia-pytriton")
    return Path(spec.origin).parent


def write_backend(backends: Path, triton: Path) -> None:
    """Copy the Python backend, with the wheel's process for this version of Python, into a folder of backends."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        sys.exit(f"error: nvidia-pytriton has no Python backend for Python {version}")
    shutil.copytree(triton / "backends" / "python", backends / "python")
    shutil.copy2(stub, backends / "python")


def write_model(models: Path) -> None:
    """Write the model `photos` into a folder of models."""
    folder = models / "photos" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL.format(paths=[str(ROOT), *sys.path]))
    (folder.parent / "config.pbtxt").write_text(CONFIG.format(batch=MAX_BATCH, workers=WORKERS))


def main() -> None:
    """Run Triton until the end of its process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the model's folder is removed
    port = sys.argv[1]
    package = wheel()
    triton, libraries = package / "tritonserver", package.parent / "nvidia_pytriton.libs"
    paths = [str(libraries), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        models, backends = Path(folder) / "models", Path(folder) / "backends"
        write_model(models)
        write_backend(backends, triton)
        command = [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={models}",
            f"--backend-directory={backends}",
        ]
        command += [f"--http-port={port}", "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false"]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603 (of the wheel)


if __name__ == "__main__":
    main()
