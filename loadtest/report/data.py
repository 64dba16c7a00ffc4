"""Records of the report: flat dictionaries to draw. No list mixes published and measured accuracies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from loadtest.rows import Measured, PublishedAccuracy, ServedArchitecture

Records = list[dict[str, Any]]

# Top-5 error in percent on ILSVRC's test set, as on the lecture's slides; ensembles unless the paper reports one net.
# The human error is from Russakovsky et al. 2015. 11.7 % is Clarifai's result, which the slides call ZFNet.
ILSVRC: Records = [
    {"entry": "2010 NEC-UIUC", "error": 28.2, "layers": "shallow"},
    {"entry": "2011 XRCE", "error": 25.8, "layers": "shallow"},
    {"entry": "2012 AlexNet", "error": 16.4, "layers": "8"},
    {"entry": "2013 Clarifai (ZFNet)", "error": 11.7, "layers": "8"},
    {"entry": "2014 VGG", "error": 7.3, "layers": "19"},
    {"entry": "2014 GoogLeNet", "error": 6.7, "layers": "22"},
    {"entry": "human", "error": 5.1, "layers": "human"},
    {"entry": "2015 ResNet", "error": 3.57, "layers": "152"},
    {"entry": "2016 Trimps-Soushen", "error": 2.99, "layers": "152"},
    {"entry": "2017 SENet", "error": 2.251, "layers": "152"},
]
ONE_CROP = re.compile(r"^validation, one (\d+) crop$")
SPREAD = {
    "p50_ms": "single.p50_ms",
    "p99_ms": "single.p99_ms",
    "images_per_s": "offline.achieved",
    "max_rate": "max_rate",
}
PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


class Fit(NamedTuple):
    """Least-squares line of milliseconds over 10^9 multiply-accumulates, and its R²."""

    fixed_ms: float
    ms_per_gmac: float
    r_squared: float

    def at(self, gmacs: float) -> float:
        """Return the milliseconds that the line has for a cost."""
        return self.fixed_ms + self.ms_per_gmac * gmacs


def one_crop(architecture: ServedArchitecture) -> PublishedAccuracy | None:
    """Return the published top-1 on ImageNet for one crop of the input shape at which the cost is counted, or None."""
    for result in architecture.published:
        crop = ONE_CROP.match(result.protocol)
        if result.data == "ImageNet" and result.top1 and crop and int(crop[1]) == architecture.input_shape[-1]:
            return result
    return None


def published(architectures: Iterable[ServedArchitecture]) -> Records:
    """Return one record per architecture with a published one-crop accuracy."""
    records = []
    for card in architectures:
        if (result := one_crop(card)) and result.top1:
            records.append(
                costs(card.params, card.macs, card.activations)
                | {
                    "model": card.name,
                    "label": card.name,
                    "family": card.family,
                    "year": card.year,
                    "top1": result.top1,
                    "top5": result.top5,
                    "source": f"{result.source}, {result.protocol}",
                    "top1_per_mparams": result.top1 / card.params * 1e6,
                    "top1_per_gmac": result.top1 / card.macs * 1e9,
                }
            )
    return records


def measured(engines: Iterable[Measured]) -> Records:
    """Return one record per engine: medians of its rounds, None for figures that could not be measured."""
    records = []
    for measurement in engines:
        engine = measurement.engine
        stages = {stage: measurement.median(f"single.stages_ms.{stage}") for stage in ("decode", "queue", "inference")}
        memory = [speed.memory_mb for speed in engine.benchmark if speed.memory_mb is not None]
        records.append(
            costs(engine.params, engine.macs, engine.activations)
            | {
                "model": measurement.name,
                "label": measurement.name.removesuffix(f" {engine.precision}"),
                "architecture": engine.architecture,
                "family": engine.family,
                "precision": engine.precision,
                "runtime": engine.runtime,
                "tag": engine.tag,
                "dataset": engine.dataset,
                "top1": None if engine.top1 is None else engine.top1 * 100,
                "images": engine.images,
                "source": f"{engine.images} held-out images of {engine.dataset}, {engine.tag}",
                "p50_ms": measurement.median("single.p50_ms"),
                "p99_ms": measurement.median("single.p99_ms"),
                "images_per_s": measurement.median("offline.achieved"),
                "cpu_ms": measurement.median("offline.cpu_ms"),
                "max_rate": measurement.median("max_rate"),
                "p99_at_80_ms": measurement.median("at_percent.80.p99_ms"),
                **{f"{stage}_ms": value for stage, value in stages.items()},
                "param_mb": engine.params * PRECISION_BYTES.get(engine.precision, 4) / 1e6,
                "engine_mb": max(memory, default=None),
                **{f"{name}_spread": spread(measurement, figure) for name, figure in SPREAD.items()},
                "rounds": len(measurement.rounds),
                "failures": measurement.median("offline.failures"),
                "problem": "; ".join(row.problem for row in measurement.rounds if row.problem),
            }
        )
    return records


def rate_within(measurement: Measured, p99_ms: float) -> float | None:
    """Return the highest rate at which an open loop had no failure and a p99 within a bound, or None.

    Only the rates that the sweep tried count; the median of the rounds.
    """
    if p99_ms == measurement.engine.load.p99_ms:
        return measurement.median("max_rate")
    rates = [
        max(within)
        for row in measurement.rounds
        if (
            within := [
                point.achieved
                for point in (*row.search, *row.at_percent.values())
                if point.p99_ms <= p99_ms and not point.failures
            ]
        )
    ]
    return median(rates) if rates else None


def spread(measurement: Measured, figure: str) -> str | None:
    """Return the least and the largest value over the rounds as text, such as `1.7 to 1.9`; None with one round."""
    least_and_largest = measurement.spread(figure)
    return " to ".join(f"{value:,.3g}" for value in least_and_largest) if least_and_largest else None


def costs(params: int, macs: int, activations: int) -> dict[str, Any]:
    """Return parameters and activations in millions, and multiply-accumulates in 10^9."""
    return {"mparams": params / 1e6, "gmacs": macs / 1e9, "mactivations": activations / 1e6}


def batches(engines: Iterable[Measured]) -> Records:
    """Return one record per engine and batch size: benchmarks without HTTP, with one stream and all threads."""
    return [
        {
            "model": measurement.name,
            "label": measurement.name.removesuffix(f" {measurement.engine.precision}"),
            "precision": measurement.engine.precision,
            "top1": None if measurement.engine.top1 is None else measurement.engine.top1 * 100,
            "batch": speed.batch,
            "images_per_s": speed.images_per_s,
            "p50_ms": speed.p50_ms,
            "gmacs_per_s": speed.gmacs_per_s,
            "of_compute": speed.of_compute,
            "intensity": speed.of_compute / speed.of_bandwidth if speed.of_compute and speed.of_bandwidth else None,
        }
        for measurement in engines
        for speed in measurement.engine.benchmark
        if speed.streams == 1 and speed.threads is None
    ]


def rates(engines: Iterable[Measured]) -> Records:
    """Return one record per engine and share of its highest rate."""
    return [
        {
            "model": measurement.name,
            "label": measurement.name.removesuffix(f" {measurement.engine.precision}"),
            "precision": measurement.engine.precision,
            "percent": percent,
            "rate": measurement.median(f"at_percent.{percent}.rate"),
            **{f"p{p}_ms": measurement.median(f"at_percent.{percent}.p{p}_ms") for p in (50, 99)},
        }
        for measurement in engines
        for percent in sorted({percent for row in measurement.rounds for percent in row.at_percent}, key=int)
    ]


def stages(records: Records) -> Records:
    """Return one record per engine and stage of a single request; the last stage is the rest of the client's p50."""
    parts = []
    for record in records:
        known = {stage: record[f"{stage}_ms"] for stage in ("decode", "queue", "inference")}
        if record["p50_ms"] is not None and None not in known.values():
            rest = max(0.0, record["p50_ms"] - sum(known.values()))
            parts += [
                {"model": record["model"], "stage": stage, "order": order, "ms": value}
                for order, (stage, value) in enumerate({**known, "HTTP and client": rest}.items())
            ]
    return parts


