"""What is simulated, and what is read from it. Every scenario runs one workload in the fair order and in the two others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf

import msgspec

from bench.simulation import costs, figures, workloads
from bench.simulation.boxes import A10G, A100, CPU, H100X2, RTX4090, Profile
from bench.simulation.figures import Errors, Fairness, Route, Waits
from bench.simulation.jobs import Job, Workload
from bench.simulation.orders import POLICIES
from bench.simulation.world import Plan, Result, World

#: Parts of what the boxes can do at which traces are run.
LOADS = (0.9, 1.1)


class Row(msgspec.Struct, frozen=True):
    """One workload in one order."""

    scenario: str
    policy: str
    waits: Waits
    #: By class, group of clients, or whatever the scenario is about.
    groups: dict[str, Waits]
    fairness: Fairness
    #: Share of the slots' time that was used while requests came in; None for boxes that memory limits.
    utilisation: float | None
    #: Units a second while requests came in.
    throughput: float
    eta: Errors
    #: What the scenario adds.
    more: dict[str, float] = {}


class Target(msgspec.Struct, frozen=True):
    """What was promised, and what came of it."""

    name: str
    value: float
    #: The most, or the least, that it may be.
    bound: float
    least: bool = False
    #: It depends on the machine that it was measured on.
    machine: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.least else self.value <= self.bound


class Found(msgspec.Struct):
    """Everything that was found."""

    rows: list[Row] = []
    targets: list[Target] = []
    #: For the picture: by title, by label, (x, y).
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    #: Of `routing`.
    routes: list[Route] = []

    def add(self, other: "Found") -> None:
        self.rows += other.rows
        self.targets += other.targets
        self.curves.update(other.curves)
        self.routes += other.routes


def run(workload: Workload, boxes: Sequence[Profile], policy: str = "fair", until: float = inf) -> Result:
    """One run."""
    return World(workload, Plan(list(boxes), policy, until=until)).run()


def capacity(boxes: Sequence[Profile]) -> Callable[[Workload], float]:
    """Seconds that the boxes take for all requests of a workload when all are there at once."""

    def seconds(workload: Workload) -> float:
        jobs = workload.again()
        for job in jobs:
            job.arrival = 0.0
        return run(Workload(workload.name, jobs, workload.block), boxes, "fifo").now

    return seconds


def row(name: str, workload: Workload, result: Result, group: Callable[[Job], str] = lambda job: job.priority, **more: float) -> Row:
    """The figures of one run."""
    jobs, span = result.jobs, min(workload.span or inf, result.now) if workload.span else result.now
    pooled = any(profile.pool for profile in result.plan.boxes)
    return Row(
        name,
        result.plan.policy,
        figures.waits(jobs),
        figures.by(jobs, group),
        figures.fairness(jobs, workload.weights),
        None if pooled else figures.utilisation(result, span),
        figures.throughput(jobs, span),
        figures.errors(jobs),
        more,
    )


def compared(
    name: str,
    workload: Workload,
    boxes: Sequence[Profile],
    group: Callable[[Job], str] = lambda job: job.priority,
    more: Callable[[Result], dict[str, float]] = lambda result: {},
) -> list[Row]:
    """One row for every order; the fair one first."""
    found = []
    for policy in POLICIES:
        result = run(workload, boxes, policy)
        found.append(row(name, workload, result, group, **more(result)))
    return found


def against_fifo(rows: Sequence[Row]) -> Target:
    """Utilisation of the fair order as part of FIFO's; units a second where slots are not what is scarce."""
    fair, fifo = (next(each for each in rows if each.policy == policy) for policy in ("fair", "fifo"))
    if fair.utilisation is not None and fifo.utilisation:
        return Target(f"{fair.scenario}: utilisation / FIFO's", fair.utilisation / fifo.utilisation, 0.99, least=True)
    return Target(f"{fair.scenario}: units a second / FIFO's", fair.throughput / fifo.throughput, 0.99, least=True)


def errors_of(rows: Sequence[Row]) -> list[Target]:
    fair = next(each for each in rows if each.policy == "fair")
    return [
        Target(f"{fair.scenario}: ETA error, median", fair.eta.median, 0.25),
        Target(f"{fair.scenario}: ETA error, p90", fair.eta.p90, 0.6),
    ]


# -- S1 to S9 -----------------------------------------------------------------------------------------------------------


