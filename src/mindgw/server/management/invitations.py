"""/api/v1/invitations/accept: the way in for who was invited. It asks for no key: the invitation is one."""

from typing import Annotated, Any

from litestar import Request, Router, post
from litestar.params import JSONBody
from msgspec import Meta, Struct

from mindgw import clock
from mindgw.control import people
from mindgw.control.people import Accepted
from mindgw.errors import Unauthenticated
from mindgw.server.management.guard import Office, asked
from mindgw.store.sessions import MAX_AGENT


class Shown(Struct, frozen=True, forbid_unknown_fields=True):
    """An invitation, mgwi_…"""

    invitation: Annotated[str, Meta(max_length=200)]


@post("/accept", status_code=201)
async def accept_invitation(state: Office, request: Request[Any, Any, Any], data: JSONBody[Shown]) -> Accepted:
    """Sign in with an invitation, which is spent by that. The `session` is in this answer and nowhere else."""
    head, now = asked(request.scope), clock.monotonic()
    state.strangers.patience(head.address, now)
    agent = request.headers.get("user-agent", "")[:MAX_AGENT]
    try:
        return await people.accept(
            state.database, state.secrets.pepper, data.invitation, life=state.sessions.life, agent=agent, address=head.address
        )
    except Unauthenticated as wrong:
        raise state.strangers.blame(head.address, wrong, now) from None


def router(**shared: Any) -> Router:
    """Beside the other routes, not among them: their guard lets nobody in without a key."""
    return Router(path="/api/v1/invitations", route_handlers=[accept_invitation], **shared)
