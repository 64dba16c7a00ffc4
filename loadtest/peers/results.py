"""Rows of the comparison with peers, and their summary as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from loadtest import markdown
from loadtest.store import Row, read_rows

CONVSERVE = "convserve"
NUMBERS = (
    *("requests/s", "convserve / server", "p50 ms", "p99 ms", "CPU ms a request", "memory MB"),
    *("answers", "wrong", "failed", "client: CPU ms a request", "client: of a core"),
)
HEADINGS = ("model", "connections", "server", *NUMBERS)
GPU_NUMBERS = ("GPU", "GPU MB")  # columns of rows that have these figures


class PeerRow(Row):
    """Figures of one run with one server, or with an upper bound without HTTP, which has no client.

    Rows can be compared if their `setting` is the same. `wrong` counts answers with another label than the engine's;
    None for a server without a model. `gpu_use` is the share of the time in which the GPU was busy.
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
    gpu_use: float | None = None
    gpu_bytes: float | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        """Identity of the row: a comparison measures each key once."""
        return self.setting, self.model, self.connections, self.server, self.round

    @property
    def progress(self) -> str:
        """Line of progress: the row's main figures, or its error."""
        main_figures = f"{self.rate:.1f}/s, p99 {self.p99_ms:.1f} ms, {self.failed} failed"
        return f"{self.model}, {self.connections} connections, {self.server}: {self.error or main_figures}"

    @property
    def rate(self) -> float:
        """Answers per second of the run."""
        return self.answers / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time of the server per answer, in ms."""
        return 1000 * self.cpu_s / self.answers

    @property
    def client_cpu_ms(self) -> float:
        """Processor time of the load generator per answer, in ms."""
        return 1000 * (self.client_cpu_s or 0) / self.answers

    @property
    def client_share(self) -> float:
        """Share of one core that the load generator used."""
        return (self.client_cpu_s or 0) / self.seconds


KIND = TypeAdapter(PeerRow)


def read_peers(path: Path) -> list[PeerRow]:
    """Return the rows of a file. Raises ScenarioError if the file holds anything else."""
    return read_rows(path, KIND, "peers")


def summary(rows: Iterable[PeerRow]) -> str:
    """Return a Markdown table: medians over the rounds, and sums of wrong and failed answers."""
    rows = list(rows)
    groups: dict[tuple[str, int], dict[str, list[PeerRow]]] = {}
    for row in rows:
        groups.setdefault((row.model, row.connections), {}).setdefault(row.server, []).append(row)
    lines: list[tuple[str, ...]] = []
    on_gpu = any(row.gpu_use is not None for row in rows)
    for (model, connections), servers in groups.items():
        convserve_rate = middle(servers.get(CONVSERVE, []), lambda row: row.rate)
        for server, rounds in servers.items():
            busy = gpu_cells(rounds) if on_gpu else []
            lines.append((f"`{model}`", str(connections), server, *cells(rounds, convserve_rate), *busy))
    return markdown.table((*HEADINGS, *(GPU_NUMBERS if on_gpu else ())), lines, NUMBERS + GPU_NUMBERS)


def cells(rounds: list[PeerRow], convserve_rate: float | None) -> list[str]:
    """Return the cells under NUMBERS for the rounds of one server."""
    rate = median(row.rate for row in rounds)
    wrong = [row.wrong for row in rounds if row.wrong is not None]
    over_http = [row for row in rounds if row.client_cpu_s is not None]
    return [
        number(rate, ".1f"),
        number(convserve_rate / rate if convserve_rate and rate else None, ".2f"),
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


def gpu_cells(rounds: list[PeerRow]) -> list[str]:
    """Return the cells under GPU_NUMBERS for the rounds of one server."""
    watched = [row for row in rounds if row.gpu_use is not None]
    return [
        number(middle(watched, lambda row: row.gpu_use or 0), ".0%"),
        number(middle(watched, lambda row: (row.gpu_bytes or 0) / 1e6), ".0f"),
    ]


def middle(rounds: list[PeerRow], figure: Callable[[PeerRow], float]) -> float | None:
    """Return the median over the rounds that had answers, or None if no round had any."""
    answered = [figure(row) for row in rounds if row.answers]
    return median(answered) if answered else None


def number(figure: float | None, form: str) -> str:
    """Format a figure; None becomes an empty cell."""
    return "" if figure is None else format(figure, form)
