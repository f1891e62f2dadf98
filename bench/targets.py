"""What the figures are to be, and whether they are."""

from collections.abc import Sequence

import msgspec

from bench.cases import AGENTS, AIOHTTP, ASGI, ENGINE, GATEWAY, HELLO, KEYS, STREAMS
from bench.report import Figures, Row

#: Words that 1000 streams bring in a second when none is late, and the share of them that must come: between two streams there is a pause.
NOMINAL, KEPT = 50_000, 0.95


class Target(msgspec.Struct, frozen=True):
    what: str
    unit: str
    #: At most so much; `aim` is what is wished for, None where there is no such wish.
    must: float
    aim: float | None
    #: None: it was not measured, or something with it went wrong.
    value: float | None
    #: Why it does not count although there is a value; "" when it does.
    spoilt: str = ""

    def met(self, bound: float | None) -> str:
        """yes, no or not measured."""
        if bound is None:
            return ""
        if self.value is None:
            return "not measured"
        return "no" if self.spoilt or self.value > bound else "yes"


def targets(rows: Sequence[Row]) -> list[Target]:
    """`rows`: the best of each case."""
    at = Figures(rows)
    held = at.row("1000x20ms", GATEWAY)
    start = at.row("start", GATEWAY)
    slow = at.row("slow-200", GATEWAY)
    least, most = AGENTS[0], AGENTS[-1]
    return [
        Target("server / hello, 64 callers", "x", 1.25, 0.9, at.ratio("c64", GATEWAY, HELLO)),
        Target("server / aiohttp pass-through, 64 callers", "x", 1 / 4, 1 / 8, at.ratio("c64", GATEWAY, AIOHTTP)),
        Target("server + agent / aiohttp pass-through", "x", 1 / 2, 1 / 4, at.ratio("c64", GATEWAY, AIOHTTP, "server", "agent")),
        Target("ASGI lane / hello, 64 callers", "x", 2.2, 1.8, at.ratio("c64", ASGI, HELLO)),
        Target("per chunk / aiohttp pass-through, 100 x 5 ms", "x", 0.6, 0.4, at.ratio("100x5ms", GATEWAY, AIOHTTP)),
        Target("1000 x 50 tokens/s: of the server's core", "%", 75, 55, _of(held, "busy", 100), _late(held)),
        Target("400 x 50 tokens/s: gap p99 beyond direct", "ms", 6, 3, _added(at, "400x20ms", "gap_p99_ms")),
        Target("one caller: p50 beyond direct", "ms", 0.3, 0.15, _added(at, "c1", "p50_ms")),
        Target(f"{most} agents / {least}, one asked by 64", "x", 1.2, 1.05, _growth(at, f"agents-{least}", f"agents-{most}")),
        Target(f"{most} agents / {least}, all asked in turn", "x", 1.2, 1.05, _growth(at, f"spread-{least}", f"spread-{most}")),
        Target(f"{KEYS[-1]} keys / {KEYS[0]}, all in use", "x", 1.2, 1.05, _growth(at, f"keys-{KEYS[0]}", f"keys-{KEYS[-1]}")),
        Target("memory, idle", "MB", 130, 90, _of(start, "rss_mb")),
        Target("cold start", "s", 2.0, 1.5, _of(start, "start_s")),
        Target("200 slow readers: memory", "MB", 60, None, _of(slow, "rss_mb"), _wrong(slow)),
        Target("200 slow readers: gap p99 of the others", "x", 1.1, None, _beside(at, "slow-none", "slow-200"), _wrong(slow)),
    ]


def observed(rows: Sequence[Row]) -> list[tuple[str, float | None]]:
    """Ratios that nobody promised."""
    at = Figures(rows)
    return [
        (f"{STREAMS[-1]} open streams / none", _growth(at, f"open-{STREAMS[0]}", f"open-{STREAMS[-1]}")),
        (f"{AGENTS[1]} agents / {AGENTS[0]}, all asked in turn", _growth(at, f"spread-{AGENTS[0]}", f"spread-{AGENTS[1]}")),
        ("a key under a hard limit / one under none", _quotient(at.cost("limit", GATEWAY), at.cost("c64", GATEWAY))),
    ]


def _of(row: Row | None, field: str, times: float = 1) -> float | None:
    """That field; None when it was not measured or nothing came."""
    value = getattr(row, field) if row is not None and row.answers else None
    return None if value is None else value * times


def _quotient(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


def _growth(at: Figures, least: str, most: str) -> float | None:
    return _quotient(at.cost(most, GATEWAY), at.cost(least, GATEWAY))


def _added(at: Figures, case: str, field: str) -> float | None:
    ours, direct = (_of(at.row(case, target), field) for target in (GATEWAY, ENGINE))
    return None if ours is None or direct is None else ours - direct


def _beside(at: Figures, without: str, beside: str) -> float | None:
    return _quotient(*(_of(at.row(case, GATEWAY), "gap_p99_ms") for case in (beside, without)))


def _wrong(row: Row | None) -> str:
    return "" if row is None or not row.errors else "answers were wrong"


def _late(row: Row | None) -> str:
    if row is None:
        return ""
    return _wrong(row) or ("" if row.rate >= KEPT * NOMINAL else f"{row.rate:.0f} chunks/s came, not {NOMINAL}")
