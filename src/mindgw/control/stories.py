"""What became of requests, as management tells it: those that are over, found by what they were, and each of them moment by moment, also
while it waits or runs. Never what it said."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from msgspec import Struct
from sqlalchemy import and_
from sqlmodel import col, or_
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock, config
from mindgw.control import scopes
from mindgw.control.amounts import dollars
from mindgw.control.live import Live
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.story_views import Candidate, ChoiceView, LimitView, MomentView, Paid, RequestView, StoryView
from mindgw.core.quota import USD
from mindgw.errors import BadRequest, Forbidden, NotFound
from mindgw.quantities import duration
from mindgw.store import ids, stories
from mindgw.store.database import Database
from mindgw.store.stories import Choice, Document, Limit, Moment, Story
from mindgw.store.tables import Story as Row

__all__ = ["RequestView", "StoryView", "Wanted", "append", "forget", "listing", "own", "show"]

OUTCOMES = ("done", "cancelled", "failed", "replayed")
_CLASS = re.compile(r"[1-5]xx")
_STATUS = re.compile(r"[1-5][0-9]{2}")
#: Field of a view -> column with the id of what it names.
_NAMED = {"key": "key_id", "user": "user_id", "team": "team_id", "org": "org_id", "worker": "worker_id"}
#: The largest number of seconds that anybody may ask about.
_LONGEST = 10**6


class Wanted(Struct, frozen=True, kw_only=True):
    """Which requests; what is empty leaves nothing out."""

    #: A status such as 429, or a class of them such as 5xx.
    status: str = ""
    #: Such as 5s or 500ms: those that took at least that long.
    slow: str = ""
    #: As it was asked for, or as its worker calls it.
    model: str = ""
    #: Id or name of a key; address of a person, or an end user behind a trusted proxy; name of a team; name or id of a worker.
    key: str = ""
    user: str = ""
    team: str = ""
    worker: str = ""
    #: done, cancelled, failed or replayed.
    outcome: str = ""
    #: When it was over: a moment such as 2026-11-01T12:00:00Z, a UTC day such as 2026-11-01, or a span that ends now, such as 15m.
    since: str = ""
    until: str = ""


async def append(database: Database, told: Sequence[Story]) -> None:
    """Writes stories, all or none."""
    async with database.write() as session:
        await stories.append(session, told)


async def forget(database: Database, settings: config.Requests, now: datetime) -> int:
    """Takes away what is older than the settings allow, or too much; returns how many."""
    before, gone = now - timedelta(days=settings.keep_days), 0
    while True:
        async with database.read() as session:
            doomed = await stories.surplus(session, before, settings.most)
        for start in range(0, len(doomed), stories.STEP):
            async with database.write() as session:
                await stories.drop(session, doomed[start : start + stories.STEP])
        gone += len(doomed)
        if len(doomed) < stories.LOT:
            return gone


# -- lists -------------------------------------------------------------------------------------------------------------


async def listing(database: Database, who: Principal, wanted: Wanted, *, before: str | None = None, limit: int) -> Page[RequestView]:
    """Requests that are over, the latest first; `database` shows those that may be seen. Raises BadRequest, NotFound and Conflict for
    names that name nobody or several, and Forbidden for machines that are not for who asks."""
    async with database.read() as session:
        rows = await stories.page(session, *await _where(session, who, wanted), before=before, limit=limit)
        names = await _names(session, rows)
        found = [RequestView(**_facts(row, names)) for row in rows]
    return Page(found, rows[-1].id if len(rows) >= limit else None)


async def _where(session: AsyncSession, who: Principal, wanted: Wanted) -> list[Any]:
    if wanted.worker and not _knows_machines(who):
        raise Forbidden("Which machines there are is known to whoever runs the server.", code="not_yours")
    if wanted.outcome not in {"", *OUTCOMES}:
        raise BadRequest(f"'outcome' must be {', '.join(OUTCOMES[:-1])} or {OUTCOMES[-1]}, not {wanted.outcome[:63]!r}.", param="outcome")
    where: list[Any] = [col(Row.outcome) == wanted.outcome] if wanted.outcome else []
    where += [_of_status(wanted.status)] if wanted.status else []
    where += [col(Row.total_ms) >= _milliseconds(wanted.slow)] if wanted.slow else []
    where += [or_(col(Row.asked) == wanted.model, col(Row.model) == wanted.model)] if wanted.model else []
    for kind, column in (("key", Row.key_id), ("team", Row.team_id), ("worker", Row.worker_id)):
        if name := getattr(wanted, kind):
            where.append(col(column) == await scopes.lookup(session, kind, name))
    if wanted.user:
        where.append(or_(col(Row.user_id) == await _person(session, wanted.user), col(Row.end_user) == wanted.user))
    now = clock.utcnow()
    where += [col(Row.id) >= ids.bound(_moment(wanted.since, "since", now, timedelta()).timestamp())] if wanted.since else []
    where += [col(Row.id) < ids.bound(_moment(wanted.until, "until", now, timedelta(days=1)).timestamp())] if wanted.until else []
    return where


def _knows_machines(who: Principal) -> bool:
    return who.is_home and who.may("read", "workers")


async def _person(session: AsyncSession, name: str) -> str:
    """The id of a person; what names none, which may be an end user, stays as it is."""
    try:
        return await scopes.lookup(session, "user", name)
    except NotFound:
        return name


def _of_status(text: str) -> Any:
    if _STATUS.fullmatch(text):
        return col(Row.status) == int(text)
    if not _CLASS.fullmatch(text):
        raise BadRequest(f"'status' must be a status such as 429, or a class such as 5xx, not {text[:63]!r}.", param="status")
    first = int(text[0]) * 100
    return and_(col(Row.status) >= first, col(Row.status) < first + 100)


def _milliseconds(text: str) -> int:
    try:
        seconds = duration(text)
    except ValueError:
        seconds = _LONGEST + 1
    if seconds > _LONGEST:
        raise BadRequest(f"'slow' must be a time such as 5s or 500ms, not {text[:63]!r}.", param="slow")
    return int(seconds * 1000)


def _moment(text: str, param: str, now: datetime, whole_day: timedelta) -> datetime:
    """A moment; when a day begins, or with `whole_day` ends; how long ago a span is."""
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC) + whole_day
    except (ValueError, OverflowError):
        pass
    try:
        said = datetime.fromisoformat(text)
        return said if said.tzinfo is not None else said.replace(tzinfo=UTC)
    except ValueError:
        pass
    try:
        return now - timedelta(seconds=duration(text))
    except (ValueError, OverflowError):
        what = "a moment such as 2026-11-01T12:00:00Z, a day such as 2026-11-01, or a span such as 15m or 7d"
        raise BadRequest(f"'{param}' must be {what}, not {text[:63]!r}.", param=param) from None


# -- one of them -------------------------------------------------------------------------------------------------------


async def show(database: Database, who: Principal, live: Live, request_id: str) -> StoryView:
    """One request, as far as it has come; `database` shows those that may be seen. Raises NotFound."""
    async with database.read() as session:
        told = _live(live, who, request_id) or await stories.find(session, request_id)
        if told is None:
            raise _unknown(request_id)
        return await _view(session, who, told)


async def own(database: Database, who: Principal, live: Live, request_id: str) -> StoryView:
    """The same for whoever sent it: the key, or the person whose key did. Raises NotFound."""
    async with database.read() as session:
        told = _live(live, who, request_id) or await stories.find(session, request_id)
        if told is None or not _is_own(who, told):
            raise _unknown(request_id)
        return await _view(session, who, told)


def _live(live: Live, who: Principal, request_id: str) -> Story | None:
    told = live.story(request_id)
    return told if told is not None and (who.is_home or told.org_id == who.org_id) else None


def _is_own(who: Principal, told: Story) -> bool:
    if told.org_id != who.org_id:
        return False
    return told.key_id == who.key_id if who.key_id else bool(who.user_id) and told.user_id == who.user_id


def _unknown(request_id: str) -> NotFound:
    hint = "the id is what its client has in x-mindgw-request-id; `requests.keep_days` in config.yaml says how long requests are remembered"
    return NotFound(f"Nothing is known of a request {request_id[:80]!r}.", hint=hint)


async def _view(session: AsyncSession, who: Principal, told: Story) -> StoryView:
    said = stories.unpack(told.document)
    names = await _names(session, [told], said)
    limits = await scopes.named(session, {limit.scope for limit in said.limits})
    paid = Paid(kind=said.billed, cost_usd=dollars(said.cost), tokens_cached=said.cached, counted_by=said.source) if said.billed else None
    machines = names["worker"] if _knows_machines(who) else {}
    return StoryView(
        **_facts(told, names),
        endpoint=said.endpoint,
        stream=said.stream,
        size=said.size,
        prompt_tokens=said.prompt,
        max_tokens=said.cap,
        deadline_s=said.deadline,
        route=said.route,
        strategy=said.strategy,
        priority=said.priority,
        bound_to=list(said.home),
        limits=[_limit(limit, limits[limit.scope]) for limit in said.limits],
        served_by=said.served_by,
        paid=paid,
        moments=[_moment_view(moment, names["worker"], machines) for moment in said.moments],
    )


async def _names(session: AsyncSession, told: Iterable[Row | Story], said: Document | None = None) -> dict[str, dict[str, str]]:
    """Kind -> id -> name."""
    found = {kind: {getattr(one, column) or "" for one in told} for kind, column in _NAMED.items()}
    for moment in said.moments if said is not None else ():
        considered = moment.choice.considered if moment.choice is not None else ()
        found["worker"] |= {moment.worker, *(worker for worker, _ in considered)}
    return {kind: await scopes.names(session, kind, some) for kind, some in found.items()}


def _facts(row: Row | Story, names: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The fields of a `RequestView`."""
    ended = row.started_at + timedelta(milliseconds=row.total_ms) if row.outcome else None
    return {
        "id": row.request_id,
        "state": "over" if row.outcome else "running" if row.worker_id else "waiting",
        "outcome": row.outcome,
        "status": row.status,
        "code": row.error_code,
        "model": row.asked,
        "served_model": row.model,
        "key_id": row.key_id,
        **{kind: names[kind][getattr(row, column) or ""] for kind, column in _NAMED.items()},
        "end_user": row.end_user,
        "attempts": row.attempts,
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
        "tokens_per_s": row.speed,
        "queued_ms": row.queued_ms,
        "ttft_ms": row.ttft_ms,
        "total_ms": row.total_ms,
        "started_at": row.started_at,
        "ended_at": ended,
    }


