"""Every architecture by name: the plain union of the families' tables."""

from __future__ import annotations

from torch import nn

from models.lenet import LENET
from models.resnet import RESNET
from models.senet import SENET

ZOO = {architecture.name: architecture for architecture in (*LENET, *RESNET, *SENET)}


def build(name: str, classes: int) -> nn.Module:
    """The network `name` with fresh weights; KeyError where there is none of that name."""
    return ZOO[name].build(classes)
