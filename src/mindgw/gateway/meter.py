"""What a finished request cost: one row each, kept in memory until the writer takes the batch to the ledger.

The request path only appends to a list. A task of the server calls `flush` a few times a second and once more at the end;
a batch that the database refuses stays here and is offered again.
"""

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Protocol

from msgspec import Struct

from mindgw import errors, metrics
from mindgw.clock import monotonic
from mindgw.core import usage
from mindgw.core.quota import Draw
from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway.moments import FAILED, FIRST, MOVED, SENT, TURNED_DOWN, Moment, note
from mindgw.gateway.patience import FOREVER
from mindgw.store.ledger import COLUMNS, Entry

log = logging.getLogger("mindgw.request")
_columns = attrgetter(*COLUMNS)
_books = logging.getLogger("mindgw.ledger")

#: Rows that one batch writes at most.
BATCH = 1000
#: Requests of one key that were refused in one second which have a row each; a client that asks on and on must not fill the disk.
REFUSALS = 100
#: Tries of one request that are remembered, the last ones: a worker may turn it down any number of times.
TRIED = 20


class Payer(Protocol):
    """Whose row it is."""

    @property
    def key_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def team_id(self) -> str: ...
    @property
    def org_id(self) -> str: ...


class Place(Protocol):
    """An engine of a worker."""

    @property
    def owner(self) -> str: ...


class Placed(Protocol):
    """A slot, and what the model is called there."""

    @property
    def seat(self) -> Place: ...
    @property
    def model(self) -> str: ...


class Money(Struct, frozen=True, gc=False):
    """Which attempt a row is of, what kind of end it had, and what that costs."""

    attempt: int = 1
    kind: str = "settled"
    day: str = ""
    cost: int = 0
    price_version: str = ""


class Drawn(Struct, frozen=True, gc=False):
    """What an attempt took out of leases, of which epoch's, and the tokens beyond them."""

    draws: tuple[Draw, ...] = ()
    lease_epoch: int = 0
    over: int = 0


FREE, NOTHING = Money(), Drawn()