def _limit(limit: Limit, name: str) -> LimitView:
    amount = dollars(limit.limit) if limit.unit == USD else str(limit.limit)
    scope = scopes.written(limit.scope, name)
    return LimitView(scope=scope, unit=limit.unit, limit=amount, period=limit.period, on_exceed=limit.mode)


def _moment_view(moment: Moment, names: Mapping[str, str], machines: Mapping[str, str]) -> MomentView:
    """`machines`: names of those that whoever asks may know of beside the ones that had the request."""
    return MomentView(
        at_s=moment.at / 1e6,
        what=moment.what,
        kind=moment.kind,
        worker=names[moment.worker],
        model=moment.model,
        where=list(moment.where),
        code=moment.code,
        status=moment.status,
        position=moment.position,
        eta_s=moment.eta,
        count=moment.count,
        choice=_choice(moment.choice, machines) if moment.choice is not None else None,
    )


def _choice(choice: Choice, machines: Mapping[str, str]) -> ChoiceView:
    """Without machines nothing is told of what a box had loaded, or had to do for others."""
    return ChoiceView(
        strategy=choice.strategy,
        considered=[Candidate(machines[worker], seconds) for worker, seconds in choice.considered if worker in machines],
        prompt_tokens=choice.prompt,
        cached_tokens=choice.cached,
        cold_s=choice.cold if machines else 0.0,
        ahead_s=choice.ahead if machines else 0.0,
        reading_s=choice.reading,
    )
