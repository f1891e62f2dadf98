"""Where requests for a name go, and the tags of the workers that they go to."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core import routing
from mindgw.errors import Conflict, NotFound
from mindgw.store import rows
from mindgw.store.tables import Route

log = logging.getLogger("mindgw.routes")

#: What helps who has named a route that is not there.
SEE = "`mindgw routes list` shows them all"
#: Most routes: each name that is asked for the first time is held against all of them.
MOST = 1000


async def load(session: AsyncSession) -> Sequence[Route]:
    """All routes, by name."""
    return (await session.exec(select(Route).order_by(col(Route.name)))).all()


async def find(session: AsyncSession, name: str, *, lock: bool = True) -> Route:
    """With `lock` nobody else changes it until the transaction ends. Raises NotFound."""
    row = await rows.locked(session, Route, name) if lock else await session.get(Route, name)
    if row is None:
        raise NotFound(f"There is no route {name[:80]!r}.", hint=SEE)
    return row


async def create(session: AsyncSession, wanted: Route) -> Route:
    """Raises Conflict when there is one of this name, one for the same names, or too many."""
    await _check(session, wanted.name, wanted.match, shadow=wanted.shadow, adds=True)
    await session.exec(rows.insert_once(session, Route).values(**wanted.model_dump()))
    row = await find(session, wanted.name)
    if row.created_at != wanted.created_at:  # on Postgres somebody else made it in the same moment
        raise _exists(wanted.name)
    return row


async def change(session: AsyncSession, name: str, changes: Mapping[str, Any], *, version: int | None = None) -> Route:
    """Sets some fields of a route, the others stay. Raises NotFound, PreconditionFailed, and Conflict when another is for the same
    names."""
    row = await find(session, name)
    await _check(session, name, changes.get("match", row.match), shadow=changes.get("shadow", row.shadow))
    return rows.change(row, version, **changes)


async def drop(session: AsyncSession, name: str, *, version: int | None = None) -> Route:
    """Takes a route away; as it was. Raises NotFound, PreconditionFailed."""
    row = await find(session, name)
    rows.change(row, version)
    await session.delete(row)
    await session.flush()
    return row


async def _check(session: AsyncSession, name: str, match: str, *, shadow: bool, adds: bool = False) -> None:
    known = await load(session)
    if adds and any(row.name == name for row in known):
        raise _exists(name)
    if adds and len(known) >= MOST:
        raise Conflict(f"There are {MOST} routes already.", code="too_many_routes", hint="globs such as llama* say more with fewer")
    other = next((row for row in known if row.name != name and (row.match, row.shadow) == (match, shadow)), None)
    if other is not None:
        raise Conflict(f"The route {other.name!r} is for {match!r} already.", code="route_exists", param="match", hint=SEE)


def _exists(name: str) -> Conflict:
    return Conflict(f"There is a route {name!r} already.", code="route_exists", param="name", hint=f"`mindgw routes set {name}` changes it")


# -- what the rows mean ------------------------------------------------------------------------------------------------


def compiled(found: Iterable[Route]) -> routing.Rules:
    """The rules that stand in these rows. What another release wrote in a form of its own leads nowhere: better no request than one that
    goes where it may not."""
    return routing.Rules(map(_route, found))


def _route(row: Route) -> routing.Route:
    try:
        if row.strategy not in routing.STRATEGIES:
            raise ValueError(f"there is no strategy {row.strategy!r}")
        return routing.Route(
            name=row.name,
            match=row.match,
            targets=tuple(map(routing.target, row.targets)),
            fallbacks=tuple(map(routing.target, row.fallbacks)),
            pins=routing.where(row.pins),
            require=routing.where(row.require),
            strategy=row.strategy,
            spill=row.spill,
            hedge=row.hedge,
            shadow=row.shadow,
        )
    except (ValueError, TypeError, AttributeError) as wrong:
        log.warning("the route %a cannot be read, and leads nowhere: %s", row.name, wrong)
        return routing.Route(name=row.name, match=row.match, pins=NOWHERE, shadow=row.shadow, broken=True)


#: No worker is there.
NOWHERE: routing.Where = ((routing.OWN, ()),)


# -- tags --------------------------------------------------------------------------------------------------------------


def tags_of(name: str, own: Mapping[str, Any]) -> dict[str, str]:
    """All tags of a worker of that name: its own, and its name, which nobody can give to another one as a tag."""
    return {**{key: str(value) for key, value in own.items()}, routing.OWN: name}
