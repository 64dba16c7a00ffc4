"""Learning-rate finder: the loss of a few steps at rising rates (Smith 2015, arXiv:1506.01186)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch

from engines.published import files
from training.batches import Batch, TrainingBatches
from training.data import DataSet
from training.errors import DivergedError
from training.machine import check_writable
from training.plot import losses_by_rate
from training.processes import Processes
from training.schedule import phases
from training.setup import TrainingRun, set_up

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 100
SMOOTHING = 0.9  # share of the mean loss before in the mean loss after a step
TOO_HIGH = 4  # times the least mean loss, at which the search ends
PICTURE, TABLE = "find_rate.png", "find_rate.csv"


def find_rate(run: TrainingRun, data: DataSet) -> str:
    """Draw the loss by learning rate in the first phase, write a picture and CSV to `run.out`, and return a proposal.

    The proposal is the rate at which the loss falls fastest. No checkpoint is written or changed.
    """
    check_writable(run.out, "--out names another folder")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = set_up(run, data, Processes(0, 1, device))
    trainer = training.trainer(phases(run.recipe)[0])
    trainer.to_training()
    torch.manual_seed(run.seed)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step, batch in zip(range(STEPS), endless(training.data.batches), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(trainer.step(batch))
        loss = mean / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or (losses and loss > TOO_HIGH * min(losses)):
            break
        rates.append(rate)
        losses.append(loss)
    if not losses:
        raise DivergedError(f"{run.card.name}: the loss is no number before any step: try --set precision=fp32")
    proposed, least = proposal(rates, losses)
    title = f"{run.card.name} on {data.name}, {run.recipe.optimizer}"
    losses_by_rate(title, rates, losses, proposed, run.out / PICTURE)
    files.write(run.out / TABLE, table(rates, losses))
    return (
        f"{title}: the loss falls fastest at {proposed:.1e}, and is least at {least:.1e}: --set lr={proposed:.1g}; "
        f"{run.out / PICTURE}, {run.out / TABLE}"
    )


def endless(batches: TrainingBatches) -> Iterator[Batch]:
    """Yield the batches of one epoch after another."""
    for number in count(1):
        yield from batches.epoch(number)


def proposal(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """Return the rate at which the loss falls fastest by the rate's logarithm, and the rate of the least loss."""
    least = int(np.argmin(losses))
    if least == 0:
        return rates[0], rates[0]
    slopes = np.gradient(losses[: least + 1], np.log(rates[: least + 1]))
    return rates[int(np.argmin(slopes))], rates[least]


def table(rates: Sequence[float], losses: Sequence[float]) -> str:
    """Return rates and mean losses as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("lr", "loss"))
    writer.writerows(zip(rates, losses, strict=True))
    return text.getvalue()
