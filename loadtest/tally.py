"""Counts and latencies of a load run. Latencies are HdrHistograms, which can be added up over processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

LONGEST_US = 3_600_000_000  # an hour
DIGITS = 3  # significant digits: percentiles are accurate to 0.1 %
# Requests that are sent later than this, and later than a tenth of the p99, make latencies those of the generator.
LATE_MS = 10.0


def histogram() -> HdrHistogram:
    """Return an empty histogram of microseconds."""
    return HdrHistogram(1, LONGEST_US, DIGITS)


@dataclass
class Tally:
    """Counts and latencies of the requests for one model.

    `latency` holds the time of each well-formed answer since its request was due; `late` holds the delay with which
    each request was sent. `seconds` is the time in which requests were sent; `last` is the arrival of the last answer,
    in seconds from the start.
    """

    sent: int = 0
    right: int = 0
    failures: int = 0
    seconds: float = 0.0
    last: float = 0.0
    latency: HdrHistogram = field(default_factory=histogram)
    late: HdrHistogram = field(default_factory=histogram)

    @property
    def answers(self) -> int:
        """Number of well-formed answers."""
        return int(self.latency.get_total_count())

    @property
    def offered(self) -> float:
        """Requests sent per second of the run."""
        return self.sent / self.seconds

    @property
    def lasted(self) -> float:
        """Seconds until the last request was sent and answered."""
        return max(self.seconds, self.last)

    @property
    def achieved(self) -> float:
        """Well-formed answers per second."""
        return self.answers / self.lasted

    def send(self, late_s: float) -> None:
        """Count a request that is sent `late_s` seconds after it was due."""
        self.sent += 1
        self.late.record_value(micro(late_s))

    def answer(self, since_due_s: float, right: bool, at_s: float = 0.0) -> None:
        """Count a well-formed answer at `at_s` seconds from the start; `right` if it is the image's label."""
        self.last = max(self.last, at_s)
        self.right += right
        self.latency.record_value(micro(since_due_s))

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile, 0 to 100, of latency in ms."""
        return float(self.latency.get_value_at_percentile(percentile)) / 1000

    def late_ms(self, percentile: float) -> float:
        """Return a percentile, 0 to 100, of lateness in ms."""
        return float(self.late.get_value_at_percentile(percentile)) / 1000

    @property
    def fell_behind(self) -> str | None:
        """Reason why the latencies include delays of the load generator, or None if the generator kept up."""
        if self.late_ms(99) > max(LATE_MS, self.latency_ms(99) / 10):
            return f"1 % of requests were sent {self.late_ms(99):.0f} ms late or more"
        return None

    def add(self, other: Tally) -> None:
        """Add the counts and latencies of another process for the same run."""
        self.sent += other.sent
        self.right += other.right
        self.failures += other.failures
        self.seconds = max(self.seconds, other.seconds)
        self.last = max(self.last, other.last)
        self.latency.add(other.latency)
        self.late.add(other.late)

    def dump(self) -> dict[str, Any]:
        """Return a JSON object for another process."""
        counts = {name: getattr(self, name) for name in ("sent", "right", "failures", "seconds", "last")}
        return counts | {name: getattr(self, name).encode().decode() for name in ("latency", "late")}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Tally:
        """Return the tally of a JSON object that `dump` returned."""
        histograms = {name: HdrHistogram.decode(dumped[name]) for name in ("latency", "late")}
        return cls(**dumped | histograms)

    def __str__(self) -> str:
        """Return the counts and percentiles as one line."""
        times = ", ".join(f"p{percentile:g} {self.latency_ms(percentile):.1f}" for percentile in (50, 90, 99, 99.9))
        right = f"{self.right / self.answers:.2%} of {self.answers} answers right" if self.answers else "no answers"
        return (
            f"offered {self.offered:.1f}/s, achieved {self.achieved:.1f}/s, {times}, max {self.latency_ms(100):.1f} ms "
            f"since due, {self.failures} failed, {right}"
        )


def micro(seconds: float) -> int:
    """Convert to whole microseconds within the range of a histogram."""
    return min(max(round(seconds * 1e6), 1), LONGEST_US)
