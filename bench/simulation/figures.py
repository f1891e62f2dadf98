"""Figures of a run: waits, Jain's index, service gaps, utilisation, the error of the forecast."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from bench.simulation.jobs import Job
from bench.simulation.world import Result
from mindgw.gateway.ticket import W_IN, W_OUT

#: Seconds of backlog over which Jain's index is taken, and from the beginning of one window to the next.
WINDOW, SLIDE = 60.0, 10.0
#: Waits that are shorter count for this many seconds when an error is put into proportion.
LEAST = 5.0


class Errors(msgspec.Struct, frozen=True):
    """Of forecasts, |eta - wait| / max(wait, 5 s), over all who had to wait."""

    forecasts: int
    median: float
    p90: float
    #: The same had nobody been expected to pass.
    plain_median: float
    plain_p90: float
    #: Sum of all forecasts / sum of all waits.
    bias: float


class Waits(msgspec.Struct, frozen=True):
    """Seconds until a slot, of one class or group."""

    requests: int
    mean: float
    p50: float
    p95: float
    p99: float


class Fairness(msgspec.Struct, frozen=True):
    """Jain's index over windows in which at least two clients had something waiting all the time."""

    windows: int
    least: float
    mean: float


class Route(msgspec.Struct, frozen=True):
    """One workload by one strategy; seconds from arrival on."""

    workload: str
    load: float
    strategy: str
    requests: int
    first_p50: float
    first_p95: float
    first_p99: float
    #: Until the last token, the mean.
    whole: float
    #: Share of the blocks of prompts that boxes remembered, and models that they loaded.
    hits: float
    loads: int


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of all does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def waits(jobs: Iterable[Job]) -> Waits:
    """Of those that had a slot."""
    found = [job.wait for job in jobs if job.start >= 0]
    return Waits(len(found), mean(found), percentile(found, 0.5), percentile(found, 0.95), percentile(found, 0.99))


def by(jobs: Iterable[Job], group: Callable[[Job], str]) -> dict[str, Waits]:
    """Waits of each group, by name."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(group(job), []).append(job)
    return {name: waits(groups[name]) for name in sorted(groups)}


def errors(jobs: Iterable[Job]) -> Errors:
    """Of those that had to wait and had a slot in the end."""
    told = [job for job in jobs if job.eta >= 0 and job.start >= 0]
    real = [_off(job.eta, job.wait) for job in told]
    plain = [_off(job.raw, job.wait) for job in told]
    total = sum(job.wait for job in told)
    return Errors(
        len(told),
        percentile(real, 0.5),
        percentile(real, 0.9),
        percentile(plain, 0.5),
        percentile(plain, 0.9),
        sum(job.eta for job in told) / total if total else 1.0,
    )


def _off(eta: float, wait: float) -> float:
    return abs(eta - wait) / max(wait, LEAST)


def jain(shares: Sequence[float]) -> float:
    """1 when all are equal, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def fairness(jobs: Sequence[Job], weights: Mapping[str, float]) -> Fairness:
    """By units: those of the prompt when the slot was given, those of the answer as they were written. Only the class that most jobs are
    of is looked at: between classes nobody promises equality."""
    classes = Counter(job.priority for job in jobs)
    jobs = [job for job in jobs if job.priority == classes.most_common(1)[0][0]]
    backlogs = {
        client: _merged([(job.arrival, job.start) for job in of if job.start > job.arrival]) for client, of in _clients(jobs).items()
    }
    found = []
    at, end = 0.0, max((job.seen for job in jobs), default=0.0)
    of = _clients(jobs)
    while at + WINDOW <= end:
        backlogged = [name for name, spans in backlogs.items() if any(begin <= at and at + WINDOW <= until for begin, until in spans)]
        if len(backlogged) >= 2:
            found.append(jain([sum(_within(job, at, at + WINDOW) for job in of[name]) / weights.get(name, 1.0) for name in backlogged]))
        at += SLIDE
    return Fairness(len(found), min(found, default=1.0), mean(found) if found else 1.0)


def _clients(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if job.start >= 0:
            found.setdefault(job.client, []).append(job)
    return found


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    out: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((begin, end))
    return out


def _within(job: Job, begin: float, end: float) -> float:
    """Units that a job got in a window."""
    units = W_IN * job.input if begin <= job.start < end else 0.0
    overlap = min(job.seen, end) - max(job.first, begin)
    if overlap > 0:
        units += W_OUT * job.written * overlap / (job.seen - job.first)
    elif job.first == job.seen and begin <= job.seen < end:
        units += W_OUT * job.written
    return units


def gap(jobs: Iterable[Job], until: float, weights: Mapping[str, float], step: float = 30.0) -> float:
    """The most that two clients were apart in service until then, looked at every 30 s; a request's service is spread evenly from its
    first token to its end, as the VTC paper's own plots do."""
    of = _clients(jobs)
    most, at = 0.0, step
    while at <= until and len(of) > 1:
        totals = [sum(_spread(job, at) for job in mine) / weights.get(name, 1.0) for name, mine in of.items()]
        most = max(most, max(totals) - min(totals))
        at += step
    return most


def _spread(job: Job, at: float) -> float:
    if at <= job.first:
        return 0.0
    return job.units * (min(1.0, (at - job.first) / (job.end - job.first)) if job.end > job.first else 1.0)


def utilisation(result: Result, until: float) -> float:
    """Share of the slots' time that was used until then."""
    used = sum(max(0.0, min(job.seen, until) - job.start) for job in result.jobs if 0 <= job.start < until)
    return used / (result.slots * until) if result.slots * until > 0 else 0.0


def throughput(jobs: Iterable[Job], until: float) -> float:
    """Units a second that were done until then."""
    return sum(_within(job, 0.0, until) for job in jobs if job.start >= 0) / until if until > 0 else 0.0
