"""The management API under /api/v1: thin doors in front of `mindgw.control`. What each takes stands beside it, see `guard`."""

import re
from http import HTTPStatus
from typing import Any

from litestar import Request, Response, Router
from litestar.config.compression import CompressionConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import ValidationException
from litestar.middleware import DefineMiddleware
from litestar.middleware.compression import CompressionMiddleware
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import Scope

from mindgw.core.payload import plain
from mindgw.errors import BadRequest, Forbidden, NotFound, Unauthenticated
from mindgw.server import problems
from mindgw.server.management import (
    audit,
    dead_letters,
    events,
    guard,
    identities,
    invitations,
    join_tokens,
    keys,
    ledger,
    me,
    models,
    orgs,
    queue,
    quotas,
    rates,
    requests,
    roles,
    routes,
    sign_on,
    status,
    usage,
    users,
    workers,
)

#: Bytes of a request; none of them is larger than a form.
MAX_BODY = 64 * 1024
#: Lists are long and repeat themselves; what is shorter than this is sent as it is. Not for the doors of data: their events must not wait.
COMPRESSED = CompressionConfig(backend="gzip", minimum_size=1024, gzip_compress_level=5)
#: U+0000 as JSON has it; a backslash behind a backslash is one of the text's own.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
ROOMS = (
    keys,
    join_tokens,
    workers,
    models,
    queue,
    requests,
    dead_letters,
    quotas,
    rates,
    usage,
    ledger,
    status,
    users,
    identities,
    me,
    audit,
    roles,
    routes,
    orgs,
    sign_on,
)


def router() -> Router:
    """The routes for an application whose state is a `guard.Office`."""
    return Router(
        path="/api/v1",
        route_handlers=[handler for room in ROOMS for handler in room.HANDLERS],
        guards=[guard.require],
        dependencies={name: Provide(give) for name, give in guard.HANDED.items()},
        before_request=_no_nul,
        exception_handlers={RecursionError: _too_deep, ValidationException: _does_not_fit},
        request_max_body_size=MAX_BODY,
        security=[{"key": []}],
        middleware=[DefineMiddleware(CompressionMiddleware, config=COMPRESSED)],
    )


def entered() -> list[Router]:
    """The ways in for who was invited, and for whom an identity provider knows, for the same application."""
    shared: dict[str, Any] = {
        "exception_handlers": {RecursionError: _too_deep, ValidationException: _does_not_fit},
        "request_max_body_size": MAX_BODY,
        "before_request": _no_nul,
    }
    return [invitations.router(**shared), sign_on.router(**shared)]


async def refused(wrong: Exception, scope: Scope) -> None:
    """For the application's `after_exception`: the audit log hears of it when somebody may not do what they asked a handler for, and when
    an agent may not join. `guard` tells of those whom it turns away itself, the count of strangers of those without a good key."""
    watch, state = scope["litestar_app"].state.refusals, scope.get("state") or {}
    if isinstance(wrong, Forbidden) and "who" in state:
        watch.known(state["who"], wrong.code, guard.named(guard.need_of(scope["route_handler"])))
    elif isinstance(wrong, Forbidden | Unauthenticated) and scope["path"].startswith("/agent/"):
        watch.stranger(guard.asked(scope).address, wrong.code)


def followed() -> Router:
    """The feed of events, for the same application."""
    return events.router()


class Description(JsonRenderPlugin):
    """The description of this API as JSON; a page to look at it would load scripts from elsewhere."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        scheme = {"type": "http", "scheme": "bearer", "description": "An API key: mgw_…"}
        components = {**openapi_schema.get("components", {}), "securitySchemes": {"key": scheme}}
        return super().render(request, {**openapi_schema, "components": components})


def openapi_json() -> JsonRenderPlugin:
    """What the application serves at /api/v1/openapi.json."""
    return Description(path="/openapi.json")


def described() -> Router:
    """Where the framework serves that description; a path below it that is not there is refused like all others."""
    return Router(path="/api/v1", route_handlers=[], include_in_schema=False, after_request=_not_as_a_page)


async def _not_as_a_page(response: Response[Any]) -> Response[Any]:
    return problems.refusal(None, NotFound()) if response.status_code == HTTPStatus.NOT_FOUND else response


async def _no_nul(request: Request[Any, Any, State]) -> None:
    """The character U+0000 is in no name and no text of anybody's, and Postgres cannot keep it. Raises BadRequest."""
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"] or _NUL.search(await request.body()):
        raise BadRequest("The request has the character U+0000, which no text here may have.")


def _too_deep(request: Request[Any, Any, State], _error: RecursionError) -> Response[bytes]:
    return problems.refusal(request, BadRequest("The body is nested too deep."))


def _does_not_fit(request: Request[Any, Any, State], error: ValidationException) -> Response[bytes]:
    """The framework's finding in our words: what is wrong, and with which field."""
    first = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    field, message = str(first.get("key", "")), plain(str(first.get("message", error.detail)))
    if field != "data":
        return problems.refusal(request, BadRequest(f"'{field}' {message}." if field else _sentence(message), param=field or None))
    return problems.refusal(request, BadRequest("The request needs a JSON body." if message == "'data'" else _sentence(message)))


def _sentence(message: str) -> str:
    """What is wrong with a body as a whole."""
    if message.startswith("must be"):
        return f"The request body {message}."
    return f"{message[:1].upper()}{message[1:]}".rstrip(".") + "."
