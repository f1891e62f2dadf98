"""Figures from windows, and rounds folded into one line a case."""

import os
from collections.abc import Mapping, Sequence

import msgspec

from bench.cases import Case
from bench.load import Window


class Roles(msgspec.Struct, frozen=True):
    """Names of the processes that take part in a case; "" for none."""

    #: The one that is measured.
    server: str = ""
    agent: str = ""
    engine: str = ""
    callers: str = "callers"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One case on one target in one round, or its best over the rounds. Costs in us of CPU per request, or per chunk of a stream."""

    case: str
    target: str
    round: int
    per: str = "request"
    #: Requests, or chunks, a second.
    rate: float = 0.0
    #: To the whole answer, or to the first word of a stream.
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    #: Between two arrivals within a stream.
    gap_p99_ms: float | None = None
    #: From the engine's writing to the caller's reading.
    lag_p50_ms: float | None = None
    lag_p99_ms: float | None = None
    #: By part: server, agent, engine, callers. Empty when it is not known.
    cpu_us: dict[str, float] = {}
    #: Share of its core that the measured process used, and share that the others used of theirs, all together.
    busy: float | None = None
    busy_others: float | None = None
    #: Memory of the measured process: at the end of a cold start, or what a window added at most.
    rss_mb: float | None = None
    #: Seconds of a cold start.
    start_s: float | None = None
    #: Share of the machine's time that its host gave to others.
    steal: float = 0.0
    #: Share of the machine's time that programs used which have nothing to do with the benchmark.
    foreign: float = 0.0
    #: Right answers, in and around the window, and what was wrong with the others.
    answers: int = 0
    errors: dict[str, int] = {}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def row(case: Case, number: int, window: Window, roles: Roles, others: int, *, grown: int | None = None) -> Row:
    """`others`: cores that carry what is not measured; `grown`: bytes."""
    done = window.chunks if case.stream else window.answers
    spent = {name: window.after.cpu[name] - at for name, at in window.before.cpu.items()}
    parts = {part: spent[name] for part, name in msgspec.structs.asdict(roles).items() if name in spent}
    times = window.firsts if case.stream else window.latencies
    ticks = window.after.ticks - window.before.ticks
    whole = window.seconds * 1e9
    return Row(
        case=case.name,
        target=case.target,
        round=number,
        per="chunk" if case.stream else "request",
        rate=done / window.seconds,
        p50_ms=percentile(times, 0.5) / 1e6,
        p99_ms=percentile(times, 0.99) / 1e6,
        gap_p99_ms=percentile(window.gaps, 0.99) / 1e6 if window.gaps else None,
        lag_p50_ms=percentile(window.lags, 0.5) / 1e6 if window.lags else None,
        lag_p99_ms=percentile(window.lags, 0.99) / 1e6 if window.lags else None,
        cpu_us={part: value / 1000 / done for part, value in parts.items()} if done else {},
        busy=parts["server"] / whole if "server" in parts else None,
        busy_others=sum(value for part, value in parts.items() if part != "server") / whole / others,
        rss_mb=None if grown is None else grown / 1e6,
        steal=(window.after.steal - window.before.steal) / ticks if ticks else 0.0,
        foreign=_foreign(window, spent) if ticks else 0.0,
        answers=window.right,
        errors=window.wrong,
    )


def _foreign(window: Window, spent: Mapping[str, int]) -> float:
    """The kernel counts in ticks, so that a short window may seem to have less than nothing."""
    ticks, used = window.after.ticks - window.before.ticks, window.after.used - window.before.used
    ours = sum(spent.values()) / 1e9 * os.sysconf("SC_CLK_TCK")
    return max(0.0, (used - ours) / ticks)


#: How the rounds of a case become one: what a quiet machine would show. Memory is not a matter of quiet, so its worst counts.
_LEAST = ("p50_ms", "p99_ms", "gap_p99_ms", "lag_p50_ms", "lag_p99_ms", "start_s")
_MOST = ("rss_mb",)


def best(rows: Sequence[Row]) -> Row:
    """Of one case on one target in several rounds: the least cost and time, the highest rate, all answers and errors."""
    errors: dict[str, int] = {}
    for each in rows:
        errors.update({what: errors.get(what, 0) + times for what, times in each.errors.items()})
    good = [each for each in rows if each.answers] or rows
    measured = [each for each in good if each.cpu_us]
    # how busy a core is means nothing without the rate that made it so
    return msgspec.structs.replace(
        max(good, key=lambda each: each.rate),
        round=0,
        **{name: _one(min, good, name) for name in _LEAST},
        **{name: _one(max, good, name) for name in _MOST},
        cpu_us={part: min(each.cpu_us[part] for each in measured) for part in measured[0].cpu_us} if measured else {},
        steal=max(each.steal for each in rows),
        foreign=max(each.foreign for each in rows),
        answers=sum(each.answers for each in rows),
        errors=errors,
    )


def _one(choose: object, rows: Sequence[Row], name: str) -> float | None:
    known = [value for each in rows if (value := getattr(each, name)) is not None]
    return choose(known) if known else None  # type: ignore[operator]


def fold(rows: Sequence[Row]) -> list[Row]:
    """The best of every case and target, in the order in which they came."""
    kinds = dict.fromkeys((each.case, each.target) for each in rows)
    return [best([each for each in rows if (each.case, each.target) == kind]) for kind in kinds]


class Figures:
    """The best rows, to be asked by case and target."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(each.case, each.target): each for each in rows}

    def row(self, case: str, target: str) -> Row | None:
        return self._rows.get((case, target))

    def cost(self, case: str, target: str, *parts: str) -> float | None:
        """Of these parts together, of the server alone when none is named; None when it was not measured."""
        found = self.row(case, target)
        wanted = parts or ("server",)
        if found is None or not all(part in found.cpu_us for part in wanted):
            return None
        return sum(found.cpu_us[part] for part in wanted)

    def ratio(self, case: str, target: str, beside: str, *parts: str) -> float | None:
        """Cost on one target / cost of the server of another, both at their best."""
        ours, theirs = self.cost(case, target, *parts), self.cost(case, beside)
        return None if ours is None or not theirs else ours / theirs
