"""Whom a limit or a sum is about: as people write it, such as `team:nlp`, and as it is stored, with ids."""

from collections.abc import Collection, Iterable
from typing import Any

from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import keys
from mindgw.errors import BadRequest, Conflict, Forbidden, NotFound
from mindgw.store import budgets, tenants
from mindgw.store.tables import Key, Org, Team, User, Worker

KINDS = ("key", "user", "team", "org", "model")
#: Longest scope that is read.
MAX = 600

_WRITTEN = "A scope is key:ID, user:EMAIL, team:NAME, org:NAME or model:NAME"
#: What has a name beside its id, and the column of each. Models and days have none.
_COLUMNS: dict[str, tuple[Any, Any]] = {
    "key": (Key.id, Key.name),
    "user": (User.id, User.email),
    "team": (Team.id, Team.name),
    "org": (Org.id, Org.name),
    "worker": (Worker.id, Worker.name),
}


async def find(session: AsyncSession, text: str) -> str:
    """A scope as it is stored. Raises BadRequest when it is none, Forbidden, and what `lookup` raises."""
    kind, colon, name = text.strip().partition(":")
    if not colon or kind not in KINDS:
        raise BadRequest(f"{_WRITTEN}, not {text[:80]!r}.", param="scope")
    view = tenants.view_of(session)
    if kind == "model" and view is not None and not view.is_home:
        raise Forbidden("What is about a model for everybody belongs to whoever runs the server.", code="not_yours")
    return f"{kind}:{await lookup(session, kind, name)}"


async def find_to_set(session: AsyncSession, text: str) -> str:
    """As `find`, for whoever wants to say how much: what holds for a whole organisation says whoever runs the server."""
    scope = await find(session, text)
    view = tenants.view_of(session)
    if scope.startswith("org:") and view is not None and not view.is_home:
        raise Forbidden("What holds for your whole organisation is set by whoever runs the server.", code="not_yours")
    return scope


async def lookup(session: AsyncSession, kind: str, reference: str) -> str:
    """The id of a key, user, team or organisation, by what people call it or by the id itself; a model is its name. Raises BadRequest,
    NotFound, and Conflict when several have that name."""
    name = reference.strip()
    if not name or not name.isprintable():
        raise BadRequest(f"{reference[:80]!r} cannot be the name of a {kind}.")
    if kind == "model":
        return name
    if kind == "key":
        return (await keys.find(session, name)).id
    id, called = _COLUMNS[kind]
    wanted = name.lower() if kind == "user" else name
    named = (await session.exec(select(id).where(called == wanted).limit(2))).all()
    if len(named) > 1:
        raise Conflict(f"Several {kind}s are called {name[:80]!r}; say which by its id.")
    found = named or (await session.exec(select(id).where(id == name))).all()
    if not found:
        raise NotFound(f"There is no {kind} {name[:80]!r}.", hint="`mindgw keys list` shows whose keys there are")
    return str(found[0])


async def names(session: AsyncSession, kind: str, ids: Collection[str]) -> dict[str, str]:
    """id -> name; what is not known any more, and what has no name, is called by its id."""
    found = {id: id for id in ids}
    if kind in _COLUMNS and ids:
        id, called = _COLUMNS[kind]
        found |= dict((await session.exec(select(id, called).where(budgets.among(session, id, ids)))).all())
    return found


async def named(session: AsyncSession, stored: Iterable[str]) -> dict[str, str]:
    """Stored scope -> name, without what kind it is."""
    of: dict[str, set[str]] = {}
    for scope in stored:
        kind, _, id = scope.partition(":")
        of.setdefault(kind, set()).add(id)
    return {f"{kind}:{id}": name for kind, ids in of.items() for id, name in (await names(session, kind, ids)).items()}


def written(stored: str, name: str) -> str:
    """A scope as people write it, by its name; keys go by their ids, for several may have one name."""
    kind, _, id = stored.partition(":")
    return f"{kind}:{id if kind == 'key' else name}"