def front(records: Records, cost: str, gain: str = "top1", *, more_is_better: bool = False) -> Records:
    """Return the Pareto front by (cost, gain), cheapest first."""
    sign = -1 if more_is_better else 1
    best: Records = []
    have = [record for record in records if record[cost] and record[gain] is not None]
    for record in sorted(have, key=lambda record: (sign * record[cost], -record[gain])):
        if not best or record[gain] > best[-1][gain]:
            best.append(record)
    return best


def fit(records: Records, cost: str = "gmacs", time: str = "inference_ms") -> Fit | None:
    """Fit a line through time over cost; None with fewer than three records."""
    pairs = [(record[cost], record[time]) for record in records if record[time] is not None]
    if len(pairs) < 3:
        return None
    x, y = np.array(pairs).T
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - (intercept + slope * x)
    spread = float(((y - y.mean()) ** 2).sum())
    return Fit(float(intercept), float(slope), 1 - float((rest**2).sum()) / spread if spread else 1.0)


def precision_name(precision: str) -> str:
    """Return a precision as it is written in text."""
    return "INT8" if precision == "int8" else precision


def lower_bound(top1: float, images: int | None) -> float:
    """Return the lower end of the 95 % Wilson interval of an accuracy in percent; without a count, the accuracy."""
    if not images:
        return top1
    right = round(top1 / 100 * images)
    return float(stats.binomtest(right, images).proportion_ci(0.95, method="wilson").low) * 100
