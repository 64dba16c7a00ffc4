"""Exponential average of a network's weights over the steps of a training."""

from __future__ import annotations

import copy
import math
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Average of a network in training, as a network of its own: weights, and statistics of batch norms.

    A step's weights count e times less `steps` steps later. torch.optim.swa_utils.AveragedModel counts its updates in a
    tensor, which a GPU would have to be waited for in every step; the average starts from the network's first weights
    here, so that nothing needs counting.
    """

    def __init__(self, net: nn.Module, steps: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.update_floats = get_ema_multi_avg_fn(math.exp(-1 / steps))
        pairs = list(zip(tensors_of(self.net), tensors_of(net), strict=True))
        self.floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's present weights to the average."""
        averages, present = map(list, zip(*self.floats, strict=True))
        self.update_floats(averages, present, 0)
        for average, counter in self.counters:
            average.copy_(counter)


def tensors_of(net: nn.Module) -> list[Tensor]:
    """Return the weights and buffers of a network, which share their memory with the network."""
    return [tensor.detach() for tensor in chain(net.parameters(), net.buffers())]
