"""Command `score`: answers to all pictures of a folder, a list or a bucket, as Parquet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from typing import Any

from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.scoring import cluster, pictures
from engines.scoring.parquet import AnswersFolder, table_of, text_of
from engines.scoring.score import FEATURES_IN, Job, ScoredPicture, Scorer, precision_of

PART = 4096  # pictures of a Parquet file
PART_S = 60.0  # seconds after which a smaller file is written, so that little is scored again after a kill


class Progress:
    """Count of answered and of broken pictures, printed after each file."""

    def __init__(self, total: int) -> None:
        self.total, self.answered, self.broken = total, 0, 0
        self._began = time.monotonic()

    def add(self, table: Any) -> None:
        """Count the rows of a table, and print the count."""
        self.answered += table.num_rows
        self.broken += table.num_rows - table.column("error").null_count
        rate = self.answered / (time.monotonic() - self._began)
        broken = f", {self.broken:,} of them broken" if self.broken else ""
        print(f"{self.answered:,} of {self.total:,} pictures, {rate:,.1f}/s{broken}", flush=True)


def score(
    source: str, model: PublishedModel, out: str, *, top_k: int, precision: str, embeddings: bool, ray: str | None
) -> int:
    """Score the pictures of `source` that have no answer in `out` yet; return 1 if not one of them could be read.

    Raises BucketError for a source or a folder that cannot be used, EngineError and ManifestError for a model that
    cannot run, RuntimeError if an inference fails. What was answered before is kept.
    """
    check_installed(ray)
    if embeddings and precision not in {"auto", FEATURES_IN}:
        raise EngineError(f"--embeddings are of {FEATURES_IN} only")
    found = pictures.find(source)
    folder = AnswersFolder(out)
    wanted = Job(model=model.manifest.tag, precision=precision, top_k=top_k, embeddings=embeddings)
    recorded = folder.recorded(wanted)
    chosen = FEATURES_IN if embeddings else precision_of(model, precision)
    job = recorded or wanted.model_copy(update={"precision": chosen})
    with folder.held():
        if recorded is None:
            folder.begin(job)
        scored = folder.scored()
        remaining = [path for path in found if text_of(path) not in scored]
        if len(remaining) < len(found):
            print(f"{len(found) - len(remaining):,} of {len(found):,} pictures have an answer in {out}", flush=True)
        progress = Progress(len(remaining))
        for table in tables_here(model, remaining, job) if ray is None else by_ray(ray, remaining, job):
            folder.write(table)
            progress.add(table)
    return int(0 < progress.total == progress.broken)


def check_installed(ray: str | None) -> None:
    """Raise EngineError with the command that installs what is missing."""
    for package, needed in (("pyarrow", True), ("ray", ray is not None)):
        if needed and not find_spec(package):
            extra = "score" if package == "pyarrow" else "ray"
            raise EngineError(f"{package} is not installed here: pip install '.[{extra}]'")


def tables_here(model: PublishedModel, paths: Sequence[str], job: Job) -> Iterator[Any]:
    """Score pictures on this machine, and yield tables of up to PART answers.

    When an inference fails, a last table with the answers before it is yielded first.
    """
    if not paths:
        return
    with Scorer(model, job) as scorer, closing(scorer.answers(paths)) as answers:
        print(f"{job.model} on {scorer.engine.name}, {scorer.engine.batch} pictures a batch", flush=True)
        rows: list[ScoredPicture] = []
        began = time.monotonic()
        failure: RuntimeError | None = None
        while True:
            try:
                answer = next(answers, None)
            except RuntimeError as error:
                answer, failure = None, error
            if answer:
                rows.append(answer)
            if rows and (not answer or len(rows) == PART or time.monotonic() - began > PART_S):
                yield table_of(rows, job, scorer.engine.name)
                rows, began = [], time.monotonic()
            if failure:
                raise failure
            if not answer:
                return


def by_ray(address: str, paths: Sequence[str], job: Job) -> Iterator[Any]:
    """Score pictures on the cluster at `address`, and yield tables of up to PART answers in any order."""
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    return cluster.tables(address, parts, job) if parts else iter(())
