"""Latencies of recent requests, by model and stage."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

WINDOW = 1000  # requests kept per model
STAGES = ("decode", "queue", "inference")
Stages = tuple[float, ...]  # milliseconds, in the order of STAGES


class Recent:
    """Latencies by stage of the last 1,000 requests for each model."""

    def __init__(self) -> None:
        self._stages: dict[str, deque[Stages]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def add(self, model: str, stages_ms: Stages) -> None:
        """Keep the milliseconds of one request; `model` is a full tag."""
        self._stages[model].append(stages_ms)

    def of(self, model: str) -> list[Stages]:
        """Return the milliseconds of the last requests for a model, oldest first."""
        return list(self._stages.get(model, ()))


def percentiles(recent: Sequence[Stages]) -> dict[str, dict[str, float]]:
    """Return p50, p90 and p99 in ms by stage; empty without a request."""
    if not recent:
        return {}
    values = np.percentile(np.array(recent), (50, 90, 99), axis=0).T.tolist()
    return {
        stage: dict(zip(("p50", "p90", "p99"), of_stage, strict=True))
        for stage, of_stage in zip(STAGES, values, strict=True)
    }
