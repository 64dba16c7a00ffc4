"""Class activation maps (Zhou et al. 2016, arXiv:1512.04150): which networks have maps, and of which size."""

from __future__ import annotations

from math import isqrt

from models.cost import FLOAT_BYTES, Complexity

MAPS = "maps"  # stands for a precision where an engine returns maps beside the logits, in fp32


def map_edge(cost: Complexity) -> int:
    """Return the edge, in cells, of the square maps of a network; 0 if the network has no maps.

    A network has maps if it ends in global pooling, with one linear layer or none after the pooling.
    """
    layers = list(cost.layers)
    linear = layers.pop() if layers and layers[-1].type == "Linear" else None
    pool = layers.pop() if layers else None
    if not pool or pool.type != "AdaptiveAvgPool2d" or tuple(pool.output_shape[1:]) != (1, 1):
        return 0
    channels = pool.output_shape[0]
    if linear and linear.input_bytes != FLOAT_BYTES * channels:
        return 0
    return isqrt(pool.input_bytes // (FLOAT_BYTES * channels))


def outputs_with_maps(cost: Complexity, classes: int) -> int:
    """Return how many numbers an engine with maps returns for an image: a logit, and a map, for each class."""
    return classes * (1 + map_edge(cost) ** 2)
