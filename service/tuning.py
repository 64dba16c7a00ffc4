"""Self-tuning: while the device is idle, engines of the loaded models are verified and timed, and the best serves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

import engines
from engines.measured import records
from engines.measured.select_engine import explain, named, runnable
from engines.measured.tune import Outcome
from engines.published import files
from engines.runtimes.registry import EngineSpec, Measured
from service.catalog import Catalog
from service.loading import ServedModel
from service.metrics import Metrics
from service.schema import Tuning
from service.settings import Settings

ROOT = Path(engines.__file__).parents[1]  # where `python -m engines.measured.tune` finds the module
logger = logging.getLogger("bentoml.convserve")


class Trial(NamedTuple):
    """Engine to try: the tag of a model, a runtime and a precision."""

    tag: str
    runtime: Measured
    precision: str

    @property
    def name(self) -> str:
        """Name of the engine for people."""
        return named(self.runtime, self.precision)


class Tuner:
    """Tuner of all loaded models: one engine at a time, in a process that runs while nothing else wants the processor.

    The process is stopped while any request is in progress. Records are kept as by `python -m engines verify` and
    `bench`, so that no engine is verified or timed twice: not after a restart, and not by two servers with one store,
    of which one at a time tunes. An engine that cannot run is tried once by each server.
    """

    def __init__(self, settings: Settings, catalog: Catalog, metrics: Metrics) -> None:
        self._settings, self._catalog, self._metrics = settings, catalog, metrics
        self._failed: dict[Trial, str] = {}  # reason by engine that cannot run
        self._running: Trial | None = None
        self._process: subprocess.Popen[bytes] | None = None  # of the running trial
        self._requests = 0  # in progress

    async def run(self) -> None:
        """Try one engine after another, and look every `scan_s` seconds for more; return if no record can be kept."""
        while self._settings.tune == "auto":
            try:
                while (trial := self._next()) and await self._turn(trial):
                    pass
            except OSError as error:
                logger.warning("no self-tuning: %s", error)
                return
            except Exception:  # one bad model must not stop the others
                logger.exception("cannot tune")
            await asyncio.sleep(self._settings.scan_s)

    def left(self) -> dict[str, int]:
        """Return the number of engines that are still to be tried of each loaded model, by tag."""
        return {model.manifest.tag: len(self._left(model)) for model in self._loaded()}

    def _loaded(self) -> list[ServedModel]:
        return [model for model in self._catalog.models.values() if model.chosen.queue]

    def state(self, model: ServedModel) -> Tuning:
        """Return what has been tried of a model, what is left, and the reason for the engine that serves."""
        failed = {trial.name: reason for trial, reason in self._failed.items() if trial.tag == model.manifest.tag}
        running = self._running.name if self._running and self._running.tag == model.manifest.tag else None
        reason = self._reason(model)
        return Tuning(reason=reason, running=running, left=[trial.name for trial in self._left(model)], failed=failed)

    def _reason(self, model: ServedModel) -> str:
        """Return the reason for the engine that the records choose, and the engine that serves if it is another."""
        reason = explain(model.records, self._settings.runtime, self._settings.precision)
        if (queue := model.chosen.queue) and not self._settings.invents:
            serving = named(queue.engine.runtime, queue.engine.precision)
            if not reason.startswith(serving):
                reason += f"; {serving} serves still"
        return reason

    def _left(self, model: ServedModel) -> list[Trial]:
        """Return the engines of a model that have not been tried on this machine, the safe engine first."""
        if self._settings.tune == "off":
            return []
        complete = {(record.runtime, record.precision) for record in model.records if record.complete}
        return [
            trial
            for engine in runnable(model.published, self._settings.runtime, self._settings.precision)
            if engine not in complete and (trial := Trial(model.manifest.tag, *engine)) not in self._failed
        ]

    def _next(self) -> Trial | None:
        """Return the next engine to try: of the loaded models, the most recently used with room in memory."""
        for model in sorted(self._loaded(), key=lambda model: -model.chosen.used_at):
            for trial in self._left(model):
                if self._catalog.loader.has_room_beside(model, EngineSpec(trial.runtime, trial.precision)):
                    return trial
        return None

    async def _turn(self, trial: Trial) -> bool:
        """Try an engine unless another server is tuning, and serve from the best; return True if it was tried."""
        with files.lock_if_free(records.folder() / "tuning.lock") as free:
            if not free:
                return False
            model = self._catalog.models[trial.tag]
            record = await asyncio.to_thread(records.find, model.published, trial.runtime, trial.precision)
            if not (record and record.complete):  # another server may have tried the engine meanwhile
                await self._try(trial)
        await self._catalog.reread(trial.tag)
        self._catalog.loader.changed()
        if trial.tag in self._catalog.models and not self._left(model):
            logger.info("%s is tuned: %s", trial.tag, self._reason(self._catalog.models[trial.tag]))
        return True

    async def _try(self, trial: Trial) -> None:
        """Verify and time an engine in a process of its own, and note its outcome."""
        self._running = trial
        self._catalog.loader.changed()
        try:
            outcome = await self._outcome(trial)
        except (OSError, ValidationError) as error:
            outcome = Outcome(error=str(error), cpu_s=0.0)
        finally:
            self._running = None
        if outcome.error:
            self._failed[trial] = outcome.error
        if trouble := outcome.error or outcome.problem:
            logger.info("%s: not %s: %s", trial.tag, trial.name, trouble)
        result = "failed" if outcome.error else "unfaithful" if outcome.problem else "faithful"
        self._metrics.tried(trial.tag, result, outcome.cpu_s)

    async def _outcome(self, trial: Trial) -> Outcome:
        """Run the process of a trial to its end and return the outcome, which is the last line that it prints."""
        command = [sys.executable, "-m", "engines.measured.tune", *trial, str(self._settings.max_batch)]
        # In a process group of its own, so that Ctrl-C does not reach the process; asyncio with uvloop has no groups.
        process = subprocess.Popen(  # noqa: S603 (arguments from RUNTIMES and a tag)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, process_group=0
        )
        self._process = process
        try:
            yield_processor(process.pid)
            if self._requests:
                send(process, signal.SIGSTOP)
            printed = await asyncio.to_thread(output_of, process)
        finally:
            self._process = None
            send(process, signal.SIGKILL)
        if not printed:
            return Outcome(error=f"its process ended with status {process.returncode}", cpu_s=0.0)
        return Outcome.model_validate_json(printed.splitlines()[-1])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process of a trial while the context of any request is open."""
        self._requests += 1
        if self._process and self._requests == 1:
            send(self._process, signal.SIGSTOP)
        try:
            yield
        finally:
            self._requests -= 1
            if self._process and not self._requests:
                send(self._process, signal.SIGCONT)


def output_of(process: subprocess.Popen[bytes]) -> bytes:
    """Wait for the end of a process and return what it printed."""
    assert process.stdout
    with process:
        return process.stdout.read()


def yield_processor(pid: int) -> None:
    """Let a process that has just begun, and its later threads, run only while nothing else wants the processor."""
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not on Linux, or not allowed in this container
        os.setpriority(os.PRIO_PROCESS, pid, 19)


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process that leads a group, and to the compilers that the process may have started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
