"""One run in virtual time: jobs arrive, wait in an order, are placed on boxes, and end; with the gateway's own parts where it has them."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from bench.simulation import orders
from bench.simulation.boxes import Box, Profile
from bench.simulation.jobs import Job, Workload
from bench.simulation.orders import Line
from mindgw.core import eta
from mindgw.core.affinity import Prefix
from mindgw.core.fair import Ticket
from mindgw.gateway import route
from mindgw.gateway.experience import Traits
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.route import Needs, Placement
from mindgw.gateway.seat import Worker
from mindgw.gateway.strategy import LEAST_BUSY
from mindgw.gateway.ticket import W_IN, W_OUT
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire

#: Seconds between two looks at what runs.
SWEEP = 1.0
KIND = "chat"


@dataclass(slots=True)
class Plan:
    """How a workload is run."""

    boxes: list[Profile]
    policy: str = "fair"
    #: By what rule a box is taken.
    strategy: str = LEAST_BUSY
    #: Requests that may wait; more are refused.
    capacity: int = 1_000_000
    #: Seconds after which one that waits leaves.
    patience: float = inf
    #: The run stops then, whoever waits.
    until: float = inf


@dataclass(slots=True)
class Result:
    """What became of a workload."""

    plan: Plan
    jobs: list[Job]
    boxes: list[Box]
    #: Slots, and for each sweep: (time, slots in use, requests that wait).
    slots: int = 0
    sweeps: list[tuple[float, int, int]] = field(default_factory=list)
    now: float = 0.0


class World:
    """Everything of one run."""

    def __init__(self, workload: Workload, plan: Plan) -> None:
        self._jobs = workload.again()
        self._plan = plan
        self._order = orders.made(plan.policy, workload.weights)
        self._boxes = [Box(profile, workload.block) for profile in plan.boxes]
        self._freed = False
        self._fleet = Fleet(self._changed, plan.strategy)
        self._block = workload.block
        #: What each box last said that it has loaded.
        self._said: list[tuple[str, ...]] = [()] * len(plan.boxes)
        self._workers: list[Worker] = []
        self._lines: list[Line] = [(model, KIND) for model in sorted({job.model for job in self._jobs})]
        for number, profile in enumerate(plan.boxes):
            self._attach(number, profile)
        self._slots = sum(profile.slots for profile in plan.boxes)
        #: (time, order, what, version)
        self._events: list[tuple[float, int, Box | Ticket | None, int]] = []
        self._count = 0
        self._running: dict[int, tuple[Ticket, Placement, Box]] = {}
        self._lengths = eta.Lengths()
        self._speed = eta.Speed()
        self._shares = eta.Shares()
        #: Since the last sweep: units done, and seconds of slots.
        self._units = self._busy = 0.0
        self._busy_at = 0.0
        self._sweeping = False
        self._pooled = any(profile.pool for profile in plan.boxes)
        self.result = Result(plan, self._jobs, self._boxes, self._slots)

    def run(self) -> Result:
        """All jobs, until the last one ended, or the time is over."""
        arrivals = iter(self._jobs)
        job = next(arrivals, None)
        while job is not None or self._events:
            if self.result.now >= self._plan.until:
                self._look(self.result.now)
                break
            if job is not None and (not self._events or job.arrival <= self._events[0][0]):
                self._arrive(job)
                job = next(arrivals, None)
            else:
                self._happen()
        return self.result

    # -- the queue --------------------------------------------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        now = self._pass(job.arrival)
        if self._order.waiting() >= self._plan.capacity:
            job.refused = True
            return
        expected = self._lengths.expected((job.client, job.model), job.model)
        ticket = Ticket(job, W_IN * job.input + W_OUT * expected)
        self._order.join(ticket, (job.model, KIND))
        self._wake(now)
        if job.start >= 0:
            return
        self._foretell(ticket, now)
        self._shares.joined(_flow(job), now)
        if self._plan.patience < inf:
            self._at(now + self._plan.patience, ticket, 0)
        if not self._sweeping:
            self._sweeping = True
            self._at(now + SWEEP, None, 0)

    def _foretell(self, ticket: Ticket, now: float) -> None:
        job: Job = ticket.item
        speed, slots = self._speed.known, 1 if self._pooled else self._slots
        if speed is None:
            return
        ahead = self._order.ahead(ticket)
        free = eta.free((running[0].owed for running in self._running.values()), self._slots, speed)
        share = self._shares.expected(_flow(job), ahead.own / ahead.units if ahead.units > 0 else 1.0, now)
        job.raw = eta.wait(ahead.units, 0.0, 1.0, speed * slots, free)
        job.eta = eta.wait(ahead.units, ahead.own, share, speed * slots, free)

    def _wake(self, now: float) -> None:
        """Gives every free slot to whose turn it is."""
        blocked: set[Hashable] = set()
        while (ticket := self._order.best(blocked)) is not None:
            job: Job = ticket.item
            placement = self._place(job, now)
            if placement is None:
                blocked.add((job.model, KIND))
                continue
            self._order.take(ticket, self._lines)
            self._start(ticket, placement, now)

    def _place(self, job: Job, now: float) -> Placement | None:
        """The gateway's own placement; a memory pool that has no room, which no engine announces, is respected on top."""
        if self._pooled and not self._room(job, now):
            return None
        return route.place(self._fleet, Needs(job.model, KIND, traits=self._traits(job)), now)

    def _traits(self, job: Job) -> Traits:
        """What a gateway sees of it: how long it is, and how it begins."""
        count = len(job.blocks)
        ends = range(self._block, self._block * (count + 1), self._block)
        prefix = Prefix(tuple(job.blocks), ends, max(job.input, self._block * count)) if count else None
        return Traits(job.input, None, prefix)

    def _room(self, job: Job, now: float) -> bool:
        for box in self._boxes:
            box.advance(now)
        return any(box.room(job) for box in self._boxes)

    def _start(self, ticket: Ticket, placement: Placement, now: float) -> None:
        job: Job = ticket.item
        if job.arrival < now:
            self._shares.left(_flow(job), now)
        job.start = now
        box = self._boxes[int(placement.seat.worker.id)]
        self._running[id(job)] = (ticket, placement, box)
        self._order.charge(ticket, W_IN * job.input)
        self._did(job, W_IN * job.input)
        if self._plan.policy == orders.PREPAID:
            self._pay(ticket, round((ticket.cost - W_IN * job.input) / W_OUT))
        box.advance(now)
        box.add(job)
        self._schedule(box)

    # -- what runs --------------------------------------------------------------------------------------------------

    def _happen(self) -> None:
        at, _, what, version = heappop(self._events)
        if isinstance(what, Box):
            if what.version == version:
                self._work(what, self._pass(at))
        elif what is not None:
            self._lose_patience(what, at)
        else:
            self._sweep(self._pass(at))

    def _work(self, box: Box, now: float) -> None:
        box.advance(now)
        ended = box.happen()
        self._learn(box, ended, now)
        for job in ended:
            ticket, placement, _ = self._running.pop(id(job))
            self._progress(ticket, job.output)
            self._pay(ticket, job.output)
            self._order.finish(ticket)
            self._lengths.learn(job.output, (job.client, job.model), job.model)
            placement.release()
        self._schedule(box)
        if self._freed:
            self._freed = False
            self._wake(now)

    def _learn(self, box: Box, ended: list[Job], now: float) -> None:
        """What a gateway sees of streams that begin and end."""
        seen, spoke, box.spoke = self._fleet.experience, box.spoke, []
        for job in spoke:
            _, placement, _ = self._running[id(job)]
            if placement.choice is not None:
                seen.heard(placement.seat, placement.choice, job.first - job.start, now)
        for job in ended:
            _, placement, _ = self._running[id(job)]
            if placement.choice is not None:
                seen.ended(placement.seat, placement.choice, job.output - 1, job.end - job.first, failed=False)
                seen.remembered(placement.seat, placement.choice, job.cached)

    def _lose_patience(self, ticket: Ticket, at: float) -> None:
        job: Job = ticket.item
        if job.start < 0:
            self._pass(at)
            job.left = True
            self._order.leave(ticket)
            self._shares.left(_flow(job), at)

    def _sweep(self, now: float) -> None:
        """Pays for what was written since the last sweep, and measures."""
        self._look(now)
        self._speed.measure(self._units, min(self._busy, SWEEP) if self._pooled else self._busy, SWEEP)
        self._units = self._busy = 0.0
        for number, box in enumerate(self._boxes):
            if box.profile.holds < len(self._lines) and box.loaded != self._said[number]:
                self._report(number, box)
        self.result.sweeps.append((now, len(self._running), self._order.waiting()))
        if self._running:
            self._at(now + SWEEP, None, 0)
        else:
            self._sweeping = False

    def _look(self, now: float) -> None:
        for box in self._boxes:
            box.advance(now)
        for ticket, _, box in self._running.values():
            self._progress(ticket, box.written(ticket.item))

    def _progress(self, ticket: Ticket, written: int) -> None:
        """So much of the answer is written: it is measured, and paid for as far as it is not yet."""
        job: Job = ticket.item
        self._did(job, W_OUT * (written - job.written))
        job.written, job.seen = written, self.result.now
        if written > job.paid:
            self._pay(ticket, written)

    def _pay(self, ticket: Ticket, tokens: int) -> None:
        """All tokens of the answer up to this one are paid for, and none beyond it."""
        job: Job = ticket.item
        self._order.charge(ticket, W_OUT * (tokens - job.paid))
        job.paid = tokens

    def _did(self, job: Job, units: float) -> None:
        """Measures work."""
        self._units += units
        if units > 0 and (speed := self._speed.known) is not None:
            self._shares.served(_flow(job), units, speed * (1 if self._pooled else self._slots), self.result.now)

    def _schedule(self, box: Box) -> None:
        if (at := box.next()) < inf:
            self._at(at, box, box.version)

    def _at(self, at: float, what: Box | Ticket | None, version: int) -> None:
        self._count += 1
        heappush(self._events, (at, self._count, what, version))

    def _pass(self, now: float) -> float:
        """Time goes on to `now`."""
        self._busy += len(self._running) * (now - self._busy_at)
        self._busy_at = self.result.now = now
        return now

    def _changed(self) -> None:
        self._freed = True

    def _attach(self, number: int, profile: Profile) -> None:
        worker = Worker(str(number), f"box-{number}", 1, Link(lambda: None, 0.0))
        self._fleet.attach(worker, approved=True)
        self._workers.append(worker)
        self._report(number, self._boxes[number])

    def _report(self, number: int, box: Box) -> None:
        """What an agent says once a second when it has changed: which models are loaded. Where all fit, they are."""
        self._said[number] = box.loaded
        profile, fit = box.profile, box.profile.holds >= len(self._lines)
        models = [wire.Model(id=model, kinds=[KIND], loaded=fit or model in box.loaded) for model, _ in self._lines]
        engine = wire.EngineReport(
            id="engine", kind="llamacpp", version="1", url="http://127.0.0.1:1", healthy=True, slots=profile.slots, models=models
        )
        worker = self._workers[number]
        self._fleet.report(worker, wire.Report(serial=worker.serial + 1, engines=[engine]))


def _flow(job: Job) -> tuple[str, str, str]:
    """What is served as one."""
    return job.client, job.model, job.priority
