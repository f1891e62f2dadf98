"""May this caller ask this? Refuses only what is hopeless, and holds nothing."""

from collections.abc import Callable

from msgspec import Struct

from mindgw import errors
from mindgw.config import Limits
from mindgw.core import payload
from mindgw.gateway.route import Needs
from mindgw_agent import payload as media

#: Path of each endpoint -> the kind of model that it needs.
ENDPOINTS = {"/v1/chat/completions": payload.CHAT, "/v1/completions": payload.COMPLETIONS, "/v1/embeddings": payload.EMBEDDINGS}


class Caller(Struct, frozen=True):
    """Who asks: a snapshot of a key, never written back."""

    key_id: str
    name: str
    org_id: str
    team_id: str = ""
    user_id: str = ""
    admin: bool = False
    #: Class in the queue: high, normal or batch.
    priority: str = "normal"
    #: Whether this key may name the end user in a header.
    trusted_proxy: bool = False


class Ask(Struct, frozen=True):
    """A request that may stand in the queue."""

    caller: Caller
    path: str
    peek: payload.Peek
    needs: Needs


def admit(caller: Caller, path: str, body: bytes, limits: Limits, check: Callable[[str, str], None]) -> Ask:
    """Reads and checks the request; raises the CallerError that says what is wrong with it. `check` does so for (model, kind)."""
    kind = ENDPOINTS[path]
    seen = payload.peek(body, kind, most_n=limits.n)
    if isinstance(seen, payload.Invalid):
        raise errors.BadRequest(seen.message, param=seen.param or None)
    if kind == payload.CHAT and (address := media.media_violation(body)):
        raise errors.UnsupportedMedia(f"Media must be sent as data: URLs; the gateway does not fetch {address[:200]!r}.", param="messages")
    check(seen.model, kind)
    return Ask(caller, path, seen, Needs(seen.model, kind))
