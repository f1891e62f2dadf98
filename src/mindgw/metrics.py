"""Plain counters, read only when somebody scrapes: the request path adds integers and never touches a metrics library.

Names follow the Prometheus conventions; docs/reference/metrics.md lists them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from mindgw.gateway.snapshot import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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


class Collector:
    """Turns counters and a snapshot of the pipeline into Prometheus' text."""

    def __init__(self, counters: Counters, snapshot: "Callable[[], Snapshot]", unwritten: Callable[[], int]) -> None:
        self._counters = counters
        self._snapshot = snapshot
        self._unwritten = unwritten
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """The page for a scrape."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        yield from self._requests()
        yield from self._fleet()

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("mindgw_requests", "Finished requests.", labels=["model", "endpoint", "status", "outcome"])
        for labels, count in self._counters.requests.items():
            requests.add_metric(labels, count)
        yield requests
        tokens = CounterMetricFamily("mindgw_tokens", "Tokens of finished requests.", labels=["model", "direction"])
        for pair, count in self._counters.tokens.items():
            tokens.add_metric(pair, count)
        yield tokens
        for name, text, histogram in (
            ("mindgw_time_to_first_token_seconds", "From the request's arrival to the first byte of its answer.", self._counters.ttft),
            ("mindgw_request_duration_seconds", "From the request's arrival to the end of its answer.", self._counters.duration),
        ):
            family = HistogramMetricFamily(name, text)
            family.add_metric([], buckets=histogram.buckets(), sum_value=histogram.sum)
            yield family

    def _fleet(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        yield GaugeMetricFamily("mindgw_queue_waiting", "Requests that wait for a slot.", snapshot.waiting)
        yield GaugeMetricFamily("mindgw_requests_running", "Requests that hold a slot.", snapshot.running)
        yield GaugeMetricFamily("mindgw_usage_rows_unwritten", "Usage rows that are not in the database yet.", self._unwritten())
        slots = GaugeMetricFamily("mindgw_worker_slots", "Requests that a worker carries at once.", labels=["worker"])
        used = GaugeMetricFamily("mindgw_worker_slots_used", "Slots that are taken.", labels=["worker"])
        up = GaugeMetricFamily("mindgw_worker_ready", "1 when the worker takes requests.", labels=["worker"])
        for worker in snapshot.workers:
            slots.add_metric([worker.name], worker.slots)
            used.add_metric([worker.name], worker.used)
            up.add_metric([worker.name], float(worker.state == "ready"))
        yield from (slots, used, up)
