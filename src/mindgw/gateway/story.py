"""What became of each request, for whoever asks why: put together when somebody wants to read it or when it is written down, from what the
request keeps anyway.

Nothing of a prompt, an answer or an error's message is looked at here: names, numbers, moments and codes are all that there is.
"""

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from mindgw import metrics
from mindgw.clock import monotonic
from mindgw.core.quota import Claim
from mindgw.core.routing import Where, tags_of
from mindgw.gateway import moments
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.experience import Choice
from mindgw.gateway.flows import CLASSES
from mindgw.gateway.meter import Refusals, Tally
from mindgw.gateway.moments import Samples
from mindgw.gateway.rates import Pass
from mindgw.gateway.route import Placement
from mindgw.store import ids, stories
from mindgw.store.ledger import Entry
from mindgw.store.stories import Document, Limit, Moment, Story

log = logging.getLogger("mindgw.request")

#: Stories that one batch writes at most, and that may wait for the database; and so that those of requests that went as they should may
#: do so: of more between two batches nobody would read each.
BATCH, MOST, PLAIN = 500, 5000, 500
#: Half of these places are anybody's. Of the other half no key has more than a part, 1 of so many: however many one sends, there is room
#: for others.
SHARES = 10
#: Refused requests of a key and a second that have a story: one is like the other, and each has a row in the ledger.
REFUSED = 10
#: Seconds to a first byte from which on somebody may ask why.
_SLOW = 1.0
#: Workers that a choice tells of.
_CONSIDERED = 10
#: Seconds that an answer takes at least from whose time its speed can be told.
_TELLING = 0.01
#: Characters of a name that somebody else chose.
_NAME = 256


class Facts(Struct, frozen=True):
    """One request as it is now, or was in the end: what its story is made of. The hot path gives them by place."""

    id: str
    endpoint: str
    caller: Caller
    #: None: it was not admitted.
    ask: Ask | None
    tally: Tally
    #: What it counted for in rates, the quotas that it fell under, its class, and where it stood.
    rates: Pass | None
    claims: tuple[Claim, ...]
    rank: int | None
    stood: Samples | None
    served_by: str
    #: The row of its end; None: it goes on.
    row: Entry | None = None


class Stories:
    """Of requests that are over and that no batch has written yet."""

    def __init__(self, counters: metrics.Counters, now: Callable[[], float] = monotonic) -> None:
        self._counters = counters
        #: Monotonic seconds.
        self._now = now
        self._refusals = Refusals(REFUSED)
        # bounded: by MOST, the newest are not taken in
        self._facts: deque[Facts] = deque()
        #: How many of each key came when half of the places were taken, since all was written.
        # bounded: as above
        self._late: Counter[str] = Counter()

    @property
    def unwritten(self) -> int:
        """Stories that are not in the database yet."""
        return len(self._facts)

    def add(self, facts: Facts) -> None:
        """Takes in what is known of a request that is over. Where there are too many they are only counted."""
        tally, row = facts.tally, facts.row
        tally.body = tally.wrong = None  # the one is the request itself, and the other has its frames
        refused = tally.sent == 0 and row is not None and row.outcome == "failed"
        if (refused and not self._refusals.keeps(facts.caller.key_id, self._now())) or (
            len(self._facts) >= PLAIN // 2 and not self._has_room(facts.caller.key_id, PLAIN if _is_plain(tally) else MOST)
        ):
            self._counters.stories_lost += 1
        else:
            self._facts.append(facts)

    def _has_room(self, key_id: str, most: int) -> bool:
        """Whether there is a place for one more of a key, where there are so many for all."""
        held = len(self._facts)
        if held < most // 2:
            return True
        if held >= most or self._late[key_id] >= most // (2 * SHARES):
            return False
        self._late[key_id] += 1
        return True

    async def flush(self, write: Callable[[Sequence[Facts]], Awaitable[None]]) -> int:
        """Writes all that are here now, in batches; returns how many. Raises what `write` raises, losing none. One at a time."""
        self._refusals.forget()  # the meter tells of them
        written = 0
        while self._facts:
            batch = [self._facts[i] for i in range(min(BATCH, len(self._facts)))]
            await write(batch)
            for _ in batch:
                self._facts.popleft()
            written += len(batch)
        self._late.clear()
        return written

    def find(self, request_id: str) -> Story | None:
        """The story of a request that was over a moment ago."""
        return next((told(facts) for facts in reversed(self._facts) if facts.id == request_id), None)


