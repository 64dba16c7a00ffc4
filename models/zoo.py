"""Every architecture by name: the plain union of the families' tables."""

from __future__ import annotations

from torch import nn

from models.lenet import LENET

ZOO = {architecture.name: architecture for architecture in LENET}


def build(name: str, classes: int) -> nn.Module:
    """The network `name` with fresh weights; KeyError where there is none of that name."""
    return ZOO[name].build(classes)
