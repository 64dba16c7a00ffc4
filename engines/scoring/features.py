"""Engine that also returns features: the input of a network's last linear layer, as an embedding of the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.openvino import PRECISIONS, core
from engines.runtimes.registry import graph_of
from engines.scoring.score import FEATURES_IN


class FeatureEngine:
    """Engine on OpenVINO, in fp32, with two results: logits and features."""

    runtime = "openvino"
    precision = FEATURES_IN
    lanes = 1

    def __init__(self, model: PublishedModel) -> None:
        """Compile the fp32 graph with a second output. Raises EngineError if the network has no linear layer."""
        model.manifest.check_files(model.folder)
        try:
            network = core().read_model(graph_of(model, FEATURES_IN))
            products = [node for node in network.get_ordered_ops() if node.get_type_name() == "MatMul"]
            if not products:
                reason = "has no linear layer whose input could be an embedding: leave --embeddings out"
                raise EngineError(f"{model.manifest.tag} {reason}")
            network.add_outputs([products[-1].input_value(0)])
            compiled = core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": PRECISIONS[FEATURES_IN]})
        except RuntimeError as error:
            raise EngineError(f"openvino cannot compile {model.manifest.tag}: {error}") from error
        self._request = compiled.create_infer_request()

    def infer_both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits, (N, classes), and features, (N, values), for pixels, (N, height, width, channels)."""
        results = self._request.infer({0: pixels}, share_inputs=True)
        features = results[1]
        return results[0], features.reshape(len(features), -1)
