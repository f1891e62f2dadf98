"""A second try of a stream that is late to begin: on another worker and beside the first, until one of the two answers.

At most two run at once, and a request is always about one of them, the one *in front*; what the two do not share (see `request.Aside`) is
kept aside for the other. When there is news of that one (`signals.Beside`) it comes to the front, and the step is taken that any try would
take. So no step knows of two, but those here:

- The first one of which something leaves for the client wins. The other is told to stop, and keeps its slot until its worker says that it
  has (`attempt.Leftovers`).
- One that fails leaves the other alone in front; nobody hears of it. Should that one fail too, both count as tries.

A second try takes a slot that nobody waits for and one retry out of the budget, and is covered by what is held for the first; each has a
row, and one of them is billed. It is neither success nor failure that another worker was faster.
"""

from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from mindgw import errors
from mindgw.core.routing import permits
from mindgw.gateway import admission, route, signals
from mindgw.gateway.attempt import Attempt
from mindgw.gateway.delivery import UNBEGUN
from mindgw.gateway.experience import Choice
from mindgw.gateway.moments import HEDGED
from mindgw.gateway.patience import FOREVER
from mindgw.gateway.rank import NOBODY, SeatId
from mindgw.gateway.request import Aside, Request
from mindgw.gateway.route import TURNED_DOWN, Ended, Needs, Outcome, Placement
from mindgw.gateway.seat import Seat
from mindgw.gateway.signals import RELAYING, SENT, Effect, Event
from mindgw.gateway.watch import LOOK

#: What a tally says of one try.
_NOTED = ("number", "worker", "model", "placed", "spent", "first", "heard", "bytes", "tokens")
_noted = attrgetter(*_NOTED)
_BEGINNING = frozenset({SENT, RELAYING})
#: Workers that are looked at for a second try.
LOOKS = 4
#: What became of a second try: it was faster, or the first one was; it failed; the first one failed, and it went on; the request ended.
WON, LOST, FAILED, TOOK_OVER, ENDED = "won", "lost", "failed", "took_over", "ended"
#: Why there was none: no worker had a slot that nobody waits for, too many requests were tried again.
NO_SLOT, NO_BUDGET = "no_slot", "no_budget"


