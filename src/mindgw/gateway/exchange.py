"""One request from its first byte to its row in the ledger: events in, effects out, nothing awaits.

The lanes (and links, and the clock's sweep) report what happened through `Pipeline.post`, which calls `Exchange.handle` and
hands the effects to the lane. What the stages do (queue, fleet, link, meter) are plain calls made here, in the order of the path:

    identify -> admit -> queue -> place and reserve -> open -> relay -> settle

docs/design/path.md tells the story of a request with this file beside it.
"""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from mindgw import errors
from mindgw.core import sse, usage
from mindgw.gateway import admission, moments, relay, replay, signals, transitions
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.attempt import CANCEL_GRACE, Attempt
from mindgw.gateway.auth import credential
from mindgw.gateway.flows import SHEDDABLE
from mindgw.gateway.recovery import REFUSED, UNREACHABLE, Recovery
from mindgw.gateway.route import Placement
from mindgw.gateway.signals import ATTACHED, RELAYING, SENT, WAITING, Effect, Event, LookUp, State
from mindgw.gateway.stay import Stay
from mindgw_agent import wire

__all__ = ["CANCEL_GRACE", "TABLE", "Exchange"]

#: States in which a worker has it.
_RUNNING = frozenset({SENT, RELAYING})
#: How a worker says that it never asked its engine.
_NOT_BEGUN = frozenset({"draining", UNREACHABLE, REFUSED})


