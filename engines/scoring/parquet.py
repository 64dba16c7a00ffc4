"""Answers as Parquet files in one folder: `answers.parquet/part-000001.parquet` and so on, each whole or not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.published import files
from engines.published.urls import BucketError, open_url, reported
from engines.scoring.score import Job, ScoredPicture

# Readers of Parquet folders pass over names that start with an underscore.
JOB, LOCK = "_score.json", "_lock"
PART = re.compile(r"/part-\d+\.parquet$")
METADATA = b"convserve"  # key of a file's metadata


def text_of(path: str) -> str:
    """Return a path as text: bytes that are not UTF-8, which a column cannot hold, are written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class AnswersFolder:
    """Folder, here or in a bucket, with the answers of one job. Pictures that have an answer are not scored again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, self._folder = open_url(url)
        self._local = bool(getattr(self._files, "local_file", False))
        self._written = 0  # number of the newest part

    def recorded(self, wanted: Job) -> Job | None:
        """Return the job of the answers that are there, or None if there are none yet.

        The precision "auto" is any. Raises BucketError if the answers are those of another job than `wanted`, or if
        something else is in the folder.
        """
        with reported(self.url):
            if not self._files.exists(self._name(JOB)):
                if self._files.exists(self._folder) and (self._files.isfile(self._folder) or self._names()):
                    raise BucketError(f"{self.url} is there, and is not of this command: name another with --out")
                return None
            try:
                kept = Job.model_validate_json(self._files.cat_file(self._name(JOB)))
            except ValidationError as error:
                raise BucketError(f"{self.url}: {JOB} is not valid: name another with --out") from error
        for field in Job.model_fields:
            there, here = getattr(kept, field), getattr(wanted, field)
            if here not in {there, "auto"}:
                raise BucketError(f"{self.url} has answers with {field} {there}, not {here}: name another with --out")
        return kept

    def begin(self, job: Job) -> None:
        """Make the folder, and record its job."""
        with reported(self.url):
            self._files.makedirs(self._folder, exist_ok=True)
            self._put(JOB, job.model_dump_json(indent=1).encode())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one process. In a bucket there is no lock. Raises BucketError if another has it."""
        if not self._local:
            yield
            return
        with files.lock_if_free(Path(self._name(LOCK))) as free:
            if not free:
                raise BucketError(f"another process writes to {self.url}")
            yield

    def scored(self) -> set[str]:
        """Return the pictures that have an answer, each as `text_of` its path."""
        parquet: Any = import_module("pyarrow.parquet")
        found: set[str] = set()
        with reported(self.url):
            for name in filter(PART.search, self._names()):
                with self._files.open(name, "rb") as file:
                    found.update(parquet.ParquetFile(file).read(columns=["path"]).column("path").to_pylist())
                self._written = max(self._written, int(name.rpartition("-")[2].removesuffix(".parquet")))
        return found

    def write(self, table: Any) -> None:
        """Write a table of `table_of` as the next part."""
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
        sink = arrow.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        self._written += 1
        with reported(self.url):
            self._put(f"part-{self._written:06}.parquet", sink.getvalue().to_pybytes())

    def _names(self) -> list[str]:
        """Return the names of the files that a reader of Parquet sees."""
        names = self._files.ls(self._folder, detail=False)
        return sorted(name for name in names if not name.rpartition("/")[2].startswith(("_", ".")))

    def _put(self, name: str, data: bytes) -> None:
        """Write a file whole: in a bucket it appears when all is there, here by a rename."""
        if not self._local:
            self._files.pipe_file(self._name(name), data)
            return
        unfinished = Path(self._name(f"_{name}"))
        files.write(unfinished, data)
        unfinished.replace(self._name(name))

    def _name(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"


def table_of(answers: Sequence[ScoredPicture], job: Job, engine: str) -> Any:
    """Return answers as an Arrow table: path, label and probability of the first class, all classes, embedding, error.

    The job and the name of the engine are in its metadata.
    """
    arrow: Any = import_module("pyarrow")
    one = [("index", arrow.int32()), ("label", arrow.string()), ("probability", arrow.float32())]
    fields = [
        ("path", arrow.string()),
        ("label", arrow.string()),
        ("probability", arrow.float32()),
        ("top", arrow.list_(arrow.struct(one))),
        *([("embedding", arrow.list_(arrow.float32()))] if job.embeddings else []),
        ("error", arrow.string()),
    ]
    about = {METADATA: json.dumps({"job": job.model_dump(), "engine": engine}).encode()}
    return arrow.Table.from_pylist([row_of(answer) for answer in answers], arrow.schema(fields, about))


def row_of(answer: ScoredPicture) -> dict[str, Any]:
    """Return an answer as a row; a broken picture has a path and an error only."""
    row: dict[str, Any] = {"path": text_of(answer.path), "embedding": answer.embedding, "error": answer.error}
    if answer.top:
        first = answer.top[0]
        row |= {"label": first.label, "probability": first.probability}
        row["top"] = [asdict(one) for one in answer.top]
    return row
