"""What was measured, kept in a file of JSON lines, and told as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from loadtest.rows import write_lines
from loadtest.traffic import ScenarioError

OURS = "convserve"
HEADINGS = (
    *("model", "connections", "server", "requests/s", "convserve / it", "p50 ms", "p99 ms", "CPU ms a request"),
    *("memory MB", "answers", "wrong", "failed", "client: CPU ms a request", "client: of a core"),
)
NUMBERS = len(HEADINGS) - 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One turn of one server, or of a frame without HTTP, which has no client.

    `setting` is all that must be the same for rows to be compared. `wrong` counts answers by another label than the
    engine's, where there is a model.
    """

    setting: str
    model: str
    connections: int
    server: str
    round: int
    date: str
    seconds: float
    answers: int
    failed: int
    wrong: int | None
    p50_ms: float
    p99_ms: float
    cpu_s: float
    pss_bytes: int
    client_cpu_s: float | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        """What is measured but once."""
        return self.setting, self.model, self.connections, self.server, self.round

    def __str__(self) -> str:
        """Its progress."""
        told = f"{self.rate:.1f}/s, p99 {self.p99_ms:.1f} ms, {self.failed} failed"
        return f"{self.model}, {self.connections} connections, {self.server}: {self.error or told}"

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Of the server, an answer."""
        return 1000 * self.cpu_s / self.answers

    @property
    def client_cpu_ms(self) -> float:
        """Of the load generator, an answer."""
        return 1000 * (self.client_cpu_s or 0) / self.answers

    @property
    def client_share(self) -> float:
        """Of a core, that the load generator took."""
        return (self.client_cpu_s or 0) / self.seconds


class Results:
    """The rows of a file, by key; it is written whole with each that is added."""

    def __init__(self, path: Path) -> None:
        """Read what is there; ScenarioError if it is something else."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        try:
            self.rows = {row.key: row for row in (Row(**json.loads(line)) for line in lines)}
        except (TypeError, ValueError) as error:
            raise ScenarioError(f"{path} holds no results of this command: {error}") from error

    def add(self, row: Row) -> None:
        """Keep it, also if this process is killed at once."""
        self.rows[row.key] = row
        write_lines(self._path, (json.dumps(asdict(row)) for row in self.rows.values()))


def table(rows: Iterable[Row]) -> str:
    """Medians over the rounds, and sums of what was wrong or failed, a line a model, connections and server."""
    groups: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault((row.model, row.connections), {}).setdefault(row.server, []).append(row)
    lines = [line(HEADINGS), line(("---",) * 3 + ("---:",) * NUMBERS)]
    for (model, connections), servers in groups.items():
        ours = middle(servers.get(OURS, []), lambda row: row.rate)
        for server, rounds in servers.items():
            lines.append(line((f"`{model}`", str(connections), server, *figures(rounds, ours))))
    return "\n".join(lines)


def figures(rounds: list[Row], ours: float | None) -> list[str]:
    """The numbers of one line; `ours` is convserve's rate beside it."""
    rate = median(row.rate for row in rounds)
    wrong = [row.wrong for row in rounds if row.wrong is not None]
    over_http = [row for row in rounds if row.client_cpu_s is not None]
    return [
        number(rate, ".1f"),
        number(ours / rate if ours and rate else None, ".2f"),
        number(middle(rounds, lambda row: row.p50_ms), ".1f"),
        number(middle(rounds, lambda row: row.p99_ms), ".1f"),
        number(middle(rounds, lambda row: row.cpu_ms), ".2f"),
        number(middle(rounds, lambda row: row.pss_bytes / 1e6), ".0f"),
        str(sum(row.answers for row in rounds)),
        str(sum(wrong)) if wrong else "",
        str(sum(row.failed for row in rounds)),
        number(middle(over_http, lambda row: row.client_cpu_ms), ".2f"),
        number(middle(over_http, lambda row: row.client_share), ".0%"),
    ]


def middle(rounds: list[Row], figure: Callable[[Row], float]) -> float | None:
    """The median over the rounds that had answers, if there are any."""
    answered = [figure(row) for row in rounds if row.answers]
    return median(answered) if answered else None


def number(figure: float | None, form: str) -> str:
    """As text; nothing if there is none."""
    return "" if figure is None else format(figure, form)


def line(cells: Iterable[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"