class Hedge(Request):
    """A request that may have two tries at once."""

    __slots__ = ()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Takes the step that the table has for an event."""
        raise NotImplementedError

    def _failed(self, wrong: errors.MindGWError, now: float) -> list[Effect]:
        """The try in front came to nothing."""
        raise NotImplementedError

    # -- when ---------------------------------------------------------------------------------------------------------

    def _give_time(self, placement: Placement, now: float) -> None:
        """It is sent there: from when on it will be late. Nobody is hedged twice."""
        if not self._tally.hedged:
            patience = self._stages.failover.hedging.patience(placement.model, _expected(placement.choice))
            self._tally.hedge = now + patience if patience is not None else FOREVER

    def _note_time(self, now: float) -> None:
        """The first byte came. How late a second try is says nothing of those that are made first; nor does an error."""
        if self._delivery.produced() is not None and (self._aside is None or self._aside.is_hedge):
            self._learn_time(now)

    def _learn_time(self, now: float) -> None:
        assert self._attempt is not None
        placement, placed = self._attempt.placement, self._tally.placed
        if placed is not None:
            self._stages.failover.hedging.learn(placement.model, _expected(placement.choice), now - placed)

    # -- the second try -----------------------------------------------------------------------------------------------

    def _hedge(self, now: float) -> None:
        """It is late, or it is time to look at the other one."""
        tally = self._tally
        tally.hedge = FOREVER
        if self._aside is not None:
            self._look_aside(now)
        elif self.state in _BEGINNING and tally.first is None:
            placement = self._elsewhere(now)
            if placement is not None:
                self._send_beside(placement, now)

    def _elsewhere(self, now: float) -> Placement | None:
        """A slot of another worker that may have it."""
        assert self._ask is not None
        assert self._attempt is not None
        assert self._stay is not None
        failover, first = self._stages.failover, self._attempt.placement
        if not failover.may_hedge(self._ask.caller.org_id, now):
            failover.hedged(NO_BUDGET)
            return None
        needs = self._without_those_awaited(self._stay.needs, first)
        placement = self._fitting(needs, first, now) if not self._stages.queue.is_paused(self._stay.line) else None
        if placement is None:
            failover.hedged(NO_SLOT)
        return placement

    def _without_those_awaited(self, needs: Needs, first: Placement) -> Needs:
        """What a second try needs: a worker that was not asked yet, and of which nobody who waits could have a slot. Its session stays
        with the first."""
        fleet, queue = self._stages.fleet, self._stages.queue
        shun = needs.shun | needs.avoid | {seat.id for seat in first.seat.worker.seats.values()}
        if queue.waiting:
            awaited = queue.lines()
            seats = fleet.seats(needs.model, needs.kind, needs.where)
            shun |= {seat.id for seat in seats if not awaited.isdisjoint(seat.lines())}
        traits = replace(needs.traits, caller="", session=None)
        return replace(needs, shun=shun, avoid=NOBODY, traits=traits)

    def _fitting(self, needs: Needs, first: Placement, now: float) -> Placement | None:
        """A slot of one that it may go to, if it is among the first that would be taken."""
        unfit: set[SeatId] = set()

        def fits(seat: Seat) -> bool:
            if not self._is_for(seat, first):
                unfit.add(seat.id)
            return seat.id not in unfit

        for looks in range(LOOKS):
            placement = route.place(self._stages.fleet, replace(needs, shun=needs.shun | unfit), now, fits)
            if placement is not None or len(unfit) <= looks:
                return placement
        return None

    def _is_for(self, seat: Seat, first: Placement) -> bool:
        """Whether it may go there, as at any other attempt, and what is held is enough for that."""
        assert self._ask is not None
        assert self._stay is not None
        model = seat.model(self._stay.needs.model)
        if model is None or not admission.is_for(self._ask.caller, (model.id, *model.aliases)):
            return False
        return permits(self._stay.goal[1], seat.worker.tags) and self._bill.covers(model, first)

    def _send_beside(self, placement: Placement, now: float) -> None:
        """It is in front while it is sent."""
        assert self._ask is not None
        assert self._attempt is not None
        assert self._body is not None
        stages, tally, placed = self._stages, self._tally, self._tally.placed
        stages.failover.hedges(self._ask.caller.org_id, now)
        tally.hedged, tally.hedge = True, now + LOOK
        self._aside = Aside(self._attempt, self.state, self._owed, self._delivery.turn(UNBEGUN), _noted(tally), is_hedge=False)
        self._aside.attempt.tell(self._whisper)
        self._attempt, self.state, self._owed = Attempt(stages.post, self, placement), SENT, 0
        # the total of its time goes on from where it is
        tally.spent += now - placed if placed is not None else 0.0
        tally.send(placement, now, HEDGED)
        ask, bill = self._ask, self._bill
        self._attempt.open(self.head, ask, stages.timeouts, bill.body(ask, self._body), bill.tag(ask, placement))
        self._swap(self._aside)

    def _whisper(self, exchange: Any, event: Event) -> None:
        """News of the one that is not in front."""
        self._stages.post(exchange, signals.Beside(event))

    def beside(self, event: signals.Beside, now: float) -> list[Effect]:
        """News of the one that is not in front: now it is."""
        if self._aside is None:
            return []
        self._swap(self._aside)
        return self.handle(event.event, now)

    def _look_aside(self, now: float) -> None:
        """The one that is not in front may have taken too long; the other one has its own look at every tick."""
        aside = self._aside
        assert aside is not None
        self._tally.hedge = now + LOOK
        self._swap(aside)
        limit, why = self._stages.watch.limit(self._tally, waiting=False)
        if now >= limit and isinstance(wrong := why(), errors.EngineTimeout):
            self._failed(wrong, now)
        else:
            self._swap(aside)

    # -- who is in front ------------------------------------------------------------------------------------------------

    def _swap(self, aside: Aside) -> None:
        """The other one comes to the front."""
        assert self._ask is not None
        assert self._attempt is not None
        tally = self._tally
        aside.attempt, self._attempt = self._attempt, aside.attempt
        aside.state, self.state = self.state, aside.state
        aside.owed, self._owed = self._owed, aside.owed
        aside.answer = self._delivery.turn(aside.answer)
        noted, aside.noted = aside.noted, _noted(tally)
        for name, value in zip(_NOTED, noted, strict=True):
            setattr(tally, name, value)
        aside.is_hedge = not aside.is_hedge
        self._attempt.tell(self._stages.post)
        aside.attempt.tell(self._whisper)
        if self._ask.course is not None or self._ask.needs.where:
            self._note_server(self._attempt.placement)  # should this one serve it
        if tally.stuck is None:
            self._pay()  # what came of it while the client took nothing

    def _drop(self, code: str, now: float, *, over: bool = False, begun: bool = True) -> None:
        """The one in front is given up, and the other one is alone from now on. `over`: its worker has let go of it; `begun`: it may have
        reached an engine, so it has a row."""
        assert self.caller is not None
        assert self._attempt is not None
        assert self._aside is not None
        dropped = self._attempt
        worker = dropped.placement.seat.owner
        if begun:
            self._bill.waste(self.caller, code, now)
            self._tally.drop(worker, code, now, self._delivery.status)
        else:
            self._tally.turn_down(worker, code, now)
        self._swap(self._aside)
        self._aside, self._tally.hedge = None, FOREVER
        if over:
            dropped.end()
        else:
            dropped.leave_to(self._stages.failover.leftovers, now)

    # -- what becomes of the two --------------------------------------------------------------------------------------

    def _wins(self, now: float) -> None:
        """The one in front answers; nobody waits for the other any longer, which teaches how slow it is at least."""
        aside = self._aside
        assert aside is not None
        failover, tally = self._stages.failover, self._tally
        failover.hedged(LOST if aside.is_hedge else WON)
        self._swap(aside)
        assert self._attempt is not None
        placement = self._attempt.placement
        if tally.first is None and tally.placed is not None:
            if aside.is_hedge:  # it is the first one that was too slow
                self._learn_time(now)
            if placement.choice is not None:
                self._stages.fleet.experience.outrun(placement.seat, placement.choice, now - tally.placed)
        self._drop("outrun", now)

    def _falls_back(self, outcome: Outcome, wrong: errors.MindGWError, now: float, *, over: bool, begun: bool = True) -> list[Effect]:
        """The one in front came to nothing, and the other goes on."""
        assert self._attempt is not None
        assert self._aside is not None
        assert self._stay is not None
        self._stay.notes(self._end(outcome, wrong, now))
        if outcome not in TURNED_DOWN:
            self._tally.failures += 1
            self._wrong = wrong.bare()
        if begun:
            self._disappointed()
        self._stages.failover.hedged(TOOK_OVER if self._aside.is_hedge else FAILED)
        self._drop("busy" if outcome in TURNED_DOWN else wrong.code, now, over=over, begun=begun)
        return []

    def _end(self, outcome: Outcome, wrong: errors.MindGWError, now: float) -> Ended:
        """How the one in front ended: with a link, all engines of its worker are gone."""
        assert self._attempt is not None
        seat = self._attempt.placement.seat
        seats = seat.worker.seats.values() if isinstance(wrong, errors.WorkerLost) else (seat,)
        return Ended(outcome, frozenset(each.id for each in seats), now)

    def _part(self, now: float) -> None:
        """The request ends, whatever the one in front has come to; nothing happens when there is no other."""
        if self._aside is not None:
            self._stages.failover.hedged(ENDED)
            self._swap(self._aside)
            self._drop("given_up", now)

    def _let_go(self, outcome: str, now: float) -> list[Effect]:
        self._part(now)
        return super()._let_go(outcome, now)


def _expected(choice: Choice | None) -> float | None:
    """Seconds until the first byte, as they were expected."""
    return choice.cold + choice.ahead + choice.reading if choice is not None else None