def s1_vtc(
    names: Iterable[str] = ("overload", "overload-multi", "on_off_less", "proportional", "short_long", "dist_shift", "weighted"),
) -> Found:
    """The VTC paper's suites on its A10G."""
    found = Found()
    for name, workload in workloads.vtc().items():
        if name in names:
            limit = workload.span

            def gap(result: Result, workload: Workload = workload, limit: float = limit) -> dict[str, float]:
                return {"gap": figures.gap(result.jobs, limit, workload.weights), "drain": result.now, "ttft": _ttft(result.jobs)}

            rows = compared(f"S1 {name}", workload, [A10G], lambda job: job.client, gap)
            found.rows += rows
            if name in {"overload", "overload-multi", "weighted"}:  # elsewhere the clients do not want the same
                found.targets.append(Target(f"S1 {name}: service gap, units", rows[0].more["gap"], 10_000))
    return found


def s2_arena() -> Found:
    """The Arena's 27 clients, made from its counts."""
    workload = workloads.arena()
    return _arena("S2 Arena, made", workload)


def _arena(name: str, workload: Workload) -> Found:
    light = set(workloads.busiest(workload.jobs)[6:])

    def group(job: Job) -> str:
        return "21 light clients" if job.client in light else "6 heavy clients"

    def more(result: Result) -> dict[str, float]:
        return {"ttft of the light": _ttft([job for job in result.jobs if job.client in light]), "drain": result.now}

    return Found(compared(name, workload, [A10G], group, more))


def s3_code(seconds: float) -> Found:
    """Azure's code completions: bursts."""
    found = Found()
    boxes = [replace(A100, slots=2)] * 2
    for load in (0.5, 1.0):
        workload = workloads.at_load(workloads.code(seconds), capacity(boxes), load)
        rows = compared(f"S3 code, load {load:g}", workload, boxes)
        found.add(Found(rows, [against_fifo(rows)]))
    return found


def s4_mixed(seconds: float) -> Found:
    """Conversations of three teams, and a flood of batch work."""
    boxes = [A100] * 2
    workload = workloads.mixed(seconds)
    rows = compared("S4 chat and batch", workload, boxes)
    return Found(rows, [against_fifo(rows)], {"S4: wait by class": _waits_by_time(workload, boxes)})


def s5_prefixes() -> Found:
    """SGLang's shared prefixes. Placement is today's: the least busy, which knows nothing of prefixes."""
    return Found(compared("S5 64 x 16 prefixes", workloads.prefixes(), [replace(A100, slots=16, cache=30)] * 8, more=_hits))


def s6_questions(seconds: float) -> Found:
    """llm-d's 150 groups of 5. Placement is today's."""
    return Found(compared("S6 150 x 5 prefixes", workloads.questions(seconds), [H100X2] * 8, more=_hits))


def s7_sessions(count: int) -> Found:
    """Conversations that grow, Mooncake's way. Placement is today's."""
    boxes = [replace(A100, slots=4, cache=4000)] * 4
    workload = workloads.at_load(workloads.sessions(count, 1800.0), capacity(boxes), 0.9)
    return Found(compared("S7 sessions", workload, boxes, more=_hits))


def s8_models(seconds: float) -> Found:
    """Unlike boxes, three models, one or three of which fit at once. Placement is today's: it does not ask what is loaded."""
    boxes = [RTX4090, replace(A100, holds=3, load=8.0), CPU]
    return Found(
        compared(
            "S8 three models",
            workloads.models(seconds, 1.6),
            boxes,
            lambda job: job.model,
            lambda result: {
                "swaps an hour": sum(box.swaps for box in result.boxes) * 3600 / result.now,
                "ttft p95": figures.percentile((job.first - job.arrival for job in result.jobs), 0.95),
            },
        )
    )


def s9_day(seconds: float) -> Found:
    """deepseek-r1's day at a tenth of its rate, on boxes whose busiest time asks for a fifth more than they can do."""
    boxes = [A100] * 4
    workload = workloads.at_load(workloads.day(seconds, 1.6), capacity(boxes), 0.45)
    rows = compared("S9 day", workload, boxes)
    return Found(rows, [against_fifo(rows)])


# -- promises that have a scenario of their own -------------------------------------------------------------------------