class Tally:
    """What is known of one request for its row, and the moments that its limits count from (`patience.Moments`); monotonic seconds
    throughout, but for the stamp."""

    __slots__ = (
        "admitted", "arrived", "asked", "body", "bytes", "deadline", "error", "failures", "first", "goal", "heard", "hedge", "hedged",
        "model", "moments", "number", "pinged", "placed", "position", "queued", "seen", "sent", "since", "size", "spent", "standing",
        "started", "status", "stream", "stuck", "tokens", "tried", "turned_down", "worker", "wrong",
    )  # fmt: skip

    def __init__(self, arrived: float, started: float) -> None:
        #: When it came in, and the same moment on the wall.
        self.arrived = arrived
        self.started = started
        #: See `patience.Moments`.
        self.since = self.seen = self.heard = self.pinged = arrived
        self.deadline: float | None = None
        self.stuck: float | None = None
        #: When it was given a slot, and when the first byte of its answer came; None before that.
        self.placed: float | None = None
        self.first: float | None = None
        #: When a second try of it is due beside the one that runs, and whether there was one.
        self.hedge = FOREVER
        self.hedged = False
        #: Seconds for which workers had it that failed it.
        self.spent = 0.0
        #: Seconds that it waited for a slot, each time that it did; and since when it does now, None: it does not.
        self.queued = 0.0
        self.standing: float | None = None
        #: Where it stood in the queue when it came; 0: it did not have to wait.
        self.position = 0
        #: Bytes of the answer that came from the worker.
        self.bytes = 0
        #: Status that the caller saw; 499 when it left before there was one.
        self.status = 499
        #: Code of the error, "" when all went well.
        self.error = ""
        #: Worker that it was sent to last.
        self.worker = ""
        #: What was asked for, empty until admitted; and what the worker calls it, once it was sent.
        self.asked = ""
        self.model = ""
        #: What a worker must serve, and where it must be, for this to go on.
        self.goal: tuple[str, Where] = ("", EVERYWHERE)
        self.stream = False
        self.tokens = usage.NOTHING
        #: What went wrong in the end; None when nothing did.
        self.wrong: errors.MindGWError | None = None
        #: Bytes of its body; and the body, where one that fails is to be kept, from the first byte of the answer on.
        self.size = 0
        self.body: bytes | None = None
        #: Times that it was sent to a worker, and how many of them came to nothing; which of them it is about now; and of those that came
        #: to nothing the last: (worker id, outcome).
        self.sent = self.turned_down = self.number = 0
        self.tried: tuple[tuple[str, str], ...] = ()
        #: Tries that failed, or were lost.
        self.failures = 0
        #: When it was taken in, its body being here; None before that.
        self.admitted: float | None = None
        #: What became of it along the way; see `gateway.moments`, which keeps them few.
        self.moments: list[Moment] = []

    def ask(self, model: str, stream: bool) -> None:
        """It is known what was asked for."""
        self.asked = self.model = model
        self.goal = (model, EVERYWHERE)
        self.stream = stream

    def stand(self, now: float) -> None:
        """It waits for a slot."""
        self.standing = self.seen = now

    def rise(self, now: float) -> None:
        """It waits no longer."""
        if self.standing is not None:
            if now > self.standing:
                self.queued += now - self.standing
            self.standing = None

    def go(self, goal: tuple[str, Where], now: float) -> None:
        """Goes on to this model in this place, which may be where it went before."""
        if goal != self.goal:
            self.goal = goal
            note(self.moments, (MOVED, now, goal))

    def send(self, placement: Placed, now: float, kind: int = SENT) -> None:
        """It has a slot of that worker, which knows the model by that name. `kind`: SENT, or HEDGED for one beside another."""
        self.rise(now)
        self.placed = now
        self.sent = self.number = self.sent + 1
        self.worker, self.model = placement.seat.owner, placement.model
        self.moments.append((kind, now, placement, self.goal))

    def turn_down(self, worker: str, outcome: str, now: float) -> None:
        """Notes that a try came to nothing, before its caller saw a byte of it, and before anything was begun."""
        note(self.moments, (TURNED_DOWN, now, worker, outcome))
        self._came_to_nothing(worker, outcome)

    def give_up(self, worker: str, outcome: str, now: float, status: int) -> None:
        """The same for what had begun there: another worker begins from the start, and its wait for a slot begins now. `status` is the
        engine's, 0 for none."""
        self.drop(worker, outcome, now, status)
        if self.placed is not None:
            self.spent += now - self.placed
        self.first, self.tokens, self.bytes = None, usage.NOTHING, 0
        self.since = now

    def drop(self, worker: str, outcome: str, now: float, status: int) -> None:
        """The same where another worker has it already."""
        if self.first is not None:
            note(self.moments, (FIRST, self.first, worker))
        note(self.moments, (FAILED, now, worker, outcome, status))
        self._came_to_nothing(worker, outcome)

    def _came_to_nothing(self, worker: str, outcome: str) -> None:
        self.turned_down += 1
        self.tried = (*self.tried[1 - TRIED :], (worker, outcome))

    def trail(self) -> tuple[tuple[str, str], ...]:
        """(worker id, outcome) of the last tries, one that failed in the end included."""
        return (*self.tried, (self.worker, self.error)) if self.sent > self.turned_down else self.tried

    def fail(self, wrong: errors.MindGWError, begun: bool) -> None:
        """Notes how it failed; a client whose stream has `begun` saw 200 long before."""
        self.wrong = wrong
        self.error = wrong.code
        self.status = 200 if begun else wrong.status

    def row(
        self,
        request: tuple[str, str],
        payer: Payer,
        outcome: str,
        now: float,
        tokens: usage.Tokens,
        money: Money = FREE,
        drawn: Drawn = NOTHING,
    ) -> Entry:
        """A row of the ledger. `request` is its id and the path of its door; `outcome` done, cancelled or failed, or what became of an
        attempt; `money` and `drawn` are what this class knows nothing of."""
        if self.standing is not None:
            self.rise(now)
        arrived, first = self.arrived, self.first
        return Entry(
            request[0], money.attempt, money.kind,
            payer.key_id, payer.user_id or None, payer.team_id or None, payer.org_id,
            self.model, self.worker, request[1], self.stream, self.status, outcome, self.error,
            tokens.prompt, tokens.completion, tokens.cached, tokens.source,
            _ms(self.queued) if self.queued else 0, _ms(first - arrived) if first is not None else None, _ms(now - arrived), self.bytes,
            money.cost, money.price_version, drawn.over, money.day, datetime.fromtimestamp(self.started, UTC),
            drawn.draws, drawn.lease_epoch,
        )  # fmt: skip


