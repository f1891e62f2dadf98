"""What the kernel itself costs, in real time: the only figures of the simulator that depend on the machine."""

import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence

import msgspec

from bench.simulation.figures import percentile
from mindgw.core.affinity import prefix
from mindgw.core.fair import Fair, Ticket
from mindgw.gateway.experience import Traits
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.route import Needs, Placement, place
from mindgw.gateway.seat import Worker
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire

#: Names of a path: tenant, team, user, key, end user.
DEPTH = 5
LINE = ("model", "chat")
_COST = 600.0


class Cost(msgspec.Struct, frozen=True):
    """Microseconds of one operation with so many entries in the queue: the mean of all, in the best of the rounds."""

    entries: int
    #: To join, and to be found, taken and charged for.
    enqueue_us: float
    dispatch_us: float
    #: To leave from anywhere; the mean, and what 99 of 100 do not exceed.
    cancel_us: float
    cancel_p99_us: float
    #: What stands before a ticket, asked as it joins.
    ahead_us: float
    #: Megabytes of the queue with these entries; None where it was not measured.
    megabytes: float | None = None


class Decision(msgspec.Struct, frozen=True):
    """Microseconds to choose among so many workers and to lease the slot, for requests that begin alike: the mean, in the best round."""

    workers: int
    #: By the score; the same when nothing is known of how a request begins.
    score_us: float
    plain_us: float
    least_busy_us: float
    #: To hash a prompt of 8 KiB, once for each request that has a choice.
    hash_us: float


def decision(workers: int, rounds: int = 15) -> Decision:
    """Some of the slots are always taken, and every third worker remembers the beginning of the request."""
    text = b"x" * 2048 + random.Random(1).randbytes(6144)
    hashing = min(_timed(prefix, text, 0, "seed") for _ in range(50 * rounds))
    begins = [prefix(text[: 2048 + 256 * n], 0, "seed") for n in range(16)]
    known = [Needs("m", "chat", traits=Traits(700, None, each)) for each in begins]
    plain = [Needs("m", "chat", traits=Traits(700))] * len(known)
    idle = [Needs("m", "chat", strategy="least-busy")] * len(known)
    return Decision(workers, _choices(workers, known, rounds), _choices(workers, plain, rounds), _choices(workers, idle, rounds), hashing)


def _choices(workers: int, needs: Sequence[Needs], rounds: int) -> float:
    fleet = Fleet(lambda: None)
    for number in range(workers):
        worker = Worker(str(number), str(number), 1, Link(lambda: None, 0.0))
        engine = wire.EngineReport(id="e", kind="any", healthy=True, slots=8, models=[wire.Model("m", kinds=["chat"])])
        fleet.attach(worker, approved=True)
        fleet.report(worker, wire.Report(0, [engine]))
    held: list[Placement | None] = []
    best, now = float("inf"), 0.0
    for _ in range(10 * rounds):
        spent = []
        for each in needs:
            now += 0.001
            began = time.perf_counter_ns()
            held.append(place(fleet, each, now))
            spent.append((time.perf_counter_ns() - began) / 1000)
            if len(held) > 3 * workers and (oldest := held.pop(0)) is not None:
                oldest.release()
        best = min(best, _mean(spent))
    return best


def paths(users: int) -> list[tuple[str, ...]]:
    """Paths of so many users: 20 to a tenant, each with one key and no end users."""
    return [(f"tenant-{n // 20}", f"team-{n // 10}", f"user-{n}", f"key-{n}", "-") for n in range(users)]


def filled(entries: int, random: random.Random) -> tuple[Fair, list[Ticket]]:
    """A queue with so many entries of a thousand users at most, in three classes."""
    fair, found = Fair(DEPTH), paths(min(1000, max(1, entries // 2)))
    tickets = [Ticket(None, _COST) for _ in range(entries)]
    for ticket in tickets:
        fair.join(ticket, random.choice(found), LINE, random.choice((1, 2, 3)))
    return fair, tickets


def measure(entries: int, operations: int, rounds: int = 3) -> Cost:
    """Each round on a queue that has had some turns, so that its counters differ."""
    found = [_round(entries, operations) for _ in range(rounds)]
    return Cost(entries, *(min(column) for column in zip(*found, strict=True)))


def memory(entries: int) -> float:
    """Megabytes that a queue with so many entries takes, tickets included."""
    gc.collect()
    tracemalloc.start()
    kept = filled(entries, random.Random(1))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size / 1e6


def _round(entries: int, operations: int) -> tuple[float, float, float, float, float]:
    dice = random.Random(1)
    fair, tickets = filled(entries, dice)
    found = paths(min(1000, max(1, entries // 2)))
    for _ in range(min(entries, 1000)):
        _dispatch(fair, dice.uniform(100, 1000))
        fair.join(Ticket(None, _COST), dice.choice(found), LINE, 2)
    newcomers = [Ticket(None, _COST) for _ in range(operations)]
    joins: list[float] = []
    turns: list[float] = []
    looks: list[float] = []
    for ticket in newcomers:
        path = dice.choice(found)
        joins.append(_timed(fair.join, ticket, path, LINE, 2))
        looks.append(_timed(fair.ahead, ticket))
        turns.append(_timed(_dispatch, fair, 300.0))
    cancels = [_timed(fair.leave, ticket) for ticket in dice.sample(tickets, min(operations, entries)) if ticket.branch is not None]
    return _mean(joins), _mean(turns), _mean(cancels), percentile(cancels, 0.99), _mean(looks)


def _dispatch(fair: Fair, units: float) -> None:
    ticket = fair.best()
    assert ticket is not None
    fair.take(ticket)
    fair.charge(ticket, units)
    fair.finish(ticket)


def _timed(work: Callable[..., object], *given: object) -> float:
    began = time.perf_counter_ns()
    work(*given)
    return (time.perf_counter_ns() - began) / 1000


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
