"""Further logs of a training, as CSV and for TensorBoard."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.published import files
from training.checkpoint import Epoch
from training.errors import MachineError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CSV = "log.csv"
TENSORBOARD = "tensorboard"


class Logs:
    """Logs of the `kinds` that are wanted, in the folder of a checkpoint; they hold the checkpoint's epochs exactly.

    A training that goes on writes both anew. Raises MachineError if TensorBoard is not installed.
    """

    def __init__(self, out: Path, kinds: Collection[str], epochs: Sequence[Epoch]) -> None:
        self.out, self.kinds, self.written = out, kinds, 0
        self.writer = summary_writer(out / TENSORBOARD) if "tensorboard" in kinds else None
        self.add(epochs)

    def add(self, epochs: Sequence[Epoch]) -> None:
        """Write the last of the training's epochs, those since the call before."""
        if "csv" in self.kinds:
            files.write(self.out / CSV, table(epochs))
        if self.writer:
            for epoch in epochs[self.written :]:
                for name, value in epoch.model_dump(exclude={"epoch"}).items():
                    self.writer.add_scalar(name, value, epoch.epoch)
            self.writer.flush()
        self.written = len(epochs)

    def close(self) -> None:
        """Close the files that are open."""
        if self.writer:
            self.writer.close()


def table(epochs: Sequence[Epoch]) -> str:
    """Return epochs as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Epoch.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch.model_dump() for epoch in epochs)
    return text.getvalue()


def summary_writer(folder: Path) -> SummaryWriter:
    """Return TensorBoard's writer of a new folder. Raises MachineError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MachineError(f"--log tensorboard needs TensorBoard: pip install '.[tensorboard]' ({error})") from error
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(folder)
