"""One request, whatever happens to it: what is known of it, who holds what for it, and how it ends.

`exchange` has the steps; here is what they have in common. Nothing in it waits or looks at a clock.
"""

import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from mindgw import errors
from mindgw.core import usage
from mindgw.core.routing import OWN, both, permits, without_team
from mindgw.core.worker import State as Standing
from mindgw.gateway import admission, moments, replay, signals
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.attempt import CANCEL_GRACE, Attempt
from mindgw.gateway.bill import Bill
from mindgw.gateway.charges import Charges
from mindgw.gateway.delivery import Delivery, Ending, Part
from mindgw.gateway.meter import Tally
from mindgw.gateway.patience import FOREVER
from mindgw.gateway.rates import Pass
from mindgw.gateway.reservation import Reservation
from mindgw.gateway.route import Placement
from mindgw.gateway.signals import CLOSING, DONE, FUNDING, OPENED, WAITING, Effect, Fail, Fund, Head, State
from mindgw.gateway.stages import Stages
from mindgw.gateway.stay import Stay
from mindgw.gateway.story import Facts
from mindgw.gateway.ticket import Ticket
from mindgw.store.ledger import Entry
from mindgw_agent import wire

#: What may not stand in a header: names of models are an agent's words.
_UNFIT = re.compile(r"[^ -~]")


_READY = Standing.READY


class Aside(Struct):
    """One of two tries that run at once: the one that is not in front, which is all that a request has to tell apart of the two."""

    attempt: Attempt
    state: State
    #: Bytes of it that have not left for the client.
    owed: int
    answer: Part
    #: What the tally says of it, see `hedge`.
    noted: tuple[Any, ...]
    #: Whether it is the second one.
    is_hedge: bool