def _is_plain(tally: Tally) -> bool:
    """Whether it went as it should: nobody will ask why."""
    prompt = tally.first is not None and tally.first - tally.arrived < _SLOW
    return prompt and tally.sent == 1 and not tally.turned_down and not tally.error and not tally.queued


def told(facts: Facts) -> Story:
    """The story so far."""
    tally, caller, row = facts.tally, facts.caller, facts.row
    ended = row is not None
    started = datetime.fromtimestamp(tally.started, UTC)
    total_ms = row.total_ms if row is not None else 0
    return Story(
        id=ids.new_id(tally.started + total_ms / 1000),
        request_id=facts.id,
        org_id=caller.org_id,
        team_id=caller.team_id or None,
        user_id=caller.user_id or None,
        key_id=caller.key_id,
        end_user=_clean(facts.ask.flow.path[-1]) if facts.ask is not None else "",
        asked=_clean(tally.asked),
        model=_clean(tally.model),
        worker_id=tally.worker if ended or tally.standing is None else "",
        outcome=row.outcome if row is not None else "",
        status=tally.status if ended else 0,
        error_code=_clean(tally.error),
        attempts=tally.sent,
        tokens_in=row.prompt_tokens if row is not None else 0,
        tokens_out=row.completion_tokens if row is not None else 0,
        queued_ms=round(tally.queued * 1000),
        ttft_ms=_ms(tally.first - tally.arrived) if tally.first is not None else None,
        total_ms=total_ms,
        speed=_speed(tally, row) if row is not None else None,
        started_at=started,
        document=stories.pack(_document(facts)),
    )


def _document(facts: Facts) -> Document:
    tally, ask, row = facts.tally, facts.ask, facts.row
    course = ask.course if ask is not None else None
    return Document(
        endpoint=facts.endpoint,
        stream=tally.stream,
        size=tally.size,
        prompt=ask.prompt if ask is not None else 0,
        cap=min(ask.peek.max_tokens, stories.LARGEST) if ask is not None and ask.peek.max_tokens is not None else None,
        deadline=tally.deadline,
        route=course.route if course is not None else "",
        strategy=course.strategy if course is not None else "",
        priority=CLASSES[facts.rank] if facts.rank is not None else "",
        home=tuple(tags_of(facts.caller.home)),
        limits=tuple(_limits(facts)),
        served_by=_clean(facts.served_by),
        billed=row.kind if row is not None else "",
        cost=row.cost if row is not None else 0,
        price_version=row.price_version if row is not None else "",
        source=row.source if row is not None else "",
        cached=row.cached_tokens if row is not None else 0,
        moments=tuple(_moments(facts)),
    )


def _limits(facts: Facts) -> Iterator[Limit]:
    for scope, unit, limit in facts.rates.limits if facts.rates is not None else ():
        yield Limit(scope, unit, limit)
    for claim in facts.claims:
        yield Limit(claim.budget.scope, claim.budget.unit, claim.limit, claim.period, claim.mode)


def _speed(tally: Tally, row: Entry) -> float | None:
    """Tokens in a second: of a stream from its first one on, of an answer in one piece since its worker had it."""
    if tally.first is None or tally.placed is None:
        return None
    tokens, began = (row.completion_tokens - 1, tally.first) if tally.stream else (row.completion_tokens, tally.placed)
    left = next((moment[1] for moment in tally.moments if moment[0] == moments.LEFT), None)
    seconds = (left if left is not None else tally.arrived + row.total_ms / 1000) - began
    return round(tokens / seconds, 1) if tokens > 0 and seconds >= _TELLING else None


# -- moments -----------------------------------------------------------------------------------------------------------


def _moments(facts: Facts) -> Iterator[Moment]:
    """In the order in which they happened."""
    tally = facts.tally
    came = [Moment(0, "arrived"), *_let_in(tally), *_underway(tally)]
    if facts.stood is not None:
        taken = facts.stood.taken
        came += [Moment(_us(tally, now), "stood", position=position, eta=_rounded(eta)) for now, position, eta in taken]
    came.sort(key=lambda moment: moment.at)  # where two had it at once, the first byte of one may be before the end of the other
    yield from came
    row = facts.row
    if row is not None:
        at = max(row.total_ms * 1000, *(moment.at for moment in came))
        yield Moment(at, "ended", worker=_last(tally), code=_clean(row.error_code or row.outcome), status=tally.status)


