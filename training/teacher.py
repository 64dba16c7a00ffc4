"""Teacher: a trained network whose answers another network learns to give."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.runtimes.torch import Normalise
from models.zoo import ZOO
from training.data import DataSet
from training.errors import CheckpointError
from training.input import Input
from training.known_weights import KnownWeights
from training.state_dict import fit


class Teacher(nn.Module):
    """Teacher in inference: takes images as the taught network does, and converts their size, colours and statistics.

    `taught` is the taught network's input.
    """

    def __init__(self, known: KnownWeights, taught: Input) -> None:
        super().__init__()
        assert known.input
        assert known.labels
        self.net = ZOO[known.architecture].build(len(known.labels)).to(memory_format=torch.channels_last)
        fit(self.net, known.state, f"{known.origin.spec} does not fit {known.architecture}")
        self.size = known.input.preprocess.shape[:2]
        self.taught, self.normalise = Normalise(taught.mean, taught.std), Normalise(known.input.mean, known.input.std)
        self.requires_grad_(requires_grad=False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes), of normalised images of any size, (N, channels, height, width)."""
        pixels = images * self.taught.get_buffer("std") + self.taught.get_buffer("mean")  # 0 to 255
        channels = len(self.normalise.get_buffer("mean"))
        if pixels.shape[1] != channels:
            pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        if pixels.shape[2:] != self.size:
            pixels = F.interpolate(pixels, list(self.size), mode="bilinear", antialias=True)
        logits: Tensor = self.net(self.normalise(pixels).contiguous(memory_format=torch.channels_last))
        return logits


def check_teacher(known: KnownWeights, data: DataSet) -> None:
    """Raise CheckpointError unless the teacher's classes are those of the data, in the same order."""
    if not known.has_classes_of(data):
        raise CheckpointError(
            f"--teacher: {known.origin.spec} has {len(known.labels or ())} classes that are not the {len(data.labels)} "
            f"of {data.name}: a teacher is trained on the same labels, in the same order"
        )
