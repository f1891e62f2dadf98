"""The management API under /api/v1: thin doors in front of `mindgw.control`, for holders of an admin key."""

from litestar import Request, Response, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi.plugins import JsonRenderPlugin

from mindgw.errors import BadRequest
from mindgw.server import problems
from mindgw.server.management import guard, join_tokens, keys, models, status, workers

#: Bytes of a request; none of them is larger than a form.
MAX_BODY = 64 * 1024


def router() -> Router:
    """The routes for an application whose state holds `database`, `pipeline`, `identify`, `secrets` and `config`."""
    return Router(
        path="/api/v1",
        route_handlers=[*keys.HANDLERS, *join_tokens.HANDLERS, *workers.HANDLERS, *models.HANDLERS, *status.HANDLERS],
        guards=[guard.require_admin],
        dependencies={"actor": Provide(guard.actor), "version": Provide(guard.if_match)},
        exception_handlers={RecursionError: _too_deep},
        request_max_body_size=MAX_BODY,
        security=[{"key": []}],
    )


def openapi_json() -> JsonRenderPlugin:
    """The description of this API alone, as JSON; a page to look at it would load scripts from elsewhere."""
    return JsonRenderPlugin(path="/openapi.json")


def _too_deep(request: Request[object, object, State], _error: RecursionError) -> Response[bytes]:
    wrong = BadRequest("The body is nested too deep.")
    return Response(problems.body(wrong), status_code=wrong.status, media_type="application/json")
