"""Costs of a training before it starts: memory, images/s, hours and disk, from a few steps of each phase."""

from __future__ import annotations

import copy
import resource

import torch

from training import checkpoint
from training.data import DataSet
from training.processes import Processes
from training.schedule import Phase, phases
from training.setup import Training, TrainingRun, set_up


def dry_run(run: TrainingRun, data: DataSet) -> str:
    """Return a text with the expected costs of a training, of which nothing is written.

    Raises what a training would raise for want of memory, or if recipe, weights and data do not fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)  # of the networks before
    training = set_up(run, data, Processes(0, 1, device))
    lines, seconds = [], 0.0
    for phase in phases(run.recipe):
        of_epoch = epoch_seconds(training, phase)
        seconds += of_epoch * phase.recipe.epochs
        layers = "the head alone" if phase.head_only else "all layers but frozen ones"
        rate = len(data.train) / of_epoch
        lines.append(
            f"epochs {phase.start + 1} to {phase.end}, {layers}: {rate:,.0f} images/s, with the time of held-out ones"
        )
    shape = training.network_input.preprocess.shape
    gpu = f", {torch.cuda.max_memory_allocated(device) / 1e9:,.1f} GB of the GPU's" if device.type == "cuda" else ""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return "\n".join(
        [
            f"{run.card.name} on {data.name}: input {'x'.join(map(str, shape))}, batch {run.recipe.batch}",
            *lines,
            f"{run.recipe.epochs} epochs: {seconds / 3600:,.2f} hours; memory {memory:,.1f} GB{gpu}; checkpoints "
            f"{checkpoint.room(training.net, run.recipe) / 1e6:,.0f} MB in {run.out}; nothing was written",
        ]
    )


def epoch_seconds(training: Training, phase: Phase) -> float:
    """Return the expected seconds of an epoch of a phase, by a copy of the network."""
    training.prepare()  # loading the data is not part of the time
    return training.trainer(phase, copy.deepcopy(training.net)).epoch_seconds()