class Exchange(Recovery):
    """The steps of one request, in the order of its path."""

    __slots__ = ()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What is to be done because of `event`; nothing, when the table has no arrow for it in this state."""
        move = TABLE[self.state].get(type(event))
        return move(self, event, now) if move is not None else []

    # -- identify -------------------------------------------------------------------------------------------------

    def open(self, now: float) -> list[Effect]:
        """The first thing to do for a new request: find out whose key it is. Call it once, before any event."""
        rates, address = self._stages.accounts.rates, self.head.address
        try:
            key = credential(self.head.headers)
            self.caller = self._stages.auth.known(key, now)
            if self.caller is None:
                rates.patience(address, now)
        except errors.MindGWError as wrong:
            return self._fail(rates.blame(address, wrong, now), now)
        return [LookUp(key)] if self.caller is None else self._let_in(self.caller, now)

    def identified(self, event: signals.Identified, now: float) -> list[Effect]:
        self.caller = event.caller
        self._tally.moments.append((moments.IDENTIFIED, now))
        return self._let_in(event.caller, now) or self._admit(now)

    def _let_in(self, caller: Caller, now: float) -> list[Effect]:
        """Whatever its head says that speaks against it."""
        try:
            admission.require_use(caller)
            if caller.scope is not None:
                caller.scope.admit(self.head.path, self.head.address)
            self._pass = self._stages.accounts.rates.enter(caller, now)
        except errors.PolicyError as wrong:
            return self._fail(wrong, now)
        return []

    def received(self, event: signals.Received, now: float) -> list[Effect]:
        self._body = event.body
        return self._admit(now)

    def refused(self, event: signals.Refused, now: float) -> list[Effect]:
        return self._fail(event.error, now)

    # -- admit ----------------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> list[Effect]:
        if self.caller is None or self._body is None:
            return []
        if self._stages.accounts.meter.full:
            return self._fail(errors.Draining("Usage cannot be written at the moment.", code="ledger_unavailable", retry_after=10), now)
        if self._stages.replay is not None and replay.given(self.head.headers) is not None:
            return self._attach(self._stages.replay, self.caller, self._body, now)
        return self._take_in(now)

    def _attach(self, registry: replay.Replay, caller: Caller, body: bytes, now: float) -> list[Effect]:
        """Its answer may be known, or on its way to another request."""
        try:
            peek = admission.read(self.head.path, body, self._stages.limits)
            self._tally.ask(peek.model, peek.stream)
            self._claim = registry.claim(self, caller.key_id, body, peek)
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        self._enter(ATTACHED, now)
        return self._claim.effects if self._claim.known is None else self.copied(self._claim.known, now)

    def recalled(self, event: signals.Recalled, now: float) -> list[Effect]:
        return self._take_in(now)

    def copied(self, event: signals.Copied, now: float) -> list[Effect]:
        self._tally.status, self._tally.error = event.status, event.code
        return [*event.effects, *self._finish("replayed", now)]

    def _take_in(self, now: float) -> list[Effect]:
        assert self.caller is not None
        assert self._body is not None
        body, stages, tally = self._body, self._stages, self._tally
        try:
            self._ask = ask = admission.admit(self.caller, self.head, body, stages.limits, stages.fleet, stages.routes)
            tally.ask(ask.peek.model, ask.peek.stream)
            tally.goal = ask.needs.model, ask.needs.where
            tally.size, tally.deadline, tally.since, tally.admitted = len(body), ask.deadline, now, now
            if self._pass is not None:
                self._pass.charge(ask, now)
            doubtful = self._bill.doubts(ask, body)
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        return self._fund(doubtful, now) if doubtful is not None else self._line_up(ask, body, now)

    # -- queue ----------------------------------------------------------------------------------------------------

    def _line_up(self, ask: Ask, body: bytes, now: float) -> list[Effect]:
        if self._bill.lowers(now):
            self._ask = ask = replace(ask, flow=replace(ask.flow, rank=SHEDDABLE))
        stages = self._stages
        self._stay = stay = Stay(stages.queue, self.head, ask, len(body), stages.timeouts.queue, self)
        self._stand(now)
        try:
            if not stages.fleet.breaker.is_quiet:
                self._check(stay, now)
            placement = stay.join(body, now)
        except errors.MindGWError as wrong:
            self._stay = None  # it was never taken in
            return self._fail(wrong, now)
        return self._place(placement, now) if placement is not None else self._wait(now)

    def _stand(self, now: float) -> None:
        self._tally.stand(now)
        self.state = WAITING

    def _wait(self, now: float) -> list[Effect]:
        assert self._stay is not None
        moments.note(self._tally.moments, (moments.WAITED, now, 0 if self._tally.sent else self._stay.position, self._stay.eta))
        self._set_due(now)
        return []

    def _again(self, now: float) -> list[Effect]:
        assert self._stay is not None
        self._stand(now)
        placement = self._stay.again(now)
        self._tally.go(self._stay.goal, now)
        return self._place(placement, now) if placement is not None else self._wait(now)

    # -- place, reserve and open ----------------------------------------------------------------------------------

    def turn(self, event: signals.Turn, now: float) -> list[Effect]:
        return self._place(event.placement, now)

    def _place(self, placement: Placement, now: float) -> list[Effect]:
        """Whoever cannot pay keeps no slot, but one whose lease is dry keeps it until the database has answered."""
        assert self._ask is not None
        assert self._body is not None
        assert self._stay is not None
        self._tally.position = self._stay.position
        self._attempt = Attempt(self._stages.post, self, placement)
        try:
            admission.recheck(self._ask, placement)
            unfunded = self._bill.reserve(self._ask, self._body, placement)
        except errors.MindGWError as wrong:
            return self._unpaid(wrong, now)
        return self._fund(unfunded, now) if unfunded is not None else self._send(now)

    def funded(self, event: signals.Funded, now: float) -> list[Effect]:
        moments.note(self._tally.moments, (moments.FUNDED, now))
        if self._attempt is not None:
            return self._send(now, late=True)
        assert self._ask is not None
        assert self._body is not None
        self._bill.release()  # it was only doubted that there is anything left; whoever waits holds nothing
        return self._line_up(self._ask, self._body, now)

    def unfunded(self, event: signals.Refused, now: float) -> list[Effect]:
        return self._unpaid(event.error, now)

    def _unpaid(self, wrong: errors.MindGWError, now: float) -> list[Effect]:
        if self._attempt is not None:
            self._spare()
            self._release(None, now)
        return self._fail(wrong, now)

    def _send(self, now: float, *, late: bool = False) -> list[Effect]:
        """`late`: time has passed since it was given the slot."""
        assert self._ask is not None
        assert self._attempt is not None
        assert self._body is not None
        ask, bill, placement = self._ask, self._bill, self._attempt.placement
        seat = placement.seat
        if not self._tally.sent:
            self._stages.failover.offer(ask.caller.org_id, now)
        self._tally.send(placement, now)
        if ask.hedge:
            self._give_time(placement, now)
        self._enter(SENT, now)
        if seat.worker.link.is_lost:
            return self.lost(signals.Lost(), now)
        if late and not self._is_good(placement):
            return self._misplaced(now)
        if ask.course is not None or ask.needs.where:
            self._note_server(placement)
        self._delivery.paid = bill.paid
        self._attempt.open(self.head, ask, self._stages.timeouts, bill.body(ask, self._body), bill.tag(ask, placement))
        return []

    # -- relay ----------------------------------------------------------------------------------------------------

    def answered(self, event: signals.Answered, now: float) -> list[Effect]:
        """All of an answer that came at once: what its first bytes lead to decides what its end means."""
        attempt = self._attempt
        effects = self._begin(event.head, event.close, now)
        if self._attempt is not attempt:
            return effects  # another worker is asked
        if event.close is not None:
            return effects + self.handle(signals.Closed(event.close), now)
        if not effects and self._tally.stuck is None:
            self._pay()
        return effects

    def _begin(self, head: wire.Head, close: wire.Close | None, now: float) -> list[Effect]:
        assert self._ask is not None
        self._tally.heard = now
        try:
            self._delivery.head(head.status, head.content_type, self._ask.peek, self._stages.limits, self._alias)
        except errors.MindGWError as wrong:
            return self._failed(wrong, now, close)
        self.state = RELAYING  # nothing is due earlier than before
        return self._take(head.body, now, close) if head.body else []

    def data(self, event: signals.Data, now: float) -> list[Effect]:
        attempt = self._attempt
        effects = self._take(event.data, now)
        if not effects and self._attempt is attempt and self._tally.stuck is None:
            self._pay()  # what is kept here, or came to nothing, has not to leave first
        return effects

    def _take(self, data: bytes, now: float, close: wire.Close | None = None) -> list[Effect]:
        """`close`: how the attempt ended, when that came with it."""
        tally, delivery, size = self._tally, self._delivery, len(data)
        tally.heard = now
        self._owed += size
        tally.bytes += size
        if tally.first is None:
            self._first_byte(now)
        try:
            out = delivery.feed(data)
        except errors.MindGWError as wrong:
            return self._failed(wrong, now, close)
        effects: list[Effect] = []
        if out:
            if not delivery.spoken:
                self._speak(now)
            effects = delivery.write(out)
            if tally.stuck is None:
                tally.stuck = now
        if delivery.is_over:
            fault = delivery.fault
            return effects + (self._failed(fault, now, close) if fault is not None else self._cut(now))
        return effects

    def _cut(self, now: float) -> list[Effect]:
        """The engine goes on beyond what is paid for."""
        self._tally.status = 200
        effects = self._delivery.cut(self._bill.bounded(self._billed("failed")), self._bill.answers, self._ending())
        return [*effects, *self._let_go("done", now)]

    def _first_byte(self, now: float) -> None:
        """What an agent that gets lost would never tell is counted along the way."""
        assert self._ask is not None
        self._tally.first = now
        if self._attempt is not None and self._attempt.placement.choice is not None:
            self._hear(self._attempt.placement, now)
        if self._ask.hedge:
            self._note_time(now)
        self._tally.tokens = usage.Tokens(self._ask.prompt, 0, 0, "counted")

    def _speak(self, now: float) -> None:
        """From here on nobody else can be asked."""
        self._delivery.spoken = True
        self._served(now)
        if self._stages.dead is not None and self._stages.dead.keep_body:
            self._tally.body = self._body
        self._body = b""

    def drained(self, event: signals.Drained, now: float) -> list[Effect]:
        tally, owed = self._tally, self._owed
        tally.stuck = None
        if owed:
            tally.heard = now  # a worker that is owed credit may have been silent because it must, and has its full time from now on
        watch = self._stages.watch
        # no ping to a client that is being answered is due before that
        if self.state is not RELAYING or self.due > tally.heard + watch.keepalive:
            self.due = min(self.due, watch.next_sign(tally, waiting=self.state is WAITING, begun=self._delivery.begun))
        if owed:
            self._pay()
        return []

    # -- how an attempt ends --------------------------------------------------------------------------------------

    def closed(self, event: signals.Closed, now: float) -> list[Effect]:
        """1 nothing was begun there: back to the head of the line. 2 it failed. 3 it ended well."""
        close, delivery, tally = event.close, self._delivery, self._tally
        started = delivery.started
        if not started and (close.outcome == "busy" or close.code in _NOT_BEGUN):  # 1
            return self._turned_down(close, now)
        tally.tokens = delivery.used(close, tally.tokens)
        if close.outcome != "done" or not started:  # 2
            return self._failed(relay.error_of_close(close), now, close)
        try:
            effects = delivery.complete(tally.tokens, self._bill.cut(close.finish), self._ending)  # 3
        except errors.MindGWError as wrong:
            return self._failed(wrong, now, close)
        if not delivery.spoken:
            self._served(now)
        self._release(close, now)
        tally.status = 200
        return effects + self._finish("done", now)

    def lost(self, event: signals.Lost, now: float) -> list[Effect]:
        return self._failed(errors.WorkerLost(), now, over=True)

    # -- the client, the operator, the clock ----------------------------------------------------------------------

    def gone(self, event: signals.Gone, now: float) -> list[Effect]:
        if self._claim is not None and self._claim.hang_up():
            return self.drained(signals.Drained(), now)
        self._tally.error = "client_disconnected"
        if self._stay is not None and self._body is not None:
            self._stay.hang_up(self._body, now)
        return self._let_go("cancelled", now)

    def stopped(self, event: signals.Stopped, now: float) -> list[Effect]:
        return self._abandon(event.error, now)

    def early(self, event: signals.Data, now: float) -> list[Effect]:
        return self._failed(errors.EngineFailed("The worker sent an answer without its head."), now)

    def tick(self, event: signals.Tick, now: float) -> list[Effect]:
        waiting, tally, watch = self.state is WAITING, self._tally, self._stages.watch
        if waiting and self._stay is not None and self._stay.elsewhere(self._stages.fleet, now):
            tally.go(self._stay.goal, now)  # who sweeps wakes the queue
        watch.look(tally, now)
        limit, why = watch.limit(tally, waiting=waiting)
        if now >= limit:
            wrong = self._why(why())
            if waiting and wrong.retry_after is None and self._stay is not None:
                wrong.retry_after = self._stay.later(now)
            return self._failed(wrong, now) if self.state in _RUNNING else self._abandon(wrong, now)
        if now >= tally.hedge:
            self._hedge(now)
        if waiting and (vain := self._in_vain(now)) is not None:
            return self._abandon(vain, now)
        sign = b""
        if now >= watch.next_sign(tally, waiting=waiting, begun=self._delivery.begun) and self._delivery.between:
            tally.pinged = now
            sign = self._stay.news(now) if waiting and self._stay is not None else sse.PING
        self._set_due(now)
        return self._write(sign, now) if sign else []


Move = Callable[[Exchange, Any, float], list[Effect]]

#: The table of `transitions`, with the steps themselves.
TABLE: dict[State, dict[type, Move]] = {
    state: {event: getattr(Exchange, step) for event, step in steps.items()} for state, steps in transitions.TABLE.items()
}
