"""Routes as management sees them. Every change is audited in its own transaction; the running gateway hears of it
when it is on the disk."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.core import routing
from mindgw.errors import BadRequest
from mindgw.gateway.admission import Caller
from mindgw.gateway.routes import Way
from mindgw.store import access, audit, routes, tenants, users
from mindgw.store.database import Database
from mindgw.store.tables import Org, Route

T = TypeVar("T")
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(min_length=1, max_length=600)]
Texts = Annotated[list[Text], Meta(max_length=50)]
Strategy = Literal["", "score", "least-busy", "round-robin", "weighted", "sticky"]
Kind = Literal["chat", "completions", "embeddings"]

#: Has the running gateway read its routes again.
News = Callable[[], Awaitable[object]]


class Explains(Protocol):
    """The running gateway."""

    def explain(self, caller: Caller, model: str, kind: str) -> Way:
        """What would become of a request of that caller now; nothing is sent."""


class RouteView(Struct, frozen=True, kw_only=True):
    """A route."""

    name: str
    #: The names that it is for, as a glob.
    match: str
    #: Such as qwen3:8b@pool=gpu=90: a model, tags that its workers must have, a weight.
    to: list[str]
    fallbacks: list[str]
    #: Tags of the only workers that may serve a model of such a name.
    pins: list[str]
    #: Tags that every worker must have that it leads to.
    require: list[str]
    #: How a worker is chosen; "": as the server does it.
    strategy: str
    #: Whether it goes on to the next when workers are only busy.
    spill: bool
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool
    #: Whether it is only noted what it would do.
    shadow: bool
    created_at: datetime
    version: int


class RouteChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different; what is not named stays as it is."""

    #: `*` stands for any characters, `?` for one.
    match: Name | UnsetType = UNSET
    #: MODEL, MODEL@TAG=VALUE,TAG=VALUE, @TAG=VALUE for the model that was asked for; =WEIGHT behind it.
    to: Texts | UnsetType = UNSET
    #: Where it goes in turn when there is no worker for what comes before, or when that fails.
    fallbacks: Texts | UnsetType = UNSET
    #: TAG=VALUE; several values of one tag: any of them.
    pins: Texts | UnsetType = UNSET
    require: Texts | UnsetType = UNSET
    strategy: Strategy | UnsetType = UNSET
    spill: bool | UnsetType = UNSET
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool | UnsetType = UNSET
    shadow: bool | UnsetType = UNSET


class RouteWish(RouteChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A route to be made; it is for its own name unless it says for which."""

    name: Name


class RouteTest(Struct, frozen=True, kw_only=True):
    """What would become of a request now; none was sent."""

    #: Whose it would be; None: that of somebody without rules and labels of their own.
    user: str | None
    way: Way


async def listing(database: Database) -> Page[RouteView]:
    """All routes, by name."""
    async with database.read() as session:
        return Page([_view(row) for row in await routes.load(session)])


async def show(database: Database, name: str) -> RouteView:
    """Raises NotFound."""
    async with database.read() as session:
        return _view(await routes.find(session, name, lock=False))


async def create(database: Database, who: Principal, wish: RouteWish, changed: News) -> RouteView:
    """Raises BadRequest, Conflict."""
    name = _named(_printable(wish.name, "name"))
    said = _said(wish)
    row = Route(name=name, **{"match": name, **said})
    _require_something(row)
    async with database.write() as session:
        row = await routes.create(session, row)
        await audit.record(session, who, "route.create", row.name, match=row.match, **_audited(row, said))
        view = _view(row)
    await changed()
    return view


async def change(
    database: Database, who: Principal, name: str, wish: RouteChange, changed: News, *, version: int | None = None
) -> RouteView:
    """Raises BadRequest, NotFound, Conflict, PreconditionFailed."""
    said = _said(wish)
    if not said:
        raise BadRequest(
            "What is to be different? 'match', 'to', 'fallbacks', 'pins', 'require', 'strategy', 'spill', 'hedge' or 'shadow'."
        )
    async with database.write() as session:
        row = await routes.change(session, name, said, version=version)
        _require_something(row)
        await audit.record(session, who, "route.set", row.name, **_audited(row, said))
        view = _view(row)
    await changed()
    return view


async def remove(database: Database, who: Principal, name: str, changed: News, *, version: int | None = None) -> RouteView:
    """As it was. Raises NotFound, PreconditionFailed."""
    async with database.write() as session:
        view = _view(await routes.find(session, name))
        row = await routes.drop(session, name, version=version)
        await audit.record(session, who, "route.remove", row.name, match=row.match)
    await changed()
    return view


async def explain(database: Database, live: Explains, model: str, kind: Kind, user: str | None = None) -> RouteTest:
    """What would become of a request for a model, of a person with no key's own bounds, or of nobody in particular. Raises NotFound."""
    async with database.read() as session:
        org_id = await tenants.own(session)
        labels = (await session.get_one(Org, org_id)).labels or {}
        if user is None:
            return RouteTest(user=None, way=live.explain(Caller("", "", org_id, home=routing.residency(labels)), model, kind))
        row = await users.find(session, org_id, user)
        rights = await access.rights(session, org_id, row)
        models = await access.models(session, org_id, access.subjects(rights, user_id=row.id))
    home = routing.residency(labels)
    caller = Caller("", "", org_id, user_id=row.id, user=row.email, rights=rights, models=models, home=home)
    return RouteTest(user=row.email, way=live.explain(caller, model, kind))


def _said(wish: RouteChange) -> dict[str, Any]:
    """Columns that a wish names, with texts in their one form. Raises BadRequest."""
    said = {name: value for name, value in asdict(wish).items() if value is not UNSET and name != "name"}
    if "match" in said:
        said["match"] = _printable(said["match"], "match")
    for field, column in (("to", "targets"), ("fallbacks", "fallbacks")):
        if field in said:
            said[column] = [routing.written(_read(field, routing.target, text)) for text in said.pop(field)]
    for field in ("pins", "require"):
        if field in said:
            said[field] = routing.tags_of(_read(field, routing.where, said[field]))
    return said


def _read(field: str, read: Callable[[Any], T], said: Any) -> T:
    try:
        return read(said)
    except ValueError as wrong:
        raise BadRequest(f"'{field}' {wrong}.", param=field) from None


def _named(name: str) -> str:
    """A name that a path can end in."""
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise BadRequest("'name' must not begin or end with '/', nor have '//', '/./' or '/../' in it.", param="name")
    return name


def _printable(text: str, field: str) -> str:
    text = text.strip()
    if not text or not text.isprintable():
        raise BadRequest(f"{field!r} must have printable characters.", param=field)
    return text


def _require_something(row: Route) -> None:
    if not (row.targets or row.fallbacks or row.pins or row.require or row.strategy or row.hedge):
        raise BadRequest("A route leads somewhere: 'to', 'fallbacks', 'pins', 'require', 'strategy' or 'hedge' is missing.", param="to")
    if row.targets and not row.fallbacks and not any(routing.target(text).weight for text in row.targets):
        raise BadRequest("A route whose targets all weigh 0 leads nowhere: give one a weight, or a fallback.", param="to")


def _audited(row: Route, said: Collection[str]) -> Mapping[str, Any]:
    return {name: getattr(row, name) for name in said if name != "match"}


def _view(row: Route) -> RouteView:
    return RouteView(
        name=row.name, match=row.match, to=row.targets, fallbacks=row.fallbacks, pins=row.pins, require=row.require,
        strategy=row.strategy, spill=row.spill, hedge=row.hedge, shadow=row.shadow, created_at=row.created_at, version=row.version,
    )  # fmt: skip
