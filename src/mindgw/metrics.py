"""Plain counters, read only when somebody scrapes: the request path adds integers and never touches a metrics library.

`server/collector.py` gives them their names.
"""

from collections import Counter
from typing import Protocol

#: Upper bounds in seconds of the histograms of time.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class Finished(Protocol):
    """The columns of a usage row that are counted."""

    @property
    def model(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def outcome(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def ttft_ms(self) -> int | None: ...
    @property
    def total_ms(self) -> int: ...


class Histogram:
    """Counts of values at or under each bound, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        #: Values in each bucket (not cumulative); the last holds those above every bound.
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one value."""
        place = next((i for i, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        self.counts[place] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them."""
        total, out = 0, []
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], self.counts, strict=True):
            total += count
            out.append((bound, float(total)))
        return out


class Counters:
    """Everything that the server counts about requests."""

    def __init__(self) -> None:
        #: (model, endpoint, status, outcome) -> requests finished.
        self.requests: Counter[tuple[str, str, str, str]] = Counter()
        #: (model, "input" or "output") -> tokens.
        self.tokens: Counter[tuple[str, str]] = Counter()
        #: Time to the first byte of the answer, and to its end.
        self.ttft = Histogram()
        self.duration = Histogram()

    def finished(self, row: Finished) -> None:
        """Counts one finished request."""
        self.requests[row.model, row.endpoint, str(row.status), row.outcome] += 1
        self.tokens[row.model, "input"] += row.prompt_tokens
        self.tokens[row.model, "output"] += row.completion_tokens
        if row.ttft_ms is not None:
            self.ttft.observe(row.ttft_ms / 1000)
        self.duration.observe(row.total_ms / 1000)
