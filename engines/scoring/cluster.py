"""Scoring on many machines, by Ray: one actor for each device, which has an engine and decoding processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from engines.published import store
from engines.published.bucket import ModelBucket
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.scoring.parquet import table_of
from engines.scoring.score import Job, Scorer

ROOT = Path(__file__).parents[2]
RUNS = 2  # parts that an actor has at once, so that its device need not wait between two
MODELS = "CONVSERVE_MODELS"  # variable with the URL of a bucket
PASSED_ON = ("BENTOML_HOME", MODELS)  # variables that an actor needs


class ScoringActor:
    """Engine of a job on one device of a cluster."""

    def __init__(self, job: Job, processes: int) -> None:
        """Open the engine; if the machine lacks the model, download it from the bucket in CONVSERVE_MODELS first."""
        self._job = job
        self._scorer = Scorer(model_of(job.model), job, processes, runs=RUNS)

    def score(self, paths: Sequence[str]) -> Any:
        """Return the answers to pictures as an Arrow table."""
        return table_of(list(self._scorer.answers(paths)), self._job, self._scorer.engine.name)


class Devices(NamedTuple):
    """Devices of a cluster: their number, and what each actor reserves in Ray's terms."""

    number: int
    reserved: dict[str, int]

    @property
    def processes(self) -> int:
        """Decoding processes of an actor: a core each."""
        return self.reserved["num_cpus"]


def model_of(tag: str) -> PublishedModel:
    """Return a published model of this machine's store. Raises EngineError if there is none and no bucket has it."""
    url = os.environ.get(MODELS)
    for pulled in (False, True):
        found = [model for model in store.published() if model.manifest.tag == tag]
        if found:
            return found[0]
        if url and not pulled:
            ModelBucket(url).pull(tag)
    hint = f"python -m engines push {tag} --models URL, and set CONVSERVE_MODELS=URL"
    raise EngineError(f"{tag} is not published on {os.uname().nodename}: {hint}")


def devices_of(nodes: Sequence[dict[str, Any]]) -> Devices:
    """Return the devices of the machines that `ray.nodes` lists: their GPUs, or else their processors.

    Raises EngineError if there is no core.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not machines:
        raise EngineError("the cluster has no machine with a core for this job")
    with_gpu = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if with_gpu:
        cores = min(int(machine["CPU"] // machine["GPU"]) for machine in with_gpu)
        return Devices(sum(int(machine["GPU"]) for machine in with_gpu), {"num_gpus": 1, "num_cpus": max(1, cores)})
    cores = min(int(machine["CPU"]) for machine in machines)
    return Devices(sum(int(machine["CPU"] // cores) for machine in machines), {"num_cpus": cores})


def tables(address: str, parts: Sequence[Sequence[str]], job: Job) -> Iterator[Any]:
    """Score parts on a cluster, and yield a table for each as it is done; "local" starts a cluster on this machine.

    The part of a device that is lost goes to another. Raises EngineError if Ray cannot be reached, an inference fails,
    or no device is left.
    """
    ray: Any = import_module("ray")
    cluster: dict[str, Any] = {"address": address}
    if address == "local":
        cluster["include_dashboard"] = False
    environment = {
        "py_modules": [str(ROOT / "engines"), str(ROOT / "models")],
        "env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    try:
        ray.init(**cluster, runtime_env=environment, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(f"--ray {address}: {cause_of(error)}") from error
    try:
        devices = devices_of(ray.nodes())
        actor = ray.remote(ScoringActor).options(max_concurrency=RUNS, max_restarts=0, **devices.reserved)
        actors = [actor.remote(job, devices.processes) for _ in range(devices.number)]
        yield from handed_out(ray, actors, parts)
    except ray.exceptions.RayError as error:
        raise EngineError(f"--ray {address}: {cause_of(error)}") from error
    finally:
        ray.shutdown()


def handed_out(ray: Any, actors: Sequence[Any], parts: Sequence[Sequence[str]]) -> Iterator[Any]:
    """Yield the tables of parts, each scored by the next actor that is free. Raises the error of the last actor."""
    waiting, free = deque(parts), deque([*actors] * RUNS)
    running: dict[Any, tuple[Any, Sequence[str]]] = {}
    while waiting or running:
        while waiting and free:
            actor, part = free.popleft(), waiting.popleft()
            running[actor.score.remote(part)] = actor, part
        done = ray.wait(list(running), num_returns=1)[0][0]
        actor, part = running.pop(done)
        try:
            table = ray.get(done)
        except ray.exceptions.RayActorError:  # the actor's machine is gone; another scores its part
            waiting.appendleft(part)
            free = deque(other for other in free if other != actor)
            if not free and not running:
                raise
        except ray.exceptions.ObjectLostError:  # scored, but gone with its machine
            waiting.appendleft(part)
            free.append(actor)
        else:
            free.append(actor)
            yield table


def cause_of(error: Exception) -> str:
    """Return the last line of an error's text that says something: of a traceback, its error."""
    return next(filter(None, map(str.strip, reversed(str(error).splitlines()))), type(error).__name__)
