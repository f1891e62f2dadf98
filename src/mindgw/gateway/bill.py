"""What one request costs, and who pays: reserved when it has a slot, settled when it is over, with one row for each attempt.

Nothing is held while it waits. Only one attempt of a request is billed: the one that its client got something of.
"""

from mindgw.core import ceiling, price, usage
from mindgw.core.quota import Budget, Claim
from mindgw.gateway.admission import Ask, Caller, Head
from mindgw.gateway.loans import unavailable
from mindgw.gateway.meter import NOTHING, Drawn, Money, Tally
from mindgw.gateway.reservation import Reservation, Terms
from mindgw.gateway.route import Placement
from mindgw.gateway.stages import Stages
from mindgw.gateway.tag import Tag
from mindgw.store.entries import MOST
from mindgw.store.ledger import Entry
from mindgw_agent import wire

#: Tokens that a text may have beyond its bytes: those of a template and of pictures, which are small when they are plain, and those of
#: thoughts that are not sent. What an engine claims beyond that is a lie or a bug.
UNSEEN = 2**18
_NO_BUDGETS: tuple[Budget, ...] = ()


class Bill:
    """One request's. `close` ends it, once."""

    __slots__ = ("_capped", "_head", "_reservation", "_stages", "_tally", "_terms", "day")

    def __init__(self, stages: Stages, head: Head, tally: Tally) -> None:
        self._stages = stages
        self._head = head
        self._tally = tally
        #: What it seemed to fall under before it had a slot; None: under no limit.
        self._terms: Terms | None = None
        #: What it falls under; None: under no limit, or it never had a slot.
        self._reservation: Reservation | None = None
        #: Whether the engine was sent a lower cap than its caller wrote.
        self._capped = False
        #: UTC date on which it is booked.
        self.day = stages.day()

    @property
    def paid(self) -> int:
        """Tokens of all answers together that are paid for; 0: as many as the engine likes."""
        return self._reservation.paid if self._reservation is not None else 0

    @property
    def answers(self) -> int:
        """Answers that are paid for, where they are counted."""
        return self._reservation.sizes.answers if self._reservation is not None else 1

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The limits that it falls under, as far as that is known."""
        if self._reservation is not None:
            return self._reservation.claims
        return self._terms.claims if self._terms is not None else ()

    def bounded(self, used: usage.Tokens | None) -> usage.Tokens:
        """What is billed of what was used. Whatever an engine made beyond its cap nobody had ordered, and what no text of this length can
        hold is not believed."""
        tally, reservation = self._tally, self._reservation
        if used is None:
            return usage.NOTHING
        prompt, completion = tally.size + UNSEEN, tally.bytes + UNSEEN
        if reservation is not None and reservation.hard:
            paid = reservation.paid
            completion = paid if paid < completion else completion  # noqa: FURB136 (min() is a call, on the hot path)
            if used.source != "engine":
                prompt = min(prompt, reservation.sizes.prompt)  # a guess must not pass what cannot be passed
        if used.prompt <= prompt and used.completion <= completion:
            return used
        return usage.bounded(min(used.prompt, prompt), min(used.completion, completion), used.cached, used.source)

    def lowers(self, now: float) -> bool:
        """Whether the request goes to the end of the queue: some limit that it falls under is used up. `doubts` comes first."""
        terms = self._terms
        return terms is not None and bool(terms.watched) and self._stages.accounts.quotas.lowers(terms, now)

    def doubts(self, ask: Ask, body: bytes) -> Reservation | None:
        """Before the request stands in line: a reservation to be funded first, as a limit that it falls under seems to be used up; None:
        there is no such doubt. Raises QuotaExceeded when it is larger than a whole limit."""
        quotas = self._stages.accounts.quotas
        if not quotas.limits:
            return None
        model = self._stages.fleet.line(ask.needs.model, ask.needs.kind)[0]
        self._terms = terms = quotas.terms(ask.caller, model, self.day)
        if terms is None:
            return None
        doubtful = quotas.may_lack(terms, len(body))
        # a body of fewer bytes than the limit has tokens is no larger than the limit
        if not doubtful and not (terms.hard and len(body) >= terms.smallest):
            return None
        reservation = quotas.open(ask, terms, body, model, None)
        quotas.check(reservation)
        if not quotas.lacks(reservation):
            return None
        if quotas.desk.is_crowded:
            raise unavailable()
        self._reservation = reservation
        return reservation

    # -- one attempt ----------------------------------------------------------------------------------------------

    def reserve(self, ask: Ask, body: bytes, placement: Placement) -> Reservation | None:
        """To be called when it has a slot. None: it may begin; else it must wait until that is funded. Raises QuotaExceeded when it is
        larger than a whole limit."""
        quotas = self._stages.accounts.quotas
        self.day = self._stages.day()
        terms = quotas.terms(ask.caller, placement.model, self.day)
        if terms is None:
            self._reservation = None
            return None
        context = model.context if terms.hard and (model := placement.seat.model(placement.model)) is not None else None
        self._reservation = reservation = quotas.open(ask, terms, body, placement.model, context)
        if reservation.reserve():
            return None
        quotas.check(reservation)
        return reservation

    def body(self, ask: Ask, body: bytes) -> bytes:
        """What the engine is sent: with a cap on its answer where one is needed."""
        if self._reservation is None:
            self._capped = False
            return body
        cap, asked, text = self._reservation.cap, ask.peek.max_tokens, ask.peek.text
        self._capped = bool(cap) and (asked is None or not 0 < asked <= cap)
        if self._capped:
            return ceiling.add_cap(body, cap) if text is not None and not text.caps else ceiling.with_cap(body, cap)
        # what names one cap, or what no limit asks one of, is as it should be
        fits = not cap or (text is not None and text.caps == 1) or ceiling.is_capped(body, cap)
        return body if fits else ceiling.with_cap(body, cap)

    def tag(self, ask: Ask, placement: Placement) -> bytes:
        """The sealed tag of the attempt that was just counted."""
        caller, tally, reservation, accounts = ask.caller, self._tally, self._reservation, self._stages.accounts
        held, most, budgets = 0, 0, _NO_BUDGETS
        if reservation is not None:
            held, most, budgets = reservation.held, reservation.sizes.prompt, reservation.budgets
        prices = accounts.quotas.prices
        value = prices.of(placement.model)
        tag = Tag(
            self._head.request_id, tally.number, caller.key_id, caller.user_id, caller.team_id, caller.org_id, placement.model, ask.path,
            ask.peek.stream, self.day, prices.version, (value.input, value.output), held, accounts.seal.epoch,
            round(tally.started * 1000), round(tally.queued * 1000), budgets, most, tally.size,
        )  # fmt: skip
        return accounts.seal.seal(tag, placement.seat.worker.id)

    def covers(self, model: wire.Model, first: Placement) -> bool:
        """Whether what is held for an attempt at `first` is as much as one needs that another engine answers with `model` in its stead."""
        if model.id != first.model:
            return False
        if self._reservation is None or not self._reservation.hard:
            return True
        other = first.seat.model(first.model)
        return other is not None and model.context == other.context

    def cut(self, finish: str) -> bool:
        """Whether an answer that ended so would be longer, had more been paid for."""
        return self._capped and finish == "length"

    # -- ends -----------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """An attempt came to nothing, before its client saw a byte of it: nothing is held any more, and nothing is billed."""
        if self._reservation is not None:
            self._spare(self._reservation.release())

    def _spare(self, budgets: tuple[Budget, ...]) -> None:
        """Others need what is free of these now."""
        if budgets:
            self._stages.accounts.quotas.desk.spare.update(budgets)

    def waste(self, caller: Caller, code: str, now: float) -> None:
        """An attempt of which nobody knows how far it came has a row of its own, and is not billed. What is held stays so."""
        self._stages.accounts.meter.note(self._row(caller, self._tally.number, "wasted", usage.NOTHING, code, now))

    def close(self, caller: Caller, outcome: str, billed: usage.Tokens | None, now: float) -> Entry:
        """The request is over: `billed` is what its client pays for, None for nothing. Returns its row."""
        tally, reservation, accounts = self._tally, self._reservation, self._stages.accounts
        attempt = tally.number if tally.sent > tally.turned_down else 0
        drawn = NOTHING
        if attempt and billed is not None:
            kind, used = "settled", self.bounded(billed)
            accounts.quotas.learn(tally.model, reservation, used)
            if reservation is not None:
                drawn = self._settle(reservation, used)
        else:
            kind, used = ("wasted", self.bounded(tally.tokens)) if attempt else ("refused", usage.NOTHING)
            if reservation is not None:
                self._spare(reservation.end())
        row = self._row(caller, attempt, kind, used, outcome, now, drawn)
        accounts.meter.settle(row)
        return row

    def _settle(self, reservation: Reservation, used: usage.Tokens) -> Drawn:
        settled = reservation.settle(used)
        self._spare(settled.spare)
        # should another epoch have begun before it is written, the leases of that one have nothing to do with it
        return Drawn(settled.draws, self._stages.accounts.seal.epoch, settled.over)

    def _row(self, caller: Caller, attempt: int, kind: str, used: usage.Tokens, outcome: str, now: float, drawn: Drawn = NOTHING) -> Entry:
        """`kind` is that of the attempt's end."""
        head, prices = self._head, self._stages.accounts.quotas.prices
        value = prices.of(self._tally.model)
        cost = 0 if value is price.FREE else min(price.cost(value, used.prompt, used.completion), MOST)
        money = Money(attempt, kind, self.day, cost, prices.version)
        return self._tally.row((head.request_id, head.path), caller, outcome, now, used, money, drawn)
