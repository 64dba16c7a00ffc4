"""Several trainings in turn, and the file of their results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from training import results
from training.data import DataSet
from training.errors import TrainingError
from training.machine import check_appendable, machine_errors
from training.processes import Processes
from training.train import DEFAULT_OPTIONS, TrainingOptions, TrainingRun, say, train


def campaign(
    runs: Sequence[TrainingRun],
    data: DataSet,
    processes: Processes,
    options: TrainingOptions = DEFAULT_OPTIONS,
    file: Path | None = None,
) -> None:
    """Train the runs of which `file` has no result, and append their results to the file.

    A result by other values of the recipe is named with them; of a single run it is an error. A run that fails does not
    stop the others. Raises TrainingError, which names the failed runs, after the last run; a single run raises its own
    error.
    """
    if file:
        processes.from_first(partial(check_appendable, file))
    failed: list[str] = []
    for run in runs:
        name = f"{run.card.name} on {data.name}, seed {run.seed}"
        wanted = partial(results.find, start=run.start, teacher=run.teacher)
        known = processes.from_first(partial(wanted, file, run.card.name, data.name, run.seed)) if file else None
        if known:
            line = f"{file} has {name}: {known.top1:.1%}, by the recipe {known.recipe.source!r}"
            if other := results.other_values(known, run.recipe):
                line += f" with {', '.join(other)}; another --results takes both"
                if len(runs) == 1:
                    raise TrainingError(line)
            say(processes, line)
            continue
        try:
            with machine_errors():
                saved = train(run, data, processes, options)
        except TrainingError as error:
            if len(runs) == 1:
                raise
            failed.append(name)
            say(processes, f"{name}: {error}")
            continue
        if file and processes.first:
            results.add(file, run.card, saved, len(data.held_out))
    if failed:
        raise TrainingError(f"not trained, for the reasons above: {'; '.join(failed)}")
