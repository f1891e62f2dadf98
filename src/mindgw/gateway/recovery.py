"""What becomes of a request when a worker does not do its part: another one is asked while its client has seen nothing of an answer, as far
as `route.attempts` allows; after that the client hears why.

One attempt of a request is billed. Each other one that may have reached an engine leaves a row of its own, with nothing to pay.
"""

from mindgw import errors
from mindgw.core.breaker import Who
from mindgw.gateway import relay
from mindgw.gateway.charges import Charges
from mindgw.gateway.failover import FULL, UNABLE
from mindgw.gateway.hedge import Hedge
from mindgw.gateway.route import TURNED_DOWN, Needs, Outcome
from mindgw.gateway.signals import Effect
from mindgw.gateway.stay import Stay
from mindgw_agent import wire

#: What an agent says when it could not reach its engine, and when it does not do such things: nobody who asks can bring that about.
UNREACHABLE, REFUSED = "engine_unreachable", "refused"
#: And when its owner wants the box for other things, or for other teams.
PAUSED, OTHER_TEAM = "paused", "other_team"
_ENDS = {UNREACHABLE: Outcome.LOST, REFUSED: Outcome.UNABLE, OTHER_TEAM: Outcome.FAILED}
#: Whose fault it is when an engine has no such model, or no such way to ask for it.
_LACKING = frozenset({"model", "route"})