class Request:
    """One request. `due` is the monotonic second at which it wants a Tick."""

    __slots__ = (
        "_alias", "_aside", "_ask", "_attempt", "_bill", "_body", "_charges", "_claim", "_delivery", "_outcome", "_owed", "_pass",
        "_server", "_stages", "_stay", "_tally", "_wrong", "caller", "due", "head", "lane", "state",
    )  # fmt: skip

    def __init__(self, stages: Stages, head: Head, lane: Any, now: float) -> None:
        self._stages = stages
        self.head = head
        #: Who carries out the effects; taken away when the exchange is done, so that neither keeps the other alive.
        self.lane = lane
        self.state = OPENED
        self.due = FOREVER

        #: None until the key is known.
        self.caller: Caller | None = None
        #: What it counts for in rates; None: it falls under none, or was not let in.
        self._pass: Pass | None = None
        #: None until it has arrived; b"" once something of a stream has left, when no other worker can be asked any more.
        self._body: bytes | None = None
        #: The next two are None until it was admitted; the stay is again once it is over.
        self._ask: Ask | None = None
        self._stay: Stay | None = None
        #: What its Idempotency-Key stands for; None when it has none.
        self._claim: replay.Claim | None = None
        #: The current try on a worker; None when there is none. And why the last one came to nothing; None: it did not.
        self._attempt: Attempt | None = None
        self._wrong: errors.MindGWError | None = None
        #: What it has against workers; None: nothing.
        self._charges: Charges | None = None
        #: Another one that runs at the same time; None for almost all requests.
        self._aside: Aside | None = None

        #: The name that was asked for, where the model is known by another one; and who serves it, where that has to be told.
        self._alias = self._server = ""

        #: What the client gets.
        self._delivery = Delivery()
        #: Bytes taken from the worker that have not left for the client.
        self._owed = 0

        #: What is known of it for its row and its limits.
        self._tally = Tally(now, stages.wall())
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
        return self._stay

    @property
    def worker(self) -> str:
        """Name of the worker that it runs on, "" when it does not."""
        return self._attempt.placement.seat.worker.name if self._attempt is not None else ""

    @property
    def tried(self) -> bool:
        """True when it is, or was, with a worker that did not turn it down."""
        return self._tally.sent > self._tally.turned_down

    def notes(self, clock: Callable[[], float]) -> list[tuple[bytes, bytes]]:
        """Headers of an answer: how often its caller may ask, who serves it, where it stood in the queue when it came, and the
        milliseconds it stood there."""
        rates = self._pass.headers(clock()) if self._pass is not None else []
        if self._tally.placed is None:
            return rates
        if self._server:
            rates = [*rates, (b"x-mindgw-served-by", self._server.encode())]
        waited = round(self._tally.queued * 1000)
        return [*rates, (b"x-mindgw-queue-position", b"%d" % self._tally.position), (b"x-mindgw-queue-ms", b"%d" % waited)]

    # -- what the queue tells and asks the holder of a ticket --------------------------------------------------------

    def granted(self, placement: Placement) -> None:
        """Its turn has come."""
        self._stages.post(self, signals.Turn(placement))

    def turned_out(self, wrong: errors.MindGWError) -> None:
        """It has to leave the line."""
        self._stages.post(self, signals.Stopped(wrong))

    def produced(self) -> int | None:
        """Tokens of its answer so far."""
        return self._delivery.produced()

    # -- what operators say -----------------------------------------------------------------------------------------

    def bound(self, event: signals.Bound, now: float) -> list[Effect]:
        """What is with a worker stays there; whoever posted this wakes the queue."""
        if self.caller is None or (home := both(self.caller.home, event.where)) == self.caller.home:
            return []
        self.caller = replace(self.caller, home=home)
        if self._ask is not None:
            self._ask = admission.bound(self._ask, self.caller)
        if self._ask is not None and self._stay is not None:
            self._stay.bind(self._ask, now)
            self._tally.go(self._stay.goal, now)
        return []

    # -- what the steps have in common -------------------------------------------------------------------------------

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self._set_due(now)

    def _set_due(self, now: float) -> None:
        """The next moment at which something may have to be done; bytes that come meanwhile only make the tick a cheap one."""
        if self._ask is not None:
            self.due = self._stages.watch.due(self._tally, now, waiting=self.state is WAITING, begun=self._delivery.begun)

    def _fund(self, reservation: Reservation, now: float) -> list[Effect]:
        """Waits for the database to hold what it may come to cost."""
        placement = self._attempt.placement if self._attempt is not None else None
        moments.note(self._tally.moments, (moments.FUNDING, now, placement))
        self._enter(FUNDING, now)
        return [Fund(reservation)]

    def _write(self, data: bytes, now: float) -> list[Effect]:
        if self._tally.stuck is None:
            self._tally.stuck = now
        return self._delivery.write(data)

    def _pay(self) -> None:
        """Gives the worker credit for what has left."""
        owed, self._owed = self._owed, 0
        if owed and self._attempt is not None:
            self._attempt.consumed(owed)

    def _ending(self) -> Ending:
        assert self._ask is not None
        return Ending(self._ask.needs.kind, self.head.request_id, self._ask.peek.model, int(self._stages.wall()))

    def _is_good(self, placement: Placement) -> bool:
        """Whether it may still go there, as when it was given the slot: rules, tags, reports and workers may be others by now."""
        assert self._ask is not None
        assert self._stay is not None
        needs, seat = self._stay.needs, placement.seat
        model = seat.model(needs.model)
        if model is None or model.id != placement.model or seat.worker.state is not _READY:
            return False
        return permits(needs.where, seat.worker.tags) and admission.is_for(self._ask.caller, placement.names)

    def _note_server(self, placement: Placement) -> None:
        """Who serves a request that is bound to some place, or goes by a route."""
        assert self._ask is not None
        assert self._stay is not None
        model, where = self._stay.goal
        where, worker = without_team(where), placement.seat.worker
        if self._ask.course is None and not where:
            return
        self._alias = self._ask.peek.model if model != self._ask.peek.model else ""
        shown = [worker.name, f"model={placement.model}", *(f"{name}={worker.tags.get(name, '')}" for name, _ in where if name != OWN)]
        self._server = _UNFIT.sub("?", "; ".join(shown))
        if self._delivery.begun:  # its head has left without that
            self._delivery.facts = {"served_by": self._server}

    def _why(self, wrong: errors.MindGWError) -> errors.MindGWError:
        """The error that says it best: nobody came whom it waited for, because it may go to few."""
        bound = self.caller is not None and without_team(self.caller.home)
        if type(wrong) is errors.NoWorker and bound and without_team(self._tally.goal[1]):
            return errors.NoResidence(retry_after=wrong.retry_after)
        return wrong

    # -- what its worker turns out to be, where there was a choice ---------------------------------------------------

    def _hear(self, placement: Placement, now: float) -> None:
        """The first byte came; of an answer in one piece that says nothing."""
        tally = self._tally
        if placement.choice is not None and tally.placed is not None and self._delivery.produced() is not None:
            self._stages.fleet.experience.heard(placement.seat, placement.choice, now - tally.placed, now)

    def _learn(self, placement: Placement, close: wire.Close, now: float) -> None:
        """It is over, and how it went. No more tokens are believed than bytes came."""
        tally, delivery, choice, seen = self._tally, self._delivery, placement.choice, self._stages.fleet.experience
        failed = close.outcome == "failed" or delivery.broke
        if choice is None or tally.placed is None:
            return
        tokens, began = min(tally.tokens.completion, tally.bytes), tally.placed + choice.cold + choice.ahead + choice.reading
        if delivery.produced() is not None and tally.first is not None:
            tokens, began = tokens - 1, tally.first
        seen.ended(placement.seat, choice, tokens, now - began, failed=failed)
        if tally.tokens.source == "engine" and close.outcome == "done":
            seen.remembered(placement.seat, choice, tally.tokens.cached)

    def _disappointed(self) -> None:
        """Its worker was lost, or failed."""
        placement = self._attempt.placement if self._attempt is not None else None
        if placement is not None and placement.choice is not None:
            self._stages.fleet.experience.ended(placement.seat, placement.choice, 0, 0.0, failed=True)

    def _spare(self) -> None:
        """Its worker was given it, and has not begun."""
        placement = self._attempt.placement if self._attempt is not None else None
        if placement is not None and placement.choice is not None:
            self._stages.fleet.experience.spared(placement.seat, placement.choice)

    # -- how an attempt ends --------------------------------------------------------------------------------------

    def _release(self, close: wire.Close | None, now: float) -> None:
        """Ends the last attempt: what was used is booked before its slot goes to the next."""
        assert self._stay is not None
        tally = self._tally
        tally.tokens = used = self._delivery.used(close, tally.tokens)
        if close is not None and self._attempt is not None and self._attempt.placement.choice is not None:
            self._learn(self._attempt.placement, close, now)
        self._stay.settle(used, now)
        self._leave_worker()

    def _leave_worker(self) -> str:
        """Ends the current attempt: its slot is free again. Returns the id of the worker."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        attempt.end()
        return attempt.placement.seat.owner

    # -- how it ends --------------------------------------------------------------------------------------------------

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
        moments.note(self._tally.moments, (moments.LEFT, now, outcome))
        self._outcome = outcome
        self.state = CLOSING
        self.due = now + CANCEL_GRACE
        self._attempt.cancel()
        return []

    def overdue(self, event: signals.Tick, now: float) -> list[Effect]:
        """The agent never confirmed a cancel: the slot is taken back all the same."""
        self._release(None, now)
        return self._finish(self._outcome, now)

    def confirmed(self, event: signals.Closed, now: float) -> list[Effect]:
        self._release(event.close, now)
        return self._finish(self._outcome, now)

    def late(self, event: signals.Answered, now: float) -> list[Effect]:
        """Its answer begins when nobody waits for it any more; the end of it may have come with that."""
        return self.confirmed(signals.Closed(event.close), now) if event.close is not None else []

    def dropped(self, event: signals.Lost, now: float) -> list[Effect]:
        self._release(None, now)
        return self._finish(self._outcome, now)

    def _finish(self, outcome: str, now: float) -> list[Effect]:
        self.state = DONE
        self.due = FOREVER
        if self._claim is not None:
            self._claim.end()
        stay, self._stay = self._stay, None
        if self.caller is not None:
            row = self._bill.close(self.caller, outcome, self._billed(outcome), now)
            if self._pass is not None:
                self._pass.end(row.prompt_tokens + row.completion_tokens, now)
            if outcome == "failed" and stay is not None:
                self._bury(row, stay)
            if self._stages.stories is not None:
                self._stages.stories.add(self._facts(self.caller, stay, row))
        if stay is not None:
            stay.settle(self._tally.tokens, now)
        self._body = b""
        return []

    def facts(self) -> Facts | None:
        """What its story so far is made of; None: nobody knows whose it is."""
        return self._facts(self.caller, self._stay) if self.caller is not None else None

    def _facts(self, caller: Caller, stay: Stay | None, row: Entry | None = None) -> Facts:
        rank, stood = (stay.rank, stay.stood) if stay is not None else (None, None)
        head, bill = self.head, self._bill
        return Facts(
            head.request_id, head.path, caller, self._ask, self._tally, self._pass, bill.claims, rank, stood, self._server, row
        )  # fmt: skip

    def _billed(self, outcome: str) -> usage.Tokens | None:
        """What the client pays for: all of an answer that ended well, of others what reached it; None: nothing."""
        return self._tally.tokens if outcome == "done" else self._delivery.delivered(self._tally.tokens)

    def _bury(self, row: Entry, stay: Stay) -> None:
        """Leaves a letter of what was taken in and failed, unless that was nobody's fault but the caller's."""
        tally, dead = self._tally, self._stages.dead
        if dead is not None and tally.wrong is not None:
            dead.add(row, tally.wrong, tally.trail(), stay.flow.path[-1], tally.size, self._body or tally.body)
