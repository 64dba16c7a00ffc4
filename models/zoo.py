"""Every architecture by name: the plain union of the families' tables, in the lecture's order."""

from __future__ import annotations

from torch import nn

from models.alexnet import ALEXNET
from models.densenet import DENSENET
from models.googlenet import GOOGLENET
from models.inception import INCEPTION
from models.inception_resnet import INCEPTION_RESNET
from models.lenet import LENET
from models.nin import NIN
from models.preact_resnet import PREACT_RESNET
from models.resnet import RESNET
from models.resnext import RESNEXT
from models.senet import SENET
from models.stochastic_depth import STOCHASTIC_DEPTH
from models.vgg import VGG_VARIANTS
from models.wide_resnet import WIDE_RESNET
from models.zfnet import ZFNET

TABLES = (
    *(LENET, ALEXNET, ZFNET, VGG_VARIANTS, NIN, GOOGLENET, INCEPTION, INCEPTION_RESNET, RESNET),
    *(PREACT_RESNET, SENET, STOCHASTIC_DEPTH, WIDE_RESNET, DENSENET, RESNEXT),
)
ZOO = {architecture.name: architecture for table in TABLES for architecture in table}


def build(name: str, classes: int) -> nn.Module:
    """The network `name` with fresh weights; KeyError where there is none of that name."""
    return ZOO[name].build(classes)
