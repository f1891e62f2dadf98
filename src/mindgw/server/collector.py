"""Counters and the pipeline's snapshot in Prometheus' words, made when somebody scrapes.

Names follow the Prometheus conventions; docs/reference/metrics.md lists them.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from mindgw.gateway.lineup import Share, Stats
from mindgw.gateway.snapshot import Snapshot
from mindgw.metrics import Counters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: What is told of receipts: name and help, by what an `Inbox` calls it.
RECEIPTS = {
    "booked": ("mindgw_receipts", "Receipts of agents that are kept."),
    "recovered": ("mindgw_receipts_recovered", "Ledger rows that were made of receipts, because their server had died."),
    "forged": ("mindgw_receipts_forged", "Receipts that no server of ours can have asked for."),
    "mismatches": ("mindgw_receipts_mismatched", "Attempts that the agent counted otherwise than the server."),
    "orphans": ("mindgw_receipts_orphaned", "Receipts of attempts whose row was set aside because it could not be written."),
}


class Collector:
    """Turns counters and a snapshot of the pipeline into Prometheus' text."""

    def __init__(
        self,
        counters: Counters,
        snapshot: Callable[[], Snapshot],
        stats: Callable[[], Stats],
        unwritten: Callable[[], int],
        receipts: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`receipts` counts those of RECEIPTS, by what stands there first."""
        self._counters = counters
        self._snapshot = snapshot
        self._stats = stats
        self._unwritten = unwritten
        self._receipts = receipts
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """The page for a scrape."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        yield from self._requests()
        yield from self._failures()
        yield from self._failovers()
        yield from self._queue()
        yield from self._fleet()
        yield from self._books()

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
            ("mindgw_queue_wait_seconds", "Time in the queue, to a slot or to the end of a wait that came to none.", self._counters.queued),
        ):
            family = HistogramMetricFamily(name, text)
            family.add_metric([], buckets=histogram.buckets(), sum_value=histogram.sum)
            yield family

    def _failures(self) -> Iterator[Metric]:
        for name, text, counts in (
            ("mindgw_rejects", "Requests with a good key that failed before they had a slot.", self._counters.rejects),
            ("mindgw_dead_letters", "Requests that failed for good, for no fault of their caller.", self._counters.dead_letters),
        ):
            family = CounterMetricFamily(name, text, labels=["code"])
            for code, count in counts.items():
                family.add_metric([code], count)
            yield family
        for name, text, label, pairs in (
            ("mindgw_quota_exceeded", "Requests that a limit refused, or would have.", "mode", self._counters.quota),
            ("mindgw_rate_limited", "Requests that a rate refused; of addresses: those without a good key.", "limit", self._counters.rates),
        ):
            limits = CounterMetricFamily(name, text, labels=["scope", label])
            for pair, count in pairs.items():
                limits.add_metric(pair, count)
            yield limits
        noted = CounterMetricFamily(
            "mindgw_shadow_routes", "Requests that a route which is only noted would have sent elsewhere.", labels=["route"]
        )
        for route, count in self._counters.shadow_routes.items():
            noted.add_metric([route], count)
        yield noted
        lost = "Those of them that no letter is kept of: the database was away for too long."
        yield CounterMetricFamily("mindgw_dead_letters_lost", lost, self._counters.dead_letters_lost)
        untold = "Requests of which no story is kept: too many were over at once, or the database was away for too long."
        yield CounterMetricFamily("mindgw_stories_lost", untold, self._counters.stories_lost)

    def _failovers(self) -> Iterator[Metric]:
        text = "Tries that failed and of which no caller heard, because another worker was asked."
        failovers = CounterMetricFamily("mindgw_failovers", text, labels=["reason"])
        for reason, count in self._counters.failovers.items():
            failovers.add_metric([reason], count)
        yield failovers
        text = "Times that a worker was left alone because a model failed there."
        ejections = CounterMetricFamily("mindgw_worker_ejections", text, labels=["worker", "model"])
        for pair, count in self._counters.ejections.items():
            ejections.add_metric(pair, count)
        yield ejections
        text = "Streams that were late to begin, by what became of a second try on another worker."
        hedges = CounterMetricFamily("mindgw_hedges", text, labels=["outcome"])
        for outcome, count in self._counters.hedges.items():
            hedges.add_metric([outcome], count)
        yield hedges
        text = "Attempts that were not made on another worker, because too many requests were tried again."
        yield CounterMetricFamily("mindgw_retries_refused", text, self._counters.retries_refused)

    def _queue(self) -> Iterator[Metric]:
        stats = self._stats()
        depth = GaugeMetricFamily("mindgw_queue_depth", "Requests that wait, by their priority class.", labels=["class"])
        for name, count in stats.classes.items():
            depth.add_metric([name], count)
        yield depth
        yield GaugeMetricFamily("mindgw_queue_oldest_seconds", "How long the oldest of those who wait waits.", stats.oldest_s)
        yield GaugeMetricFamily("mindgw_queue_bytes", "Bytes of the requests that wait.", stats.bytes)
        text = "How wrong the last estimates of waits were: |estimate - wait| / max(wait, 5 s); absent before there was one."
        wrong = GaugeMetricFamily("mindgw_queue_eta_error_ratio", text, labels=["quantile"])
        for quantile, ratio in (("0.5", stats.eta_error_median), ("0.9", stats.eta_error_p90)):
            if ratio is not None:
                wrong.add_metric([quantile], ratio)
        yield wrong
        yield from _shares(stats.shares)

    def _fleet(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        yield GaugeMetricFamily("mindgw_queue_waiting", "Requests that wait for a slot.", snapshot.waiting)
        yield GaugeMetricFamily("mindgw_requests_running", "Requests that hold a slot.", snapshot.running)
        yield GaugeMetricFamily("mindgw_usage_rows_unwritten", "Usage rows that are not in the database yet.", self._unwritten())
        slots = GaugeMetricFamily("mindgw_worker_slots", "Requests that a worker carries at once.", labels=["worker"])
        used = GaugeMetricFamily("mindgw_worker_slots_used", "Slots that are taken.", labels=["worker"])
        up = GaugeMetricFamily("mindgw_worker_ready", "1 when the worker takes requests.", labels=["worker"])
        out = GaugeMetricFamily(
            "mindgw_worker_ejected", "1 when the worker is left alone because the model fails.", labels=["worker", "model"]
        )
        for worker in snapshot.workers:
            slots.add_metric([worker.name], worker.slots)
            used.add_metric([worker.name], worker.used)
            up.add_metric([worker.name], float(worker.state == "ready"))
            for circuit in worker.circuits:
                out.add_metric([worker.name, circuit.model], float(circuit.state != "half-open"))
        yield from (slots, used, up, out)

    def _books(self) -> Iterator[Metric]:
        """What agents say that they used, beside what was counted here."""
        counts = self._receipts()
        for kind, (name, text) in RECEIPTS.items():
            yield CounterMetricFamily(name, text, counts.get(kind, 0))


def _shares(shares: list[Share]) -> Iterator[Metric]:
    """Teams of one name, in several organisations, count as one."""
    units: dict[str, float] = {}
    parts: dict[str, float] = {}
    for share in shares:
        units[share.team] = units.get(share.team, 0.0) + share.units
        parts[share.team] = parts.get(share.team, 0.0) + share.share
    used = GaugeMetricFamily("mindgw_team_units", "Weighted tokens that a team used of late, fading by half in 300 s.", labels=["team"])
    part = GaugeMetricFamily("mindgw_team_share_ratio", "The team's part of what all teams used of late.", labels=["team"])
    for team, count in units.items():
        used.add_metric([team], count)
        part.add_metric([team], parts[team])
    yield from (used, part)