def _let_in(tally: Tally) -> Iterator[Moment]:
    looked_up = next((moment[1] for moment in tally.moments if moment[0] == moments.IDENTIFIED), None)
    yield Moment(0, "identified", "memory") if looked_up is None else Moment(_us(tally, looked_up), "identified", "database")
    if tally.admitted is not None:
        yield Moment(_us(tally, tally.admitted), "admitted")


def _underway(tally: Tally) -> Iterator[Moment]:
    first, sent = tally.first, False
    for kind, now, *rest in tally.moments:
        at = _us(tally, now)
        if kind == moments.LEFT and first is not None:
            yield Moment(_us(tally, first), "first_byte", worker=tally.worker)
            first = None
        if kind in {moments.SENT, moments.HEDGED}:
            yield _sent(at, *rest, kind="hedge" if kind == moments.HEDGED else "retry" if sent else "first")
            sent = True
        elif kind in _MADE:
            yield _MADE[kind](tally, at, *rest)
    if first is not None:
        yield Moment(_us(tally, first), "first_byte", worker=tally.worker)


#: What a moment of each other kind is told as; see `gateway.moments`.
_MADE: dict[int, Callable[..., Moment]] = {
    moments.WAITED: lambda _tally, at, place, eta: Moment(at, "waited", position=place, eta=_rounded(eta)),
    moments.MOVED: lambda _tally, at, goal: Moment(at, "moved", model=_clean(goal[0]), where=tuple(tags_of(goal[1]))),
    moments.FUNDING: lambda _tally, at, held: Moment(at, "funding", worker=held.seat.owner if held is not None else ""),
    moments.FUNDED: lambda _tally, at: Moment(at, "funded"),
    moments.FIRST: lambda _tally, at, worker: Moment(at, "first_byte", worker=worker),
    moments.TURNED_DOWN: lambda _tally, at, worker, code: Moment(at, "turned_down", worker=worker, code=_clean(code)),
    moments.FAILED: lambda _tally, at, worker, code, status: Moment(at, "failed", worker=worker, code=_clean(code), status=status),
    moments.LEFT: lambda tally, at, outcome: Moment(at, "left", worker=tally.worker, code=_clean(tally.error or outcome)),
    moments.OMITTED: lambda _tally, at, count: Moment(at, "omitted", count=count),
}


def _sent(at: int, placement: Placement, goal: tuple[str, Where], *, kind: str) -> Moment:
    choice = _choice(placement.choice, placement.seat.owner) if placement.choice is not None else None
    tags = tuple(tags_of(goal[1]))
    return Moment(at, "sent", kind, placement.seat.owner, _clean(placement.model), tags, choice=choice)


def _choice(choice: Choice, taken: str) -> stories.Choice:
    best = sorted(choice.considered, key=lambda each: each[1])
    shown = best[:_CONSIDERED] + [each for each in best[_CONSIDERED:] if each[0] == taken]
    return stories.Choice(
        choice.strategy,
        tuple((worker, round(seconds, 4)) for worker, seconds in shown),
        choice.prompt,
        round(choice.cached),
        round(choice.cold, 3),
        round(choice.ahead, 3),
        round(choice.reading, 4),
    )


def _last(tally: Tally) -> str:
    """Who had it in the end."""
    return tally.worker if tally.sent > tally.turned_down else ""


def _us(tally: Tally, now: float) -> int:
    return max(0, round((now - tally.arrived) * 1e6))


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 1) if seconds is not None else None


def _clean(text: str) -> str:
    """What any database can store: names of models are an agent's or a caller's words."""
    text = text[:_NAME]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def written(facts: Iterable[Facts]) -> list[Story]:
    """As they are stored. One that cannot be told is left out: it must not keep back all others."""
    found = []
    for each in facts:
        try:
            found.append(told(each))
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            log.exception("what became of request %s cannot be told and is not kept", each.id)
    return found
