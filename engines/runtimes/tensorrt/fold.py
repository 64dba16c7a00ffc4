"""Folding of batch norms into convolutions, in a network that TensorRT's parser made of an fp32 graph.

Published fp32 graphs refer to the checkpoint's weights, before any folding. TensorRT for RTX 1.7 does not fold: it
generated code for a convolution with a batch norm, instead of running one of its own convolutions.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from engines.runtimes.tensorrt.library import TensorRT, library

if TYPE_CHECKING:
    import tensorrt_rtx as trt


def fold_batch_norms(runtime: TensorRT, network: trt.INetworkDefinition) -> list[NDArray[np.float32]]:
    """Fold each batch norm that is the only reader of a convolution into the convolution's weights.

    Returns the new weights, whose memory TensorRT reads when the network is built.
    """
    if not TYPE_CHECKING:
        trt = library(runtime)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    inputs = [
        (layer, index, tensor)
        for layer in layers
        for index in range(layer.num_inputs)
        if (tensor := layer.get_input(index)) is not None
    ]
    readers = Counter(tensor.name for _, _, tensor in inputs)
    convolutions = {layer.get_output(0).name: layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION}
    weights: list[NDArray[np.float32]] = []
    folded: dict[str, trt.ITensor] = {}  # a convolution's output by the name of its batch norm's
    for layer in layers:
        source = layer.get_input(0).name if layer.type == trt.LayerType.SCALE else ""
        if source not in convolutions or readers[source] > 1:
            continue
        convolution, norm = cast("trt.IConvolutionLayer", convolutions[source]), cast("trt.IScaleLayer", layer)
        convolution.__class__, norm.__class__ = trt.IConvolutionLayer, trt.IScaleLayer  # as NVIDIA's samples do
        scale, kernel, bias = np.array(norm.scale), np.array(convolution.kernel), np.array(convolution.bias)
        scaled_bias = bias * scale if bias.size else np.zeros_like(scale)
        weights += [(kernel.reshape(len(scale), -1) * scale[:, None]).ravel(), scaled_bias + np.array(norm.shift)]
        convolution.kernel, convolution.bias = weights[-2:]
        folded[norm.get_output(0).name] = convolution.get_output(0)
    for layer, index, tensor in inputs:
        if tensor.name in folded:
            layer.set_input(index, folded[tensor.name])
    return weights
