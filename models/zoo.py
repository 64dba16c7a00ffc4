"""Table of all architectures by name, in the order of the lecture."""

from __future__ import annotations

from importlib import import_module

from models.card import Architecture

# One module per line: a new family is a new file that ends in ARCHITECTURES, and a new line here.
FAMILIES = (
    "lenet",
    "alexnet",
    "zfnet",
    "vgg",
    "nin",
    "googlenet",
    "inception_v2",
    "inception_v3",
    "inception_v4",
    "inception_resnet",
    "resnet",
    "preact_resnet",
    "senet",
    "stochastic_depth",
    "wide_resnet",
    "densenet",
    "resnext",
)
ZOO: dict[str, Architecture] = {
    architecture.name: architecture
    for family in FAMILIES
    for architecture in import_module(f"models.{family}").ARCHITECTURES
}