def _ms(seconds: float) -> int:
    return round(seconds * 1000) if seconds > 0 else 0


class Refusals:
    """Which requests that were refused are kept: of each key the first ones of a second. Monotonic seconds."""

    def __init__(self, most: int = REFUSALS) -> None:
        #: How many of a key and a second.
        self._most = most
        #: The second that it is, and how many each key had in it.
        # bounded: by the keys that ask within a second
        self._second = 0
        self._seen: Counter[str] = Counter()
        #: When the log last told of some without a row, and how many each key had since.
        # bounded: by the keys that ask between two flushes
        self._told = -1.0
        self._left_out: Counter[str] = Counter()

    def keeps(self, key_id: str, now: float) -> bool:
        """Whether one more is kept."""
        if int(now) != self._second:
            self._second = int(now)
            self._seen.clear()
        self._seen[key_id] += 1
        if self._seen[key_id] <= self._most:
            return True
        self._left_out[key_id] += 1
        return False

    def tell(self, now: float) -> None:
        """Logs how many have none, once a second at most."""
        if not self._left_out or 0 <= now - self._told < 1.0:
            return
        (key_id, most), *_ = self._left_out.most_common(1)
        text = "%d refused requests were counted only and have no row in the ledger, %d of them of key %s: %d of a key have one each second"
        _books.warning(text, self._left_out.total(), most, key_id, self._most)
        self._told = now
        self.forget()

    def forget(self) -> None:
        """Nobody is to be told of those so far."""
        self._left_out.clear()


class Meter:
    """Counts finished requests and hands their rows to the ledger in batches."""

    def __init__(
        self,
        append: Callable[[list[Entry]], Awaitable[None]],
        counters: metrics.Counters,
        capacity: int = 200_000,
        now: Callable[[], float] = monotonic,
    ) -> None:
        #: Writes a batch in one transaction; raises when nothing of it was written.
        self._append = append
        #: Everything that is counted about requests.
        self.counters = counters
        self._now = now
        self._refusals = Refusals()
        #: Rows that no batch has written yet, oldest first.
        # bounded: `capacity`, beyond which the pipeline takes no new requests (see `full`)
        self._rows: deque[Entry] = deque()
        #: Those of them that no line of the log tells of yet.
        # bounded: as above
        self._news: deque[Entry] = deque()
        self._capacity = capacity

    @property
    def full(self) -> bool:
        """True when the database has been away for so long that another row might be lost."""
        return len(self._rows) >= self._capacity

    @property
    def unwritten(self) -> int:
        """Rows that are not in the ledger yet."""
        return len(self._rows)

    def has(self, request_id: str) -> bool:
        """Whether a row of this request is yet to be written."""
        return any(row.request_id == request_id for row in self._rows)

    def note(self, row: Entry) -> None:
        """Takes the row of an attempt that came to nothing; its request goes on."""
        self._rows.append(row)

    def settle(self, row: Entry) -> None:
        """Takes the row of a finished request; call it once for each. Of too many refusals the row goes no further."""
        self.counters.finished(row)
        if row.kind == "refused" and row.outcome == "failed" and not self._refusals.keeps(row.key_id, self._now()):
            return
        self._rows.append(row)
        self._news.append(row)

    async def flush(self) -> int:
        """Logs what is new, then writes all rows that are here now, in batches; returns how many. Raises what the database raises,
        losing none. One at a time."""
        while self._news:
            report([self._news.popleft() for _ in range(min(BATCH, len(self._news)))])
        self._refusals.tell(self._now())
        written = 0
        while self._rows:
            batch = [self._rows[i] for i in range(min(BATCH, len(self._rows)))]
            await self._append(batch)
            for _ in batch:
                self._rows.popleft()
            written += len(batch)
        return written


def report(rows: Sequence[Entry]) -> None:
    """One line of the log for each finished request; all of them in one record, which costs a third of as many."""
    if log.isEnabledFor(logging.INFO):
        log.info("%d requests", len(rows), extra={"lines": [(_said(row), dict(zip(COLUMNS, _columns(row), strict=True))) for row in rows]})


def _said(row: Entry) -> str:
    return f"{row.request_id} {row.endpoint} {row.model} {row.status} {row.outcome}"
