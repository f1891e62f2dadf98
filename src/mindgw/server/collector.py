"""Counters and the pipeline's snapshot in Prometheus' words, made when somebody scrapes.

Names follow the Prometheus conventions; docs/reference/metrics.md lists them.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from mindgw.gateway.snapshot import Snapshot
from mindgw.metrics import Counters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Collector:
    """Turns counters and a snapshot of the pipeline into Prometheus' text."""

    def __init__(self, counters: Counters, snapshot: Callable[[], Snapshot], unwritten: Callable[[], int]) -> None:
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
