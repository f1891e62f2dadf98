"""Who may manage what. Every route of this folder says what it takes, such as `opt=needs("read", "keys")`, and whoever may not do that is
refused before the body is read. A route that says nothing is nobody's.

What belongs to an organisation is asked of `database`, which every handler may be handed: it shows that organisation alone. What belongs to
whoever runs the server (`needs(..., home=True)`) is refused to all other organisations.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, NamedTuple, Protocol, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from litestar.params import HeaderParameter

from mindgw.config import Config
from mindgw.control.cookies import Cookies
from mindgw.control.feed import Feed
from mindgw.control.identify import Strangers
from mindgw.control.live import Live
from mindgw.control.principal import Home, Principal
from mindgw.control.queue import Lists
from mindgw.control.rechecks import Rechecks
from mindgw.control.refusals import Watch
from mindgw.control.secrets import Secrets
from mindgw.control.sessions import Sessions
from mindgw.control.sign_on import SignOn
from mindgw.control.trends import Past
from mindgw.core.access import BITS, Rights
from mindgw.errors import BadRequest, Forbidden
from mindgw.store.database import Database
from mindgw.store.tenants import View

Headers = list[tuple[bytes, bytes]]

#: Headers that say by themselves who asks.
_CARRIERS: Final = frozenset({b"authorization", b"x-api-key", b"api-key"})
#: Where the session of a browser counts.
_OURS: Final = "/api/v1/"
#: Where a route's handler keeps what it takes.
_OPT: Final = "needs"


class Need(NamedTuple):
    """What a route takes."""

    verb: str
    resource: str
    #: Whether it belongs to whoever runs the server.
    home: bool = False
    #: Whether rights in one team are enough: the handler then keeps to `Principal.teams`.
    team: bool = False


def needs(verb: str, resource: str, *, home: bool = False, team: bool = False) -> dict[str, Need]:
    """For a route's `opt`. Raises KeyError for what is no permission."""
    assert BITS[verb, resource]
    return {_OPT: Need(verb, resource, home, team)}


def need_of(handler: BaseRouteHandler) -> Need | None:
    """What a route takes; None: it does not say."""
    found: Need | None = handler.opt.get(_OPT)
    return found


class Caller(Protocol):
    """Whose key or session a request carries."""

    @property
    def key_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def by_pass(self) -> bool: ...
    @property
    def user_id(self) -> str: ...
    @property
    def email(self) -> str: ...
    @property
    def org_id(self) -> str: ...
    @property
    def rights(self) -> Rights: ...


class Identify(Protocol):
    def __call__(self, headers: Headers, path: str = "", address: str = "", /) -> Awaitable[Caller]:
        """Takes all headers; raises Unauthenticated, or BadRequest when they carry two different keys."""


class Office(State):
    """The application's state, as this folder reads it."""

    #: As whoever runs the server sees it; handlers of what belongs to an organisation take `database` instead.
    database: Database
    pipeline: Live
    feed: Feed
    #: Lists of the queue that are read page by page.
    lists: Lists
    #: Letters that are being run again.
    retrying: set[str]
    #: How workers were.
    past: Past
    secrets: Secrets
    config: Config
    identify: Identify
    sessions: Sessions
    #: Identity providers, and whether they still vouch for those who are in.
    sign_on: SignOn
    rechecks: Rechecks
    #: What browsers keep.
    cookies: Cookies
    #: Counts who comes without anything good.
    strangers: Strangers
    #: Tells the audit log who was refused.
    refusals: Watch
    #: Which organisation runs the server.
    home: Home
    #: Has the running gateway read its limits again.
    quotas_changed: Callable[[], Awaitable[object]]
    #: Has the running gateway read its routes again.
    routes_changed: Callable[[], Awaitable[object]]
    #: Has the running gateway ask again who may do what.
    access_changed: Callable[[], None]
    #: Whether the ledger is being checked.
    verifying: bool


class Asked(NamedTuple):
    """The head of a request; names of headers are in lower case."""

    headers: Headers
    path: str
    #: Network address of whoever asks, "" for none.
    address: str


def asked(scope: Any) -> Asked:
    """What an ASGI scope says."""
    client = scope.get("client")
    return Asked([(name.lower(), value) for name, value in scope["headers"]], scope["path"], client[0] if client else "")


async def admit(office: Office, request: Asked, need: Need | None) -> Principal:
    """Who asks. Raises Unauthenticated, BadRequest, and Forbidden for somebody who may not do that."""
    caller = await office.identify(request.headers, request.path, request.address)
    who = Principal(
        org_id=caller.org_id,
        is_home=caller.org_id == await office.home.id(),
        rights=caller.rights,
        user_id=caller.user_id,
        email=caller.email,
        key_id=caller.key_id,
        session_id=caller.session_id,
        by_pass=caller.by_pass,
        address=request.address,
    )
    try:
        permit(who, need)
    except Forbidden as wrong:
        office.refusals.known(who, wrong.code, named(need))
        raise
    return who


def named(need: Need | None) -> str:
    """The permission that was missing, as the audit log has it."""
    return f"{need.verb}:{need.resource}" if need is not None else ""


def permit(who: Principal, need: Need | None) -> None:
    """Raises Forbidden."""
    if need is None:
        raise Forbidden
    if not who.may(need.verb, need.resource, team=need.team):
        roles = " and ".join(who.rights.roles) or "nothing"
        if who.rights.behind:
            roles += f", held by {' and '.join(who.rights.behind)},"
        raise Forbidden(f"This takes the permission {need.verb}:{need.resource}, which {roles} does not have.")
    if need.home and not who.is_home:
        raise Forbidden("This belongs to whoever runs the server.", code="not_yours")


async def require(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The guard of every route. Runs before the body is read."""
    office = cast("Office", connection.app.state)
    connection.state.who = await admit(office, _carried(office, connection.scope), need_of(handler))


def _carried(office: Office, scope: Any) -> Asked:
    """The head of a request, with the session of a browser where it carries nothing else. Raises Forbidden."""
    request = asked(scope)
    if not request.path.startswith(_OURS) or any(name in _CARRIERS for name, _ in request.headers):
        return request
    session = office.cookies.admit(scope["method"], request.headers)
    return request._replace(headers=[*request.headers, (b"authorization", f"Bearer {session}".encode())]) if session else request


async def who(request: Request[Any, Any, State]) -> Principal:
    """Who asks."""
    found: Principal = request.state.who
    return found


async def database(request: Request[Any, Any, State]) -> Database:
    """What whoever asks can see: their organisation, or, of a route for which rights in a team are enough, their teams."""
    asking: Principal = request.state.who
    need = need_of(request.route_handler)
    teams = asking.teams(need.verb, need.resource) if need is not None and need.team else None
    whole: Database = request.app.state.database
    return whole.within(View(asking.org_id, asking.is_home, teams))


async def if_match(
    header: Annotated[str | None, HeaderParameter(name="If-Match", description="Version that the object must have.")] = None,
) -> int | None:
    """The version that the caller saw; None: any will do. Raises BadRequest when it is not a version."""
    if header is None or header.strip() == "*":
        return None
    found = re.fullmatch(r'(?:W/)?"?([0-9]{1,9})"?', header.strip(), re.ASCII)
    if found is None:
        raise BadRequest("If-Match must be a version such as 3.", param="If-Match")
    return int(found[1])


#: What every handler may be handed, by the name of its parameter.
HANDED: Final[dict[str, Callable[..., Any]]] = {"who": who, "database": database, "version": if_match}
