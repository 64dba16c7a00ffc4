"""Totals of each model since the server started, in the form of Triton's statistics.

They are read off the metrics, which all processes of the server share. Each count is of images, also where Triton
counts requests, since images are what this server schedules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.samples import Sample

from service.context import ServerContext
from service.inference_protocol.models import find, split
from service.inference_protocol.schema import InferStatistics, ModelStatistics, ServerStatistics, StatisticDuration

Totals = Mapping[tuple[str, str, str], float]  # by metric, model, and outcome or stage


async def statistics(server: ServerContext, name: str = "") -> ServerStatistics:
    """Return the totals of all versions that a name leaves, or without a name of every published model.

    Raises Problem as `find` does.
    """
    tags = list(server.catalog.models)
    if name:
        await find(server, name)
        tags = [model.manifest.tag for model in server.catalog.matching(name)[1]]
    totals = totals_of(server.metrics.samples())
    return ServerStatistics(model_stats=[of_model(totals, tag) for tag in tags])


def totals_of(samples: Iterable[Sample]) -> Totals:
    """Return the values of all metrics of models."""
    labelled = ((sample.name, sample.labels, sample.value) for sample in samples if "model" in sample.labels)
    return {
        (name, labels["model"], labels.get("outcome") or labels.get("stage") or ""): value
        for name, labels, value in labelled
    }


def of_model(totals: Totals, tag: str) -> ModelStatistics:
    """Return the totals of one model."""
    outcomes = {
        outcome: round(value)
        for (name, model, outcome), value in totals.items()
        if (name, model) == ("convserve_images_total", tag)
    }
    answered = outcomes.pop("ok", 0)
    decode, queue, inference = (duration(totals, tag, stage) for stage in ("decode", "queue", "inference"))
    name, version = split(tag)
    return ModelStatistics(
        name=name,
        version=version,
        last_inference=round(1000 * totals.get(("convserve_last_answer_timestamp_seconds", tag, ""), 0)),
        inference_count=answered,
        execution_count=round(totals.get(("convserve_batches_total", tag, ""), 0)),
        inference_stats=InferStatistics(
            success=StatisticDuration(count=answered, ns=decode.ns + queue.ns + inference.ns),
            fail=StatisticDuration(count=sum(outcomes.values())),
            queue=queue,
            compute_input=decode,
            compute_infer=inference,
            compute_output=StatisticDuration(count=answered),  # too short to be measured
        ),
    )


def duration(totals: Totals, tag: str, stage: str) -> StatisticDuration:
    """Return the number and time of the images of a model in one stage."""
    count = totals.get(("convserve_stage_duration_seconds_count", tag, stage), 0)
    seconds = totals.get(("convserve_stage_duration_seconds_sum", tag, stage), 0)
    return StatisticDuration(count=round(count), ns=round(1e9 * seconds))
