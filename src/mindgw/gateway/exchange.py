"""One request from its first byte to its row in the ledger: events in, effects out, nothing awaits.

The lanes (and links, and the clock's sweep) report what happened through `Pipeline.post`, which calls `Exchange.handle` and
hands the effects to the lane. What the stages do (queue, fleet, link, meter) are plain calls made here, in the order of the path:

    identify -> admit -> queue -> place and reserve -> open -> relay -> settle

docs/design/path.md tells the story of a request with this file beside it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from mindgw import errors
from mindgw.core import sse, usage
from mindgw.gateway import admission, relay, replay, signals, transitions
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.attempt import Attempt
from mindgw.gateway.auth import credential
from mindgw.gateway.bill import Bill
from mindgw.gateway.delivery import Delivery, Ending
from mindgw.gateway.flows import SHEDDABLE
from mindgw.gateway.meter import Tally
from mindgw.gateway.patience import FOREVER
from mindgw.gateway.route import Outcome, Placement
from mindgw.gateway.signals import Effect, Event, Fail, Fund, Head, LookUp, State
from mindgw.gateway.stages import Stages
from mindgw.gateway.stay import Stay
from mindgw.gateway.ticket import Ticket
from mindgw.gateway.watch import Watch
from mindgw.store.ledger import Entry
from mindgw_agent import wire

#: Seconds that a worker has to confirm a cancel before its slot is taken back all the same.
CANCEL_GRACE = 120.0
#: How a worker says that it never asked its engine.
_NOT_BEGUN = frozenset({"draining", "engine_unreachable"})


class Exchange:
    """One request. `due` is the monotonic second at which it wants a Tick."""

    __slots__ = (
        "_ask", "_attempt", "_bill", "_body", "_claim", "_delivery", "_outcome", "_owed", "_stages", "_stay",
        "_tally", "_watch", "caller", "due", "head", "lane", "state",
    )  # fmt: skip

    def __init__(self, stages: Stages, head: Head, lane: Any, now: float) -> None:
        self._stages = stages
        self.head = head
        #: Who carries out the effects; taken away when the exchange is done, so that neither keeps the other alive.
        self.lane = lane
        self.state = State.OPENED
        self.due = FOREVER

        #: None until the key is known.
        self.caller: Caller | None = None
        #: None until it has arrived; b"" from the first byte of the answer on, when no other worker can be asked any more.
        self._body: bytes | None = None
        #: The next two are None until it was admitted; the stay is again once it is over.
        self._ask: Ask | None = None
        self._stay: Stay | None = None
        #: What its Idempotency-Key stands for; None when it has none.
        self._claim: replay.Claim | None = None
        #: The current try on a worker; None when there is none.
        self._attempt: Attempt | None = None

        #: What the client gets.
        self._delivery = Delivery()
        #: Bytes taken from the worker that have not left for the client.
        self._owed = 0

        #: What is known of it for its row.
        self._tally = Tally(now, stages.today())
        #: What its limits count from.
        self._watch = Watch(stages, self._tally, now)
        #: How it ended for the client.
        self._outcome = "failed"
        self._bill = Bill(stages, head, self._tally)

    @property
    def begun(self) -> bool:
        """True when the head of a stream has left."""
        return self._delivery.begun

    @property
    def ticket(self) -> Ticket | None:
        """Its place in the queue or in a slot; None before it was admitted and after it was settled."""
        return self._stay.ticket if self._stay is not None else None

    @property
    def worker(self) -> str:
        """Name of the worker that it runs on, "" when it does not."""
        return self._attempt.placement.seat.worker.name if self._attempt is not None else ""

    @property
    def tried(self) -> bool:
        """True when it is, or was, with a worker that did not turn it down."""
        return self._tally.sent > self._tally.turned_down

    @property
    def notes(self) -> list[tuple[bytes, bytes]]:
        """Headers of an answer: where it stood in the queue when it came, and the milliseconds it stood there."""
        if self._tally.placed is None:
            return []
        waited = round(self._tally.queued * 1000)
        return [(b"x-mindgw-queue-position", b"%d" % self._tally.position), (b"x-mindgw-queue-ms", b"%d" % waited)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What is to be done because of `event`; nothing, when the table has no arrow for it in this state."""
        move = TABLE[self.state].get(type(event))
        return move(self, event, now) if move is not None else []

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self._set_due(now)

    # -- identify -------------------------------------------------------------------------------------------------

    def open(self, now: float) -> list[Effect]:
        """The first thing to do for a new request: find out whose key it is. Call it once, before any event."""
        try:
            key = credential(self.head.headers)
            self.caller = self._stages.auth.known(key, now)
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        return [LookUp(key)] if self.caller is None else []

    def identified(self, event: signals.Identified, now: float) -> list[Effect]:
        self.caller = event.caller
        return self._admit(now)

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
            self._tally.model, self._tally.stream = peek.model, peek.stream
            self._claim = registry.claim(self, caller.key_id, body, peek)
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        self._enter(State.ATTACHED, now)
        return self._claim.effects if self._claim.known is None else self.copied(self._claim.known, now)

    def recalled(self, event: signals.Recalled, now: float) -> list[Effect]:
        return self._take_in(now)

    def copied(self, event: signals.Copied, now: float) -> list[Effect]:
        self._tally.status, self._tally.error = event.status, event.code
        return [*event.effects, *self._finish("replayed", now)]

    def _take_in(self, now: float) -> list[Effect]:
        assert self.caller is not None
        assert self._body is not None
        try:
            self._ask = ask = admission.admit(self.caller, self.head, self._body, self._stages.limits, self._stages.fleet.check)
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        self._tally.model, self._tally.stream, self._tally.size = ask.peek.model, ask.peek.stream, len(self._body)
        self._watch.admitted(ask, now)
        try:
            doubtful = self._bill.doubts(ask, self._body)
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        if doubtful is not None:
            self._enter(State.FUNDING, now)
            return [Fund(doubtful)]
        return self._line_up(ask, self._body, now)

    # -- queue ----------------------------------------------------------------------------------------------------

    def _line_up(self, ask: Ask, body: bytes, now: float) -> list[Effect]:
        if self._bill.lowers(now):
            self._ask = ask = replace(ask, flow=replace(ask.flow, rank=SHEDDABLE))
        stages = self._stages
        self._stay = Stay(stages.queue, self.head, ask, len(body), stages.timeouts.queue, self._granted, self._turned_out)
        return self._stand(partial(self._stay.join, body), now)

    def _granted(self, placement: Placement) -> None:
        self._stages.post(self, signals.Turn(placement))

    def _turned_out(self, wrong: errors.MindGWError) -> None:
        self._stages.post(self, signals.Stopped(wrong))

    def _stand(self, join: Callable[[float], Placement | None], now: float) -> list[Effect]:
        self._watch.seen = now
        self._tally.stand(now)
        self.state = State.WAITING
        try:
            placement = join(now)
        except errors.MindGWError as wrong:
            self._stay = None  # it was never taken in
            return self._fail(wrong, now)
        if placement is not None:
            return self._place(placement, now)
        self._set_due(now)
        return []

    # -- place, reserve and open ----------------------------------------------------------------------------------

    def turn(self, event: signals.Turn, now: float) -> list[Effect]:
        return self._place(event.placement, now)

    def _place(self, placement: Placement, now: float) -> list[Effect]:
        """Whoever cannot pay keeps no slot, but one whose lease is dry keeps it until the database has answered."""
        assert self._ask is not None
        assert self._body is not None
        assert self._stay is not None
        self._tally.position = self._stay.ticket.position
        self._attempt = Attempt(self._stages.post, self, placement)
        try:
            unfunded = self._bill.reserve(self._ask, self._body, placement)
        except errors.MindGWError as wrong:
            return self._unpaid(wrong, now)
        if unfunded is None:
            return self._send(now)
        self._enter(State.FUNDING, now)
        return [Fund(unfunded)]

    def funded(self, event: signals.Funded, now: float) -> list[Effect]:
        if self._attempt is not None:
            return self._send(now)
        assert self._ask is not None
        assert self._body is not None
        self._bill.release()  # it was only doubted that there is anything left; whoever waits holds nothing
        return self._line_up(self._ask, self._body, now)

    def unfunded(self, event: signals.Refused, now: float) -> list[Effect]:
        return self._unpaid(event.error, now)

    def _unpaid(self, wrong: errors.MindGWError, now: float) -> list[Effect]:
        if self._attempt is not None:
            self._release(None, now)
        return self._fail(wrong, now)

    def _send(self, now: float) -> list[Effect]:
        assert self._ask is not None
        assert self._attempt is not None
        assert self._body is not None
        assert self._stay is not None
        placement = self._attempt.placement
        self._tally.send(placement.seat.owner, placement.model, now)
        self._enter(State.SENT, now)
        if placement.seat.worker.link.is_lost:
            return self.lost(signals.Lost(), now)
        self._stay.ticket.produced = self._delivery.produced
        self._delivery.paid = self._bill.paid
        tag = self._bill.tag(self._ask, placement)
        self._attempt.open(self.head, self._ask, self._stages.timeouts, self._bill.body(self._ask, self._body), tag)
        return []

    # -- relay ----------------------------------------------------------------------------------------------------

    def answered(self, event: signals.Answered, now: float) -> list[Effect]:
        """All of an answer that came at once: what its first bytes lead to decides what its end means."""
        effects = self._begin(event.head, now)
        return effects if event.close is None else effects + self.handle(signals.Closed(event.close), now)

    def _begin(self, head: wire.Head, now: float) -> list[Effect]:
        assert self._ask is not None
        self._watch.heard = now
        try:
            self._delivery.head(head.status, head.content_type, self._ask.peek, self._stages.limits)
        except errors.MindGWError as wrong:
            return self._abandon(wrong, now)
        self.state = State.RELAYING  # nothing is due earlier than before
        return self._take(head.body, now) if head.body else []

    def data(self, event: signals.Data, now: float) -> list[Effect]:
        return self._take(event.data, now)

    def _take(self, data: bytes, now: float) -> list[Effect]:
        tally = self._tally
        self._watch.heard = now
        self._owed += len(data)
        tally.bytes += len(data)
        if tally.first is None:
            self._first_byte(now)
        try:
            out = self._delivery.feed(data)
        except errors.MindGWError as wrong:
            return self._abandon(wrong, now)
        effects = self._write(out, now) if out else []
        if self._delivery.is_over:
            fault = self._delivery.fault
            return effects + (self._abandon(fault, now) if fault is not None else self._cut(now))
        if not out and self._watch.stuck is None:
            self._pay()
        return effects

    def _cut(self, now: float) -> list[Effect]:
        """The engine goes on beyond what is paid for."""
        self._tally.status = 200
        effects = self._delivery.cut(self._bill.bounded(self._billed("failed")), self._bill.answers, self._ending())
        return [*effects, *self._let_go("done", now)]

    def _ending(self) -> Ending:
        assert self._ask is not None
        return Ending(self._ask.needs.kind, self.head.request_id, self._ask.peek.model, int(self._stages.today().timestamp()))

    def _first_byte(self, now: float) -> None:
        """From here on nobody else can be asked; what an agent that gets lost would never tell is counted along the way."""
        assert self._ask is not None
        self._tally.first = now
        self._tally.tokens = usage.Tokens(self._ask.prompt, 0, 0, "counted")
        if self._stages.dead is not None and self._stages.dead.keep_body:
            self._tally.body = self._body
        self._body = b""

    def _write(self, data: bytes, now: float) -> list[Effect]:
        if self._watch.stuck is None:
            self._watch.stuck = now
        return self._delivery.write(data)

    def drained(self, event: signals.Drained, now: float) -> list[Effect]:
        watch, owed = self._watch, self._owed
        watch.unstick(now, owed)
        if self.state is not State.RELAYING or self.due > watch.next_ping:
            self.due = min(self.due, watch.next_sign(waiting=self.state is State.WAITING, begun=self._delivery.begun))
        if owed:
            self._pay()
        return []

    def _pay(self) -> None:
        """Gives the worker credit for what has left."""
        owed, self._owed = self._owed, 0
        if owed and self._attempt is not None:
            self._attempt.consumed(owed)

    # -- how an attempt ends --------------------------------------------------------------------------------------

    def closed(self, event: signals.Closed, now: float) -> list[Effect]:
        """1 nothing was begun there: back to the head of the line. 2 it failed: the caller hears why. 3 it ended well."""
        close = event.close
        if not self._delivery.started and (close.outcome == "busy" or close.code in _NOT_BEGUN):  # 1
            return self._turned_down(close, now)
        self._release(close, now)
        if close.outcome != "done" or not self._delivery.started:  # 2
            return self._fail(relay.error_of_close(close), now)
        try:
            effects = self._delivery.complete(self._tally.tokens, self._ending() if self._bill.cut(close.finish) else None)  # 3
        except errors.MindGWError as wrong:
            return self._fail(wrong, now)
        self._tally.status = 200
        self._tally.tokens = self._delivery.used(close, self._tally.tokens)
        return [*effects, *self._finish("done", now)]

    def _turned_down(self, close: wire.Close, now: float) -> list[Effect]:
        """The seat rests before its slot is given back, or the next in line would be sent there."""
        assert self._attempt is not None
        self._stages.fleet.rest(self._attempt.placement.seat, now)
        outcome = Outcome.LOST if close.code == "engine_unreachable" else Outcome.BUSY
        return self._again(outcome, self._leave_worker().placement.seat.owner, relay.error_of_close(close), now)

    def lost(self, event: signals.Lost, now: float) -> list[Effect]:
        """Before the first byte another worker is tried; after it the caller hears of the loss."""
        wrong = errors.WorkerLost()
        if self._tally.first is not None:
            self._release(None, now)
            return self._fail(wrong, now)
        assert self.caller is not None
        self._bill.waste(self.caller, wrong.code, now)
        attempt = self._leave_worker()
        self._delivery.restart()
        self._watch.queued = now
        return self._again(Outcome.LOST, attempt.placement.seat.owner, wrong, now)

    def _again(self, outcome: Outcome, worker: str, wrong: errors.MindGWError, now: float) -> list[Effect]:
        """Asks the policy for another attempt; the caller hears `wrong` when there is none."""
        assert self._stay is not None
        self._bill.release()
        self._tally.turn_down(worker, "busy" if outcome is Outcome.BUSY else wrong.code)
        try:
            return self._stand(partial(self._stay.again, outcome, worker), now)
        except LookupError:
            return self._fail(wrong, now)

    def _release(self, close: wire.Close | None, now: float) -> None:
        """Ends the last attempt: what was used is booked before its slot goes to the next."""
        assert self._stay is not None
        self._tally.tokens = self._delivery.used(close, self._tally.tokens)
        self._stay.settle(self._tally.tokens, now)
        self._leave_worker()

    def _leave_worker(self) -> Attempt:
        """Ends the current attempt: its slot is free again."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        attempt.end()
        return attempt

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
        return self._abandon(errors.EngineFailed("The worker sent an answer without its head."), now)

    def tick(self, event: signals.Tick, now: float) -> list[Effect]:
        waiting, watch = self.state is State.WAITING, self._watch
        watch.look(now)
        limit, why = watch.limit(waiting=waiting)
        if now >= limit:
            wrong = why()
            if waiting and wrong.retry_after is None and self._stay is not None:
                wrong.retry_after = self._stay.later(now)
            return self._abandon(wrong, now)
        sign = b""
        if now >= watch.next_sign(waiting=waiting, begun=self._delivery.begun) and self._delivery.between:
            watch.pinged = now
            sign = self._stay.news(now) if waiting and self._stay is not None else sse.PING
        self._set_due(now)
        return self._write(sign, now) if sign else []

    def _set_due(self, now: float) -> None:
        """The next moment at which something may have to be done; bytes that come meanwhile only make the tick a cheap one."""
        if self.state is State.SENT and not self._tally.stream:
            self.due = self._watch.limit(waiting=False)[0]  # nobody is told that he is not forgotten
        elif self._ask is not None:
            self.due = self._watch.due(now, waiting=self.state is State.WAITING, begun=self._delivery.begun)

    def overdue(self, event: signals.Tick, now: float) -> list[Effect]:
        """The agent never confirmed a cancel: the slot is taken back all the same."""
        self._release(None, now)
        return self._finish(self._outcome, now)

    # -- settle ---------------------------------------------------------------------------------------------------

    def _fail(self, wrong: errors.MindGWError, now: float) -> list[Effect]:
        """Tells the client; for when no worker holds anything of this request."""
        self._tally.fail(wrong, self._delivery.begun)
        return [Fail(wrong.bare(), self._delivery.begun), *self._finish("failed", now)]

    def _abandon(self, wrong: errors.MindGWError, now: float) -> list[Effect]:
        """Tells the client, and the worker to stop."""
        self._tally.fail(wrong, self._delivery.begun)
        return [Fail(wrong.bare(), self._delivery.begun), *self._let_go("failed", now)]

    def _let_go(self, outcome: str, now: float) -> list[Effect]:
        """Ends it for the client; the slot stays taken until the worker says that its engine is free."""
        if self._stay is not None:
            self._stay.leave(now)
        if self._attempt is None:
            return self._finish(outcome, now)
        self._outcome = outcome
        self.state = State.CLOSING
        self.due = now + CANCEL_GRACE
        self._attempt.cancel()
        return []

    def confirmed(self, event: signals.Closed, now: float) -> list[Effect]:
        self._release(event.close, now)
        return self._finish(self._outcome, now)

    def dropped(self, event: signals.Lost, now: float) -> list[Effect]:
        self._release(None, now)
        return self._finish(self._outcome, now)

    def _finish(self, outcome: str, now: float) -> list[Effect]:
        self.state = State.DONE
        self.due = FOREVER
        if self._claim is not None:
            self._claim.end()
        if self.caller is not None:
            row = self._bill.close(self.caller, outcome, self._billed(outcome), now)
            if outcome == "failed" and self._stay is not None:
                self._bury(row, self._stay)
        if self._stay is not None:
            self._stay.settle(self._tally.tokens, now)
        self._stay = None
        self._body = b""
        return []

    def _billed(self, outcome: str) -> usage.Tokens | None:
        """What the client pays for: all of an answer that ended well, of others what reached it; None: nothing."""
        return self._tally.tokens if outcome == "done" else self._delivery.delivered(self._tally.tokens)

    def _bury(self, row: Entry, stay: Stay) -> None:
        """Leaves a letter of what was taken in and failed, unless that was nobody's fault but the caller's."""
        tally, dead = self._tally, self._stages.dead
        if dead is not None and tally.wrong is not None:
            dead.add(row, tally.wrong, tally.trail(), stay.ticket.flow.path[-1], tally.size, self._body or tally.body)


Move = Callable[[Exchange, Any, float], list[Effect]]

#: The table of `transitions`, with the steps themselves.
TABLE: dict[State, dict[type, Move]] = {
    state: {event: getattr(Exchange, step) for event, step in steps.items()} for state, steps in transitions.TABLE.items()
}
