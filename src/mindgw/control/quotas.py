"""Limits on what may be used, as management sees them. Every change is audited in its own transaction; news goes out when it is on the
disk, so that the running gateway obeys at once."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control import scopes
from mindgw.control.amounts import dollars
from mindgw.control.pages import Page
from mindgw.core import quota
from mindgw.errors import BadRequest, NotFound, PreconditionFailed
from mindgw.gateway.snapshot import Snapshot
from mindgw.store import audit, budgets, quotas
from mindgw.store.audit import Who
from mindgw.store.database import Database
from mindgw.store.quotas import Standing
from mindgw.store.tables import Quota

#: Told that limits were changed.
News = Callable[[], Awaitable[object]]
#: Unit and period of a limit.
Which = tuple[str, str]

Scope = Annotated[str, Meta(min_length=1, max_length=scopes.MAX)]
Limits = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=len(quota.PERIODS))]

_FREE = "Without prices nothing costs anything: `prices` in config.yaml says what the tokens of a model cost."

#: Models that are named in one warning.
_SHOWN = 3


class QuotaView(Struct, frozen=True, kw_only=True):
    """A limit, and how much of it is used in its window. Tokens are whole numbers; dollars are decimals, as text."""

    #: As people write it: key:ID, user:EMAIL, team:NAME, org:NAME or model:NAME.
    scope: str
    #: What the key, person, team and so on is called.
    name: str
    #: tokens or usd.
    unit: str
    #: day, month or total.
    period: str
    #: The day or the month that it is now, in UTC, such as 2026-11; or total.
    window: str
    limit: int | str
    #: What stands in the ledger.
    used: int | str
    #: What requests that run may come to use, and what servers keep at hand for the next ones.
    reserved: int | str
    #: How far it went beyond the limit, at most.
    over: int | str
    #: What was used before a reset.
    forgiven: int | str
    #: limit - used - reserved, never below 0.
    left: int | str
    #: block, soft, queue-low, alert or shadow.
    on_exceed: str
    #: When the next window begins; None: never.
    resets_at: datetime | None
    version: int


class QuotaWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one scope; those that it does not name stay as they are."""

    scope: Scope
    #: Such as 5M/month, 100k/day, 1000/total.
    tokens: Limits = []
    #: In dollars, such as 12.50/month.
    usd: Limits = []
    #: block, soft, queue-low, alert or shadow; empty: as it was, and block for a new limit.
    on_exceed: str = ""


class QuotaChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one scope: all, or those of a unit, a period, or both."""

    scope: Scope
    unit: str = ""
    period: str = ""


class QuotasSet(Struct, frozen=True):
    """Limits as they are now."""

    items: list[QuotaView]
    #: What their maker should know.
    warnings: list[str] = []


async def listing(database: Database, scope: str | None = None) -> Page[QuotaView]:
    """All limits, or those of one scope. Raises BadRequest, NotFound for a scope that is not there."""
    async with database.read() as session:
        stored = None if scope is None else await scopes.find(session, scope)
        return Page(await _views(session, stored))


class Ground(NamedTuple):
    """What the running server knows of whether a limit can come to anything."""

    #: Whether tokens cost anything.
    priced: bool
    #: What is connected now.
    snapshot: Snapshot


async def put(
    database: Database, who: Who | str, wish: QuotaWish, changed: News, ground: Ground, *, version: int | None = None
) -> QuotasSet:
    """Sets limits, all of them or none. Raises BadRequest, NotFound, Conflict, and PreconditionFailed when one of them is not at that
    version."""
    wanted = _limits(wish)
    if wish.on_exceed not in {"", *quota.MODES}:
        raise BadRequest(f"'on_exceed' must be {_listed(quota.MODES)}, not {wish.on_exceed[:63]!r}.", param="on_exceed")
    async with database.write() as session:
        await budgets.guard(session, alone=True)
        scope = await scopes.find_to_set(session, wish.scope)
        for (unit, period), limit in wanted.items():
            row = Quota(scope=scope, unit=unit, period=period, lim=limit, on_exceed=wish.on_exceed)
            await _put(session, who, row, version)
        views = await _views(session, scope, wanted)
    await changed()
    free = [] if ground.priced or not wish.usd else [_FREE]
    return QuotasSet(views, free + _unknown_model(scope, ground.snapshot))


def _unknown_model(stored: str, snapshot: Snapshot) -> list[str]:
    """What is to be said of a limit of a model that nobody has by this id now. Limits go by the id: an alias never has one."""
    kind, _, name = stored.partition(":")
    known = [model for view in snapshot.workers for engine in view.engines for model in engine.models]
    if kind != "model" or any(name == model.id for model in known):
        return []
    meant = sorted({model.id for model in known if name in model.aliases})
    if not meant:
        return [f"No connected worker has a model {name!r} now: `mindgw models list` shows those that can be asked for."]
    ids = " and ".join(repr(id) for id in meant[:_SHOWN]) + (" and others" if len(meant) > _SHOWN else "")
    return [f"{name!r} is another name of {ids}: limits go by the id, this one never counts anything. Set one for model:{meant[0]}."]


async def reset(database: Database, who: Who | str, choice: QuotaChoice, changed: News, *, version: int | None = None) -> Page[QuotaView]:
    """Forgives what was used in the windows that it is now. Raises as `clear`."""
    async with database.write() as session:
        await budgets.guard(session, alone=True)
        rows = await _chosen(session, choice, version)
        for row in rows:
            before = await quotas.reset(session, row.scope, row.unit, row.period, _today())
            await _note(session, who, "quota.reset", row, window=before.window, forgiven=before.forgiven)
        views = await _views(session, rows[0].scope, [(row.unit, row.period) for row in rows])
    await changed()
    return Page(views)


async def clear(database: Database, who: Who | str, choice: QuotaChoice, changed: News, *, version: int | None = None) -> Page[QuotaView]:
    """Takes limits away; returns them as they were. Raises BadRequest, NotFound when there are none of these, Conflict,
    PreconditionFailed."""
    async with database.write() as session:
        await budgets.guard(session, alone=True)
        rows = await _chosen(session, choice, version)
        views = await _views(session, rows[0].scope, [(row.unit, row.period) for row in rows])
        for row in rows:
            await _note(session, who, "quota.clear", row)
            await quotas.clear(session, row.scope, row.unit, row.period)
    await changed()
    return Page(views)


def _limits(wish: QuotaWish) -> dict[Which, int]:
    """What a wish says. Raises BadRequest."""
    found: dict[Which, int] = {}
    for unit, texts in ((quota.TOKENS, wish.tokens), (quota.USD, wish.usd)):
        for text in texts:
            try:
                limit, period = quota.parse_limit(text, unit)
            except ValueError as wrong:
                raise BadRequest(f"'{unit}': {wrong}.", param=unit) from None
            if (unit, period) in found:
                raise BadRequest(f"'{unit}' has two limits for the same period: {period}.", param=unit)
            found[unit, period] = limit
    if not found:
        raise BadRequest("A limit is missing: 'tokens' such as 5M/month, 'usd' such as 12.50/month, or both.", param="tokens")
    return found


async def _put(session: AsyncSession, who: Who | str, wanted: Quota, version: int | None) -> None:
    before = await session.get(Quota, (wanted.scope, wanted.unit, wanted.period), populate_existing=True)
    if before is None and version is not None:
        raise PreconditionFailed(f"There is no limit for the {wanted.unit} per {wanted.period} any more.")
    wanted.on_exceed = wanted.on_exceed or (before.on_exceed if before is not None else quota.BLOCK)
    was: dict[str, int | str] = {"was": before.lim, "was_on_exceed": before.on_exceed} if before is not None else {}
    row = await quotas.put(session, wanted, _today(), version=version)
    await _note(session, who, "quota.set", row, limit=row.lim, on_exceed=row.on_exceed, **was)


async def _chosen(session: AsyncSession, choice: QuotaChoice, version: int | None) -> Sequence[Quota]:
    """At least one."""
    for param, said, known in (("unit", choice.unit, quota.UNITS), ("period", choice.period, quota.PERIODS)):
        if said not in {"", *known}:
            raise BadRequest(f"'{param}' must be {_listed(known)}, not {said[:63]!r}.", param=param)
    scope = await scopes.find_to_set(session, choice.scope)
    where = [col(Quota.scope) == scope]
    where += [col(Quota.unit) == choice.unit] if choice.unit else []
    where += [col(Quota.period) == choice.period] if choice.period else []
    rows = (await session.exec(select(Quota).where(*where).order_by(col(Quota.unit), col(Quota.period)))).all()
    if not rows:
        kind = " ".join(filter(None, [choice.unit, f"per {choice.period}" if choice.period else ""]))
        raise NotFound(f"There is no limit{f' of {kind}' if kind else ''} for {choice.scope[:80]}.", hint=quotas.SEE)
    for row in rows:
        if version is not None and row.version != version:
            raise PreconditionFailed(f"It is at version {row.version} by now, not {version}.")
    return rows


async def _note(session: AsyncSession, who: Who | str, action: str, row: Quota, **detail: int | str) -> None:
    await audit.record(session, who, action, row.scope, unit=row.unit, period=row.period, **detail)


async def _views(session: AsyncSession, scope: str | None, only: Iterable[Which] | None = None) -> list[QuotaView]:
    day = _today()
    standings = await quotas.standings(session, day, scope=scope)
    chosen = None if only is None else set(only)
    versions = {(row.scope, row.unit, row.period): row.version for row in await _rows(session, scope)}
    seen = [one for one in standings if (one.scope, one.unit, one.period) in versions]  # of the organisation that asks
    shown = [one for one in seen if chosen is None or (one.unit, one.period) in chosen]
    named = await scopes.named(session, {one.scope for one in shown})
    return [_view(one, named[one.scope], versions[one.scope, one.unit, one.period], day) for one in shown]


async def _rows(session: AsyncSession, scope: str | None) -> Sequence[Quota]:
    return (await session.exec(select(Quota).where(*([] if scope is None else [Quota.scope == scope])))).all()


def _view(one: Standing, name: str, version: int, day: str) -> QuotaView:
    shown = dollars if one.unit == quota.USD else int
    end = quota.resets(one.period, day)
    return QuotaView(
        scope=scopes.written(one.scope, name),
        name=name,
        unit=one.unit,
        period=one.period,
        window=one.window,
        limit=shown(one.limit),
        used=shown(one.used),
        reserved=shown(one.reserved),
        over=shown(one.over),
        forgiven=shown(one.forgiven),
        left=shown(max(0, one.limit - one.used - one.reserved)),
        on_exceed=one.on_exceed,
        resets_at=datetime.fromisoformat(end).replace(tzinfo=UTC) if end else None,
        version=version,
    )


def _today() -> str:
    return clock.utcnow().date().isoformat()


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
