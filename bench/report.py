"""Figures from windows, rounds folded into one line a case, and the table."""

from collections.abc import Sequence
from typing import Any

import msgspec

from bench.cases import ENGINE, HELLO, SERVER, Case
from bench.load import Window

#: Processes whose cost is shown, in the order of the columns.
COLUMNS = (SERVER, "agent", ENGINE, HELLO)
#: Processes that take part in a case, by its target; the others idle.
PARTS = {HELLO: {HELLO}, ENGINE: {ENGINE}, SERVER: {SERVER, "agent", ENGINE}}


class Row(msgspec.Struct, frozen=True):
    """One case in one round, or its best over the rounds. Times in ms; costs in us of CPU per request, or per chunk of a stream."""

    case: str
    #: The process that the case is about.
    target: str
    round: int
    per: str
    #: Requests, or chunks, a second.
    rate: float
    #: To the whole answer, or to the first byte of a stream.
    p50_ms: float
    p99_ms: float
    #: Between two arrivals within a stream.
    gap_p99_ms: float | None
    cpu_us: dict[str, float]
    #: Cost of the process that the case is about / cost of a hello in the same round.
    ratio: float | None
    #: Share of the machine's time that its host gave to others.
    steal: float
    #: Right answers, in and around the window, and what was wrong with the others.
    answers: int
    errors: dict[str, int]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def row(case: Case, number: int, window: Window, earlier: Sequence[Row]) -> Row:
    """`earlier`: rows of the same round, with the hello that this one is compared with."""
    done = window.chunks if case.stream else window.answers
    cpu = {name: (window.after.cpu[name] - at) / 1000 / done for name, at in window.before.cpu.items()} if done else {}
    times = window.firsts if case.stream else window.latencies
    ticks = window.after.ticks - window.before.ticks
    return Row(
        case=case.name,
        target=case.target,
        round=number,
        per="chunk" if case.stream else "request",
        rate=done / window.seconds,
        p50_ms=percentile(times, 0.5) * 1000,
        p99_ms=percentile(times, 0.99) * 1000,
        gap_p99_ms=percentile(window.gaps, 0.99) * 1000 if case.stream else None,
        cpu_us=cpu,
        ratio=_ratio(case, cpu, earlier),
        steal=(window.after.steal - window.before.steal) / ticks if ticks else 0.0,
        answers=window.right,
        errors=window.wrong,
    )


def _ratio(case: Case, cpu: dict[str, float], earlier: Sequence[Row]) -> float | None:
    hello = next((each.cpu_us.get(HELLO) for each in earlier if each.case == case.beside), None)
    return cpu[case.target] / hello if hello and case.target in cpu and case.name != case.beside else None


def best(rows: Sequence[Row]) -> Row:
    """Of one case in several rounds: the least cost, time and ratio, the highest rate, the most steal; answers and errors together."""
    errors: dict[str, int] = {}
    for each in rows:
        errors.update({what: errors.get(what, 0) + times for what, times in each.errors.items()})
    measured = [each for each in rows if each.cpu_us] or rows[:1]
    first = measured[0]
    return Row(
        case=first.case,
        target=first.target,
        round=0,
        per=first.per,
        rate=max(each.rate for each in measured),
        p50_ms=min(each.p50_ms for each in measured),
        p99_ms=min(each.p99_ms for each in measured),
        gap_p99_ms=min((each.gap_p99_ms for each in measured if each.gap_p99_ms is not None), default=None),
        cpu_us={name: min(each.cpu_us[name] for each in measured) for name in first.cpu_us},
        ratio=min((each.ratio for each in measured if each.ratio is not None), default=None),
        steal=max(each.steal for each in rows),
        answers=sum(each.answers for each in rows),
        errors=errors,
    )


def fold(rows: Sequence[Row]) -> list[Row]:
    """The best of every case, in the order in which they came."""
    return [best([each for each in rows if each.case == name]) for name in dict.fromkeys(each.case for each in rows)]


def table(rows: Sequence[Row], rounds: int) -> str:
    """For people: the best of the rounds."""
    head = [f"best of {rounds}", "rate/s", "p50 ms", "p99 ms", "gap p99", *(f"{name} us" for name in COLUMNS), "x hello", "steal", "errors"]
    body = [head, *([*map(str, _cells(each))] for each in rows)]
    widths = [max(len(line[column]) for line in body) for column in range(len(head))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in body)


def _cells(each: Row) -> list[Any]:
    gap = "" if each.gap_p99_ms is None else f"{each.gap_p99_ms:.1f}"
    ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
    costs = [f"{each.cpu_us[name]:.1f}" if name in each.cpu_us and name in PARTS[each.target] else "" for name in COLUMNS]
    numbers = [f"{each.rate:.0f}", f"{each.p50_ms:.2f}", f"{each.p99_ms:.2f}", gap, *costs, ratio, f"{each.steal:.1%}"]
    return [f"{each.case} /{each.per}", *numbers, sum(each.errors.values())]
