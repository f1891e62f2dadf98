"""Plain counters, read only when somebody scrapes: the request path adds integers and never touches a metrics library.

`server/collector.py` gives them their names.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection
from operator import attrgetter
from typing import Protocol

#: Upper bounds in seconds of the histograms of time.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_BOUNDS = tuple(round(1000 * bound) for bound in BUCKETS)
#: Rows that are counted at once, when nobody looks before.
MANY = 256

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

    def observe(self, all_ms: Collection[int]) -> None:
        """Counts values, in milliseconds."""
        counts = self.counts
        for ms in all_ms:
            counts[bisect_left(_BOUNDS, ms)] += 1
        self.sum += sum(all_ms) / 1000

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them."""
        total, out = 0, []
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], self.counts, strict=True):
            total += count
            out.append((bound, float(total)))
        return out


class Counters:
    """Everything that the server counts about requests. Rows are counted many at a time, and when somebody looks."""

    def __init__(self) -> None:
        #: Rows that are not counted yet.
        # bounded: by MANY
        self._fresh: list[Finished] = []
        #: (model, endpoint, status, outcome) -> requests; model -> tokens of prompts and of answers.
        self._requests: Counter[tuple[str, str, int, str]] = Counter()
        self._tokens: dict[str, list[int]] = {}
        self._ttft, self._duration, self._queued = Histogram(), Histogram(), Histogram()
        self._rejects: Counter[str] = Counter()
        #: (kind of scope, mode of its limit) -> requests that a limit refused, or would have.
        self.quota: Counter[tuple[str, str]] = Counter()
        #: (kind of scope, what was too much: requests, tokens, concurrency, failures) -> requests that a rate refused.
        self.rates: Counter[tuple[str, str]] = Counter()
        #: Code of the error -> tries that failed and of which the caller heard nothing, because another worker was asked.
        self.failovers: Counter[str] = Counter()
        #: (worker, model) -> times that it was left alone because the model failed there.
        self.ejections: Counter[tuple[str, str]] = Counter()
        #: What became of second tries beside one that was late (`gateway.hedge`), and why there were none -> requests.
        # bounded: by the outcomes
        self.hedges: Counter[str] = Counter()
        #: Attempts that were not made on another worker because too many were.
        self.retries_refused = 0
        #: Route that is only noted -> requests that it would have sent elsewhere.
        # bounded: by the routes that there were
        self.shadow_routes: Counter[str] = Counter()
        #: Code of the error -> requests that failed for good; and those of them that there was no room for a letter of.
        self.dead_letters: Counter[str] = Counter()
        self.dead_letters_lost = 0
        #: Requests that are over and of which no story is kept, as there were too many at once.
        self.stories_lost = 0

    @property
    def requests(self) -> dict[tuple[str, str, str, str], int]:
        """(model, endpoint, status, outcome) -> requests finished."""
        self._count()
        return {(model, endpoint, str(status), outcome): count for (model, endpoint, status, outcome), count in self._requests.items()}

    @property
    def tokens(self) -> dict[tuple[str, str], int]:
        """(model, "input" or "output") -> tokens."""
        self._count()
        return {(model, way): count for model, used in self._tokens.items() for way, count in zip(("input", "output"), used, strict=True)}

    @property
    def ttft(self) -> Histogram:
        """Time to the first byte of the answer."""
        self._count()
        return self._ttft

    @property
    def duration(self) -> Histogram:
        """Time to the end of the answer."""
        self._count()
        return self._duration

    @property
    def queued(self) -> Histogram:
        """Time in the queue of those who got a slot, and of those who gave up or were given up on there."""
        self._count()
        return self._queued

    @property
    def rejects(self) -> Counter[str]:
        """Code of the error -> requests with a good key that were refused before they had a slot."""
        self._count()
        return self._rejects

    def finished(self, row: Finished) -> None:
        """Takes the row of one finished request."""
        self._fresh.append(row)
        if len(self._fresh) >= MANY:
            self._count()

    def _count(self) -> None:
        rows, self._fresh = self._fresh, []
        self._requests.update(map(_series, rows))
        tokens = self._tokens
        for row in rows:
            used = tokens.get(row.model)
            if used is None:
                used = tokens[row.model] = [0, 0]
            used[0] += row.prompt_tokens
            used[1] += row.completion_tokens
        self._ttft.observe([row.ttft_ms for row in rows if row.ttft_ms is not None])
        self._duration.observe([row.total_ms for row in rows])
        self._queued.observe([row.queued_ms for row in rows if row.worker_id or _waited(row)])
        self._rejects.update(row.error_code for row in rows if not row.worker_id and row.outcome == "failed")


def _waited(row: Finished) -> bool:
    """Whether it gave up, or was given up on, in the queue; for those that never had a slot."""
    return bool(row.model) and row.error_code in WAITED and row.outcome != "replayed"


#: What makes requests alike.
_series = attrgetter("model", "endpoint", "status", "outcome")
