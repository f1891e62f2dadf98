"""How often users, teams and organisations may ask, as management sees it. News goes out when it is on the disk."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import scopes
from mindgw.control.key_bounds import RATES, Few, Number
from mindgw.control.pages import Page
from mindgw.control.quotas import News
from mindgw.errors import BadRequest, NotFound, PreconditionFailed
from mindgw.store import audit, rates
from mindgw.store.audit import Who
from mindgw.store.database import Database
from mindgw.store.tables import Rate

KINDS = frozenset({"user", "team", "org"})
Scope = Annotated[str, Meta(min_length=1, max_length=scopes.MAX)]


class RateView(Struct, frozen=True, kw_only=True):
    """The rate of one scope."""

    #: As people write it: user:EMAIL, team:NAME or org:NAME.
    scope: str
    #: What the person, team or organisation is called.
    name: str
    #: Requests and tokens a minute, and requests at once; None: no limit.
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    version: int


class RateWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate; what it does not name stays as it is."""

    #: user:EMAIL, team:NAME or org:NAME; keys have theirs in `keys`.
    scope: Scope
    #: Requests a minute; null: any number.
    rpm: Few | UnsetType | None = UNSET
    #: Tokens a minute; null: any number.
    tpm: Number | UnsetType | None = UNSET
    #: Requests at once; null: any number.
    concurrency: Few | UnsetType | None = UNSET


async def listing(database: Database, scope: str | None = None) -> Page[RateView]:
    """All rates, or that of one scope. Raises BadRequest, NotFound."""
    async with database.read() as session:
        wanted = await _find(session, scope) if scope else None
        found = [row for row in await rates.load(session) if wanted in {None, row.scope}]
        return Page(await _views(session, found))


async def put(database: Database, who: Who | str, wish: RateWish, changed: News, *, version: int | None = None) -> RateView:
    """Sets numbers of one scope from now on. Raises BadRequest, NotFound, Conflict, PreconditionFailed."""
    said = {name: value for name in RATES if (value := getattr(wish, name)) is not UNSET}
    if not said:
        raise BadRequest("A rate is missing: 'rpm', 'tpm' or 'concurrency'.", param="rpm")
    async with database.write() as session:
        scope = await _find(session, wish.scope, scopes.find_to_set)
        if version is not None and await session.get(Rate, scope) is None:
            raise PreconditionFailed("There is no such rate any more.")
        row = await rates.put(session, scope, said, version=version)
        await audit.record(session, who, "rate.set", row.scope, **said)
        (view,) = await _views(session, [row])
    await changed()
    return view


async def clear(database: Database, who: Who | str, scope: str, changed: News, *, version: int | None = None) -> RateView:
    """Takes a rate away; as it was. Raises BadRequest, NotFound, Conflict, PreconditionFailed."""
    async with database.write() as session:
        stored = await _find(session, scope, scopes.find_to_set)
        row = await session.get(Rate, stored)
        if row is None:
            raise NotFound(f"There is no rate for {scope[:80]}.", hint=rates.SEE)
        (view,) = await _views(session, [row])
        await rates.clear(session, stored, version=version)
        await audit.record(session, who, "rate.clear", stored)
    await changed()
    return view


async def _find(session: AsyncSession, text: str, find: Callable[[AsyncSession, str], Awaitable[str]] = scopes.find) -> str:
    kind = text.strip().partition(":")[0]
    if kind == "key":
        raise BadRequest("A key has its rate in itself.", param="scope", hint="mindgw keys update KEY --rpm N --tpm N --concurrency N")
    if kind not in KINDS:
        raise BadRequest(f"A rate is for user:EMAIL, team:NAME or org:NAME, not {text[:80]!r}.", param="scope")
    return await find(session, text)


async def _views(session: AsyncSession, found: list[Rate]) -> list[RateView]:
    named = await scopes.named(session, {row.scope for row in found})
    return [
        RateView(
            scope=scopes.written(row.scope, named[row.scope]),
            name=named[row.scope],
            rpm=row.rpm,
            tpm=row.tpm,
            concurrency=row.concurrency,
            version=row.version,
        )
        for row in found
    ]
