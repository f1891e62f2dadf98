"""Which box a request goes to: the same requests by several strategies, on boxes that are alike and on boxes that are not.

All strategies are the gateway's own, and all of them choose late: a request waits here until some box has a free slot. A round robin that
binds requests when they arrive, as proxies do, is another one, and is not simulated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.simulation import figures, workloads
from bench.simulation.boxes import A100, CPU, RTX4090, Profile
from bench.simulation.costs import Decision, decision
from bench.simulation.figures import Route
from bench.simulation.jobs import Workload
from bench.simulation.scenarios import Found, Target, capacity
from bench.simulation.world import Plan, Result, World
from mindgw.gateway.strategy import LEAST_BUSY, ROUND_ROBIN, SCORE

STRATEGIES = (ROUND_ROBIN, LEAST_BUSY, SCORE)
#: Parts of what the boxes can do; something is promised for those in the middle. At the last one every slot is taken at times, and then
#: there is nothing to choose.
LOADS = (0.3, 0.5, 0.7, 0.9)
PROMISED = LOADS[1:3]
#: p95 of the first token, by that of round robin, at most: unlike boxes, the same with prompts that begin alike, boxes that are alike.
UNLIKE, SHARED, ALIKE = 0.7, 0.5, 1.02
_SLOTS = 16


def scaled(profile: Profile, times: float) -> Profile:
    """A box that takes so many times as long for everything."""
    return replace(profile, name=f"{profile.name}, {times:g} x", b0=profile.b0 * times, b1=profile.b1 * times, b2=profile.b2 * times)


def alike(cache: int = 0) -> list[Profile]:
    """Six boxes."""
    return [replace(A100, slots=_SLOTS, cache=cache)] * 6


def unlike(cache: int = 0) -> list[Profile]:
    """Six boxes whose speeds are as 4 to 2 to 1."""
    return [scaled(replace(A100, slots=_SLOTS, cache=cache), times) for times in (1, 2, 4)] * 2


def all_of(quick: bool, recorded: Sequence[Workload] = ()) -> Found:
    """Everything; traces as far as there are any."""
    found = even([workloads.conversations(450.0 if quick else 900.0, seed) for seed in range(12, 16 if quick else 20)], PROMISED)
    for workload, boxes, bound in pairs(quick, recorded):
        found.add(compared(workload, boxes, PROMISED if quick else LOADS, bound))
    found.add(models(900.0 if quick else 3600.0))
    return found


def pairs(quick: bool, recorded: Sequence[Workload]) -> Iterator[tuple[Workload, list[Profile], float]]:
    """Workloads, the boxes that they run on, and what is promised for both."""
    long = 0.2 if quick else 1.0
    chat = workloads.conversations(1800 * long)
    turns, cached = workloads.sessions(int(1000 * long), 1800.0), 4000
    yield _named(chat, "chat, unlike boxes"), unlike(), UNLIKE
    yield _named(turns, "conversations that grow, unlike boxes"), unlike(cached), SHARED
    yield _named(workloads.instructed(1200 * long), "64 shared prefixes, unlike boxes"), unlike(100), SHARED
    for trace in recorded:
        if any(job.blocks for job in trace.jobs):
            yield _named(trace, f"{trace.name}, alike boxes"), alike(cached), ALIKE
            yield _named(trace, f"{trace.name}, unlike boxes"), unlike(cached), SHARED
        else:
            yield _named(trace, f"{trace.name}, alike boxes"), alike(), ALIKE
            yield _named(trace, f"{trace.name}, unlike boxes"), unlike(), UNLIKE


def _named(workload: Workload, name: str) -> Workload:
    return Workload(name, workload.jobs, workload.block)


def even(draws: Sequence[Workload], loads: Sequence[float]) -> Found:
    """The same kind of workload drawn several times, on boxes that are alike: where bursts decide, one draw says little. The rows are of
    the first; the promise is about the mean."""
    found, boxes = Found(), alike()
    for load in loads:
        shares = []
        for draw in draws:
            stretched = workloads.at_load(_named(draw, "chat, alike boxes"), capacity(boxes), load)
            strategies = STRATEGIES if draw is draws[0] else (ROUND_ROBIN, SCORE)
            rows = [row(stretched, load, run(stretched, boxes, strategy)) for strategy in strategies]
            shares.append(_target("", rows, ALIKE).value)
            found.routes += rows if draw is draws[0] else []
        name = f"chat, alike boxes, load {load:g}: p95 of the first token, score / round robin, mean of {len(draws)}"
        found.targets.append(Target(name, figures.mean(shares), ALIKE))
    return found


def compared(workload: Workload, boxes: Sequence[Profile], loads: Sequence[float], bound: float) -> Found:
    """One workload at several loads."""
    found, seconds = Found(), capacity(boxes)
    curves: dict[str, list[tuple[float, float]]] = {strategy: [] for strategy in STRATEGIES}
    for load in loads:
        stretched = workloads.at_load(workload, seconds, load)
        rows = [row(stretched, load, run(stretched, boxes, strategy)) for strategy in STRATEGIES]
        found.routes += rows
        for each in rows if load < LOADS[-1] else ():  # beside that one nothing of the others could be seen
            curves[each.strategy].append((load, each.first_p95))
        if load in PROMISED:
            found.targets.append(_target(f"{workload.name}, load {load:g}", rows, bound))
    found.curves[f"First token, p95 in seconds by load: {workload.name}"] = curves
    return found


def models(seconds: float) -> Found:
    """Three models on an RTX 4090 and a CPU that hold one each, and an A100 that holds all: loading takes seconds."""
    boxes, workload = [RTX4090, replace(A100, holds=3, load=8.0), CPU], workloads.models(seconds, 1.0)
    named = _named(workload, "three models that take seconds to load")
    rows = [row(named, 0.0, run(named, boxes, strategy)) for strategy in STRATEGIES]
    return Found([], [_target(named.name, rows, UNLIKE)], {}, rows)


def run(workload: Workload, boxes: Sequence[Profile], strategy: str) -> Result:
    """One run, in the fair order."""
    return World(workload, Plan(list(boxes), strategy=strategy)).run()


def row(workload: Workload, load: float, result: Result) -> Route:
    """The figures of one run."""
    jobs = [job for job in result.jobs if job.first >= 0]
    firsts = [job.first - job.arrival for job in jobs]
    seen = sum(box.seen for box in result.boxes)
    return Route(
        workload.name,
        load,
        result.plan.strategy,
        len(jobs),
        figures.percentile(firsts, 0.5),
        figures.percentile(firsts, 0.95),
        figures.percentile(firsts, 0.99),
        figures.mean([job.end - job.arrival for job in jobs]),
        sum(box.hits for box in result.boxes) / seen if seen else 0.0,
        sum(box.swaps for box in result.boxes),
    )


def _target(name: str, rows: Sequence[Route], bound: float) -> Target:
    by = {each.strategy: each.first_p95 for each in rows}
    return Target(f"{name}: p95 of the first token, score / round robin", by[SCORE] / by[ROUND_ROBIN], bound)


def decisions(rounds: int) -> tuple[list[Decision], list[Target]]:
    """What a choice costs, in real time."""
    found = [decision(workers, rounds) for workers in (1, 2, 10, 100, 1000)]
    promised = {10: 15.0, 1000: 60.0}
    targets = [
        Target(f"kernel, choice among {each.workers} workers, us", each.score_us, promised[each.workers], machine=True)
        for each in found
        if each.workers in promised
    ]
    return found, targets
