"""What came of a run: counts, and latencies in HdrHistograms, which can be added up over processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

LONGEST_US = 3_600_000_000  # an hour
DIGITS = 3  # percentiles are right to a thousandth of themselves
LATE_MS = 10.0  # what is sent later than that, and by a tenth of the p99, makes latencies the generator's


def histogram() -> HdrHistogram:
    """Of microseconds, empty."""
    return HdrHistogram(1, LONGEST_US, DIGITS)


@dataclass
class Tally:
    """The requests for one model.

    `latency` is the time of those that were well answered, since each was due; `late` is how much later than that each
    request was sent. `seconds` are those in which requests were sent, `last` when the last answer came.
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
        """How many were well answered."""
        return int(self.latency.get_total_count())

    @property
    def offered(self) -> float:
        """Requests a second that were sent."""
        return self.sent / self.seconds

    @property
    def lasted(self) -> float:
        """Seconds until all was sent and answered."""
        return max(self.seconds, self.last)

    @property
    def achieved(self) -> float:
        """Answers a second."""
        return self.answers / self.lasted

    def send(self, late_s: float) -> None:
        """A request that was due so long ago is sent now."""
        self.sent += 1
        self.late.record_value(micro(late_s))

    def answer(self, since_due_s: float, right: bool, at_s: float = 0.0) -> None:
        """It is well answered, so long after the start; `right` if by the image's label."""
        self.last = max(self.last, at_s)
        self.right += right
        self.latency.record_value(micro(since_due_s))

    def latency_ms(self, percentile: float) -> float:
        """A percentile of latency."""
        return float(self.latency.get_value_at_percentile(percentile)) / 1000

    def late_ms(self, percentile: float) -> float:
        """A percentile of lateness."""
        return float(self.late.get_value_at_percentile(percentile)) / 1000

    @property
    def fell_behind(self) -> str | None:
        """Why these latencies are in part those of a generator that did not keep up."""
        if self.late_ms(99) > max(LATE_MS, self.latency_ms(99) / 10):
            return f"1 % of requests were sent {self.late_ms(99):.0f} ms late or more"
        return None

    def add(self, other: Tally) -> None:
        """What another process has seen of the same run."""
        self.sent += other.sent
        self.right += other.right
        self.failures += other.failures
        self.seconds = max(self.seconds, other.seconds)
        self.last = max(self.last, other.last)
        self.latency.add(other.latency)
        self.late.add(other.late)

    def dump(self) -> dict[str, Any]:
        """For another process."""
        counts = {name: getattr(self, name) for name in ("sent", "right", "failures", "seconds", "last")}
        return counts | {name: getattr(self, name).encode().decode() for name in ("latency", "late")}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Tally:
        """What `dump` gave."""
        histograms = {name: HdrHistogram.decode(dumped[name]) for name in ("latency", "late")}
        return cls(**dumped | histograms)

    def __str__(self) -> str:
        """One line."""
        times = ", ".join(f"p{percentile:g} {self.latency_ms(percentile):.1f}" for percentile in (50, 90, 99, 99.9))
        right = f"{self.right / self.answers:.2%} of {self.answers} answers right" if self.answers else "no answers"
        return (
            f"offered {self.offered:.1f}/s, achieved {self.achieved:.1f}/s, {times}, max {self.latency_ms(100):.1f} ms "
            f"since due, {self.failures} failed, {right}"
        )


def micro(seconds: float) -> int:
    """Microseconds that a histogram takes."""
    return min(max(round(seconds * 1e6), 1), LONGEST_US)