def greedy(boxes: int, slots: int, part: float, seconds: float) -> Found:
    """Tenants that ask for `part` of an equal share each, and one that sends a hundred times as much; each has one box alone, or all
    have them together."""
    box = replace(A100, slots=slots)
    seconds_each = capacity([box])(workloads.greedy(1, 1.0, 300, 0)) / len(workloads.greedy(1, 1.0, 300, 0).jobs)
    rate = part / seconds_each
    others = workloads.greedy(boxes - 1, rate, seconds, 0)
    alone: list[Job] = []
    for client in sorted({job.client for job in others.jobs}):
        alone += run(Workload(client, [job for job in others.again() if job.client == client]), [box]).jobs
    together = workloads.greedy(boxes - 1, rate, seconds, 100)
    name = f"greedy x100, {boxes * slots} slots, others at {part:.0%} of a share"
    found = Found([row(name, others, _result(alone, [box]), lambda job: "others")])
    found.rows[0] = msgspec.structs.replace(found.rows[0], policy="alone")
    mine: list[Job] = []
    for policy in POLICIES:
        result = run(together, [box] * boxes, policy, until=together.span)
        found.rows.append(row(name, together, result, lambda job: "greedy" if job.client == "greedy" else "others"))
        if policy == "fair":
            mine = [job for job in result.jobs if job.client != "greedy"]
    lone, shared = figures.waits(alone).p95, figures.percentile((_waited(job, together.span) for job in mine), 0.95)
    served = [job.end - job.start for job in alone]
    residual = sum(each * each for each in served) / (2 * sum(served))
    found.targets.append(
        Target(f"{name}: their p95 wait, s (1.3 x {lone:.1f} alone + residual {residual:.1f})", shared, 1.3 * lone + residual)
    )
    found.targets.append(against_fifo(found.rows[1:]))
    return found


def backlog(boxes: int, slots: int, mixes: bool) -> Found:
    """Six clients who always have something waiting, with lengths of the same kind, or each with another kind."""
    workload = workloads.backlog(6, 120 * boxes, mixes)
    name = f"backlog of 6, {boxes * slots} slots, " + ("six mixes of lengths" if mixes else "one mix of lengths")
    rows = [row(name, workload, run(workload, [replace(A100, slots=slots)] * boxes, policy)) for policy in POLICIES]
    return Found(rows, [Target(f"{name}: Jain's index, least of all 60 s", rows[0].fairness.least, 0.98, least=True)])


def overload(seconds: float) -> Found:
    """Up to ten times as much as the boxes can do; the queue holds 200 requests, and callers wait for 30 s."""
    boxes, found = [A100] * 2, Found()
    curves: dict[str, list[tuple[float, float]]] = {}
    for policy in POLICIES:
        curve = []
        for times in (0.5, 0.8, 1.0, 1.5, 3.0, 10.0):
            jobs = workloads.greedy(8, times * 0.5, seconds, 0)
            workload = workloads.at_load(jobs, capacity(boxes), times)
            result = World(workload, Plan(boxes, policy, capacity=200, patience=30.0)).run()
            curve.append((times, figures.throughput(result.jobs, workload.span)))
        peak = max(done for _, done in curve)
        refused = sum(job.refused for job in result.jobs) / len(result.jobs)
        more = {"goodput / peak": curve[-1][1] / peak, "refused": refused}
        found.rows.append(row("overload x10", workload, result, lambda job: job.priority, **more))
        curves[policy] = curve
    found.targets.append(Target("overload x10: goodput / peak", found.rows[0].more["goodput / peak"], 0.9, least=True))
    found.curves["Goodput (units a second) by load"] = curves
    return found


def kernel(entries: Sequence[int]) -> tuple[list[costs.Cost], list[Target]]:
    """Costs in real time, and the time in which a request that finds the queue full is refused: to join at all is the most of it."""
    found = []
    targets = []
    for number in entries:
        cost = costs.measure(number, min(2000, number * 5))
        both, bound = cost.enqueue_us + cost.dispatch_us, 20 if number <= 100 else 40
        targets.append(Target(f"kernel, {number} entries: enqueue + dispatch, us", both, bound, machine=True))
        targets.append(Target(f"kernel, {number} entries: cancel, us", cost.cancel_p99_us, 20, machine=True))
        if number >= 100_000:
            cost = msgspec.structs.replace(cost, megabytes=costs.memory(number))
            targets.append(Target(f"kernel, {number} entries: memory, MB", cost.megabytes or 0.0, 200, machine=True))
        found.append(cost)
    return found, targets


