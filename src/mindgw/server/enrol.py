"""The door that agents join and leave by. Requests are signed, not logged in: see `mindgw_agent.enrolment`."""

from typing import Any, TypeVar

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide

from mindgw import clock
from mindgw.control.enrol import Registrar
from mindgw.errors import BadRequest, NotFound
from mindgw.server.agents import reached_as
from mindgw_agent import enrolment
from mindgw_agent.enrolment import Admission, Answer, Application, Farewell, Question

T = TypeVar("T")


@post(enrolment.CHALLENGE_PATH, status_code=200)
async def challenge(request: Request[Any, Any, State], registrar: NamedDependency[Registrar]) -> Answer:
    return registrar.challenge(await _said(request, Question), _host(request), clock.wall())


@post(enrolment.JOIN_PATH, status_code=201)
async def join(request: Request[Any, Any, State], registrar: NamedDependency[Registrar]) -> Admission:
    return await registrar.join(await _said(request, Application), _host(request), clock.utcnow())


@post(enrolment.LEAVE_PATH, status_code=200)
async def leave(request: Request[Any, Any, State], registrar: NamedDependency[Registrar]) -> dict[str, str]:
    farewell = await _said(request, Farewell)
    await registrar.leave(farewell)
    return {"agent_id": farewell.agent_id}


@get(enrolment.CA_PATH)
async def ca_file(state: State) -> Response[bytes]:
    """The CA that vouches for this server: public, and checked by its pin."""
    if not state.secrets.ca_pem:
        raise NotFound("This server has no CA.")
    return Response(state.secrets.ca_pem, media_type="application/x-pem-file")


def router() -> Router:
    """The routes for an application whose state holds `database`, `secrets`, `pipeline` and `config`."""
    return Router(
        path="/",
        route_handlers=[challenge, join, leave, ca_file],
        dependencies={"registrar": Provide(_registrar, sync_to_thread=False)},
        request_max_body_size=enrolment.MAX_BODY,
        include_in_schema=False,
    )


def _registrar(state: State) -> Registrar:
    return Registrar(state.database, state.secrets.identity, state.pipeline.remove_worker)


async def _said(request: Request[Any, Any, State], kind: type[T]) -> T:
    """The body, read straight into its type: the framework's own way decodes whatever is there first, 10,000 brackets too."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as wrong:
        raise BadRequest(f"This is not a {kind.__name__.lower()}: {wrong}.") from None


def _host(request: Request[Any, Any, State]) -> str:
    """The name under which we were reached, as the agent signs it."""
    return reached_as(request.scope["scheme"], request.headers.get("host", ""), request.app.state.config.listen)
