"""Plain counters, read only when somebody scrapes: the request path adds integers and never touches a metrics library.

`server/collector.py` gives them their names.
"""

from bisect import bisect_left
from collections import Counter
from typing import Protocol

#: Upper bounds in seconds of the histograms of time.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)

#: Ends of requests that stood in the queue and never had a slot.
WAITED = frozenset({"queue_timeout", "deadline_unmeetable", "no_worker_available", "cancelled_by_operator", "client_disconnected"})


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
    def worker_id(self) -> str: ...
    @property
    def error_code(self) -> str: ...
    @property
    def queued_ms(self) -> int: ...
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
        self.counts[bisect_left(BUCKETS, seconds)] += 1
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
        #: Time in the queue of those who got a slot, and of those who gave up or were given up on there.
        self.queued = Histogram()
        #: Code of the error -> requests with a good key that were refused before they had a slot.
        self.rejects: Counter[str] = Counter()
        #: (kind of scope, mode of its limit) -> requests that a limit refused, or would have.
        self.quota: Counter[tuple[str, str]] = Counter()
        #: (kind of scope, what was too much: requests, tokens, concurrency, failures) -> requests that a rate refused.
        self.rates: Counter[tuple[str, str]] = Counter()
        #: Code of the error -> requests that failed for good; and those of them that there was no room for a letter of.
        self.dead_letters: Counter[str] = Counter()
        self.dead_letters_lost = 0

    def finished(self, row: Finished) -> None:
        """Counts one finished request."""
        model, tokens = row.model, self.tokens
        self.requests[model, row.endpoint, str(row.status), row.outcome] += 1
        tokens[model, "input"] += row.prompt_tokens
        tokens[model, "output"] += row.completion_tokens
        if row.ttft_ms is not None:
            self.ttft.observe(row.ttft_ms / 1000)
        self.duration.observe(row.total_ms / 1000)
        if not row.worker_id and row.outcome == "failed":
            self.rejects[row.error_code] += 1
        if row.worker_id or (model and row.error_code in WAITED and row.outcome != "replayed"):
            self.queued.observe(row.queued_ms / 1000)