# -- traces -------------------------------------------------------------------------------------------------------------


def trace(workload: Workload, loads: Sequence[float] = LOADS) -> Found:
    """A trace on boxes with slots, its times stretched to these loads. Requests without clients are given to ServeGen's."""
    found = Found()
    jobs = workload.again()
    synthetic = len({job.client for job in jobs}) == 1
    if synthetic:
        workloads.skew(jobs)
    plain = Workload(workload.name, jobs, workload.block)
    boxes = [A100] * (3 if synthetic else 2)
    name = workload.name + (" + ServeGen's clients" if synthetic else "")
    for load in loads:
        scaled = workloads.at_load(plain, capacity(boxes), load)
        rows = compared(f"{name}, load {load:g}", scaled, boxes, _halves(scaled.jobs))
        found.add(Found(rows, [against_fifo(rows), *errors_of(rows)]))
    if not synthetic and workload.span <= 900:
        found.add(_arena(f"{workload.name}, as recorded, A10G", plain))
    return found


def _halves(jobs: Sequence[Job]) -> Callable[[Job], str]:
    top = set(workloads.busiest(jobs)[:3])
    return lambda job: "3 heaviest clients" if job.client in top else "all other clients"


def _ttft(jobs: Iterable[Job]) -> float:
    return figures.mean([job.first - job.arrival for job in jobs if job.first >= 0])


def _hits(result: Result) -> dict[str, float]:
    seen = sum(box.seen for box in result.boxes)
    served = [job for job in result.jobs if job.first >= 0]
    return {
        "hit rate": sum(box.hits for box in result.boxes) / seen if seen else 0.0,
        "ttft p90": figures.percentile((job.first - job.arrival for job in served), 0.9),
        "answer tokens/s": sum(job.output for job in served) / result.now,
    }


def _waited(job: Job, until: float) -> float:
    """Its wait; so far, when the run ended before."""
    return job.wait if job.start >= 0 else until - job.arrival


def _result(jobs: list[Job], boxes: list[Profile]) -> Result:
    """Of clients who had a box each."""
    return Result(
        Plan(boxes), jobs, [], sum(box.slots for box in boxes) * len({job.client for job in jobs}), now=max(job.end for job in jobs)
    )


def _waits_by_time(workload: Workload, boxes: Sequence[Profile]) -> dict[str, list[tuple[float, float]]]:
    """p95 of waits for each minute of arrival, of those who chat."""
    found = {}
    for policy in POLICIES:
        minutes: dict[int, list[float]] = {}
        for job in run(workload, boxes, policy).jobs:
            if job.priority != "batch":
                minutes.setdefault(int(job.arrival // 60), []).append(job.wait)
        found[policy] = [(float(minute), figures.percentile(waits, 0.95)) for minute, waits in sorted(minutes.items())]
    return found


def all_of(quick: bool) -> Iterator[tuple[str, Callable[[], Found]]]:
    """Scenarios by name. The quick ones are shorter; they find the same, only less surely."""
    long = 0.25 if quick else 1.0
    yield "S1", lambda: s1_vtc(("overload-multi", "on_off_less")) if quick else s1_vtc()
    yield "S2", s2_arena
    yield "S3", lambda: s3_code(3400 * long)
    yield "S4", lambda: s4_mixed(1800 * long)
    yield "S5", s5_prefixes
    yield "S6", lambda: s6_questions(300 * long)
    yield "S7", lambda: s7_sessions(int(1000 * long))
    yield "S8", lambda: s8_models(3600 * long)
    yield "S9", lambda: s9_day(7200 * long)
    yield "greedy-16", lambda: greedy(4, 4, 0.6, 600 * long)
    if not quick:
        yield "greedy-16-busy", lambda: greedy(4, 4, 0.9, 600.0)
        yield "greedy-8", lambda: greedy(4, 2, 0.6, 600.0)
    yield "backlog", lambda: backlog(1, 8, mixes=False)
    if not quick:
        yield "backlog-mixes-8", lambda: backlog(1, 8, mixes=True)
        yield "backlog-mixes-16", lambda: backlog(2, 8, mixes=True)
    yield "overload", lambda: overload(300 * long)
