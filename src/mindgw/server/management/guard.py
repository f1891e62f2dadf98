"""Who may manage: holders of an admin key. And what every handler of this folder is handed."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from litestar.params import HeaderParameter

from mindgw.config import Config
from mindgw.control.feed import Feed
from mindgw.control.live import Live
from mindgw.control.queue import Lists
from mindgw.control.secrets import Secrets
from mindgw.errors import BadRequest, Forbidden
from mindgw.store.database import Database


class Caller(Protocol):
    """Whose key a request carries."""

    @property
    def key_id(self) -> str: ...
    @property
    def role(self) -> str: ...


class Office(State):
    """The application's state, as this folder reads it."""

    database: Database
    pipeline: Live
    feed: Feed
    #: Lists of the queue that are read page by page.
    lists: Lists
    #: Letters that are being run again.
    retrying: set[str]
    secrets: Secrets
    config: Config
    #: Takes all headers; raises Unauthenticated, or BadRequest when they carry two different keys.
    identify: Callable[[list[tuple[bytes, bytes]]], Awaitable[Caller]]
    #: Has the running gateway read its limits again.
    quotas_changed: Callable[[], Awaitable[object]]
    #: Whether the ledger is being checked.
    verifying: bool


async def admit(office: Office, headers: list[tuple[bytes, bytes]]) -> Caller:
    """Whose admin key these headers carry, with names in lower case. Raises Unauthenticated, BadRequest, or Forbidden for a key that is
    good but not an admin's."""
    caller = await office.identify(headers)
    if caller.role != "admin":
        raise Forbidden("This needs an admin key.")
    return caller


async def require_admin(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """As `admit`. Runs before the body is read."""
    headers = [(name.lower(), value) for name, value in connection.scope["headers"]]
    connection.state.actor = (await admit(cast("Office", connection.app.state), headers)).key_id


async def actor(request: Request[Any, Any, State]) -> str:
    """Id of the key that asks."""
    return str(request.state.actor)


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