class Recovery(Hedge):
    """A request that may be tried on several workers."""

    __slots__ = ()

    def _again(self, now: float) -> list[Effect]:
        """Stands in line for another worker."""
        raise NotImplementedError

    # -- an attempt that came to nothing --------------------------------------------------------------------------

    def _turned_down(self, close: wire.Close, now: float) -> list[Effect]:
        """Nothing was begun there. The seat rests before its slot is given back, or the next in line would be sent there; a worker that its
        owner wants for other things takes nothing more, and one that turns away whom its report welcomes has failed."""
        assert self._attempt is not None
        assert self._stay is not None
        stages, placement, wrong = self._stages, self._attempt.placement, relay.error_of_close(close)
        if close.code == PAUSED:
            stages.fleet.pauses(placement.seat.worker)
        elif close.code != OTHER_TEAM:
            stages.fleet.rest(placement.seat, now)
        outcome = _ENDS.get(close.code, Outcome.BUSY)
        if outcome is not Outcome.BUSY:
            stages.failover.failed(placement, self._stay.needs.where, now)
        if outcome is Outcome.UNABLE:
            self._disappointed()
        return self._return(outcome, wrong, now)

    def _refused(self, wrong: errors.MindGWError, now: float) -> list[Effect]:
        """Its engine says that it has no room. Once it has said so again and again, with nothing served, that is no room but a failure."""
        assert self._attempt is not None
        assert self._stay is not None
        stages, placement = self._stages, self._attempt.placement
        if placement.seat.is_weary:
            stages.failover.failed(placement, self._stay.needs.where, now, self._who())
        stages.fleet.rest(placement.seat, now)
        return self._return(Outcome.FULL, wrong, now)

    def _misplaced(self, now: float) -> list[Effect]:
        """Its worker was good for it no longer once it was funded, and was not sent it."""
        return self._return(Outcome.BUSY, errors.NoResidence(), now)

    def _return(self, outcome: Outcome, wrong: errors.MindGWError, now: float) -> list[Effect]:
        """Nothing was begun: back to the head of the line."""
        self._spare()
        if self._aside is not None:
            return self._falls_back(outcome, wrong, now, over=True, begun=False)
        goes_on = self._goes_on(outcome, wrong, now)
        self._bill.release()
        self._tally.turn_down(self._leave_worker(), "busy" if outcome in TURNED_DOWN else wrong.code, now)
        return self._again(now) if goes_on else self._fail(self._told(wrong), now)

    def _failed(self, wrong: errors.MindGWError, now: float, close: wire.Close | None = None, *, over: bool = False) -> list[Effect]:
        """What was begun there came to nothing; `close` or `over` say that the worker has let go of it already."""
        outcome = self._blame(wrong, now, close)
        if outcome is Outcome.FULL:
            return self._refused(wrong, now)
        if outcome is not None and self._aside is not None:
            return self._falls_back(outcome, wrong, now, over=over or close is not None)
        if outcome is not None and not self._delivery.spoken:
            goes_on = self._goes_on(outcome, wrong, now)
            if goes_on or outcome is Outcome.LOST:
                self._give_up(wrong, now, over=over or close is not None)
                return self._again(now) if goes_on else self._fail(self._told(wrong), now)
        self._part(now)
        wrong = self._told(wrong)
        if close is None and not over:
            return self._abandon(wrong, now)
        if close is None:
            self._disappointed()
        self._release(close, now)
        return self._fail(wrong, now)

    def _blame(self, wrong: errors.MindGWError, now: float, close: wire.Close | None) -> Outcome | None:
        """How the attempt ended; None when that is no fault of its worker, and no other worker would do better."""
        if isinstance(wrong, errors.WorkerLost):
            return Outcome.LOST
        if isinstance(wrong, errors.ContextTooLong):
            return None
        # an error that breaks off is no word of its engine, whatever its status
        status = self._delivery.status if close is not None and close.outcome == "done" else 0
        if status in FULL:
            return Outcome.FULL
        if status in UNABLE:
            blame = self._delivery.blame
            if blame in _LACKING or blame == "engine":
                self._accuse(now, lacks=blame in _LACKING)
            return Outcome.UNABLE
        if isinstance(wrong, errors.EngineRefused) or not isinstance(wrong, errors.UpstreamError):
            return None
        self._accuse(now)
        return Outcome.FAILED

    def _accuse(self, now: float, *, lacks: bool = False) -> None:
        """The worker may be to blame."""
        assert self._attempt is not None
        assert self._stay is not None
        if self._charges is None:
            self._charges = Charges(self._stages.failover, self._who())
        self._charges.add(self._attempt.placement, self._stay.needs.where, now, lacks=lacks)

    def _who(self) -> Who:
        """Keys of nobody are those of their team, or of their whole organisation: one hand may hold many of them."""
        assert self.caller is not None
        caller = self.caller
        if caller.user_id:
            return Who(caller.org_id, caller.user_id)
        return Who(caller.org_id, caller.team_id or caller.org_id, caller.key_id)

    def _may(self, needs: Needs, now: float) -> bool:
        assert self.caller is not None
        return self._stages.failover.may(self.caller.org_id, needs, now)

    def _goes_on(self, outcome: Outcome, wrong: errors.MindGWError, now: float) -> bool:
        """Whether another worker is to be asked."""
        assert self._attempt is not None
        assert self._stay is not None
        failover, tally, total = self._stages.failover, self._tally, self._stages.timeouts.total
        if outcome not in TURNED_DOWN:
            tally.failures += 1
            self._wrong = wrong.bare()
        if tally.placed is not None and tally.spent + now - tally.placed >= total:
            return False
        ended = self._end(outcome, wrong, now)
        goes_on = self._stay.goes_on(ended, self._may, failover.tries, self._stages.fleet)
        if goes_on and outcome not in TURNED_DOWN:
            failover.replaced(wrong.code)
        return goes_on

    def _give_up(self, wrong: errors.MindGWError, now: float, *, over: bool) -> None:
        """The attempt has a row of its own. `over`: the worker has let go of it; else the slot stays taken until it does."""
        assert self.caller is not None
        assert self._attempt is not None
        self._disappointed()
        self._bill.release()
        self._bill.waste(self.caller, wrong.code, now)
        worker = self._attempt.placement.seat.owner
        if over:
            self._leave_worker()
        else:
            attempt, self._attempt = self._attempt, None
            attempt.leave_to(self._stages.failover.leftovers, now)
        self._owed = 0
        self._tally.give_up(worker, wrong.code, now, self._delivery.status)
        self._delivery.restart()

    # -- what is said of it ---------------------------------------------------------------------------------------

    def _served(self, now: float) -> None:
        """The engine does its part."""
        assert self._attempt is not None
        self._stages.failover.served(self._attempt.placement, now)
        if self._charges is not None:
            self._charges.served(now)
        if self._aside is not None:
            self._wins(now)

    def _told(self, wrong: errors.MindGWError) -> errors.MindGWError:
        """The error as its caller hears it: with how often it was tried in vain."""
        if self._tally.failures > 1 and isinstance(wrong, errors.UpstreamError | errors.WorkerLost):
            wrong.message = f"{wrong.message} (tried {self._tally.failures} times)"
        return wrong

    def _check(self, stay: Stay, now: float) -> None:
        """Raises the error that says why nobody will serve it; where its course leads on, it has gone on."""
        while True:
            try:
                return self._stages.failover.check(stay.needs, now, self._who())
            except errors.MindGWError:
                if not stay.skips(self._stages.fleet):
                    raise
            self._tally.go(stay.goal, now)

    def _in_vain(self, now: float) -> errors.MindGWError | None:
        """Why it makes no sense to wait any longer; None while it does, which may be elsewhere."""
        assert self._stay is not None
        wrong = self._hopeless(self._stay, now)
        if wrong is None:
            return None
        if self._stay.elsewhere(self._stages.fleet, now, in_vain=True):
            self._tally.go(self._stay.goal, now)  # who sweeps wakes the queue
            return None
        return self._told(wrong)

    def _hopeless(self, stay: Stay, now: float) -> errors.MindGWError | None:
        failover, needs = self._stages.failover, stay.needs
        if self._wrong is not None and failover.is_stranded(needs, now):
            return self._wrong
        try:
            failover.check(needs, now, self._who())
        except (errors.ModelNotFound, errors.NoResidence):
            return None  # its workers may come back
        except errors.MindGWError as wrong:
            return wrong.bare()
        return None
