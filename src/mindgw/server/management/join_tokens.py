"""/api/v1/join-tokens"""

from datetime import timedelta
from typing import Annotated

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from mindgw.control import join_tokens
from mindgw.control.invitation import Terms
from mindgw.control.join_tokens import JoinTokenMade, JoinTokenView
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit


class JoinTokenIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token to be made is good for."""

    ttl_seconds: Annotated[int, Meta(ge=1, le=365 * 86400)] = 3600
    max_uses: int = 1
    #: The only worker name that it is good for.
    name: str | None = None
    #: auto: who joins with it may serve at once; manual: an operator lets it in.
    approve: str = "auto"
    #: Whether the boxes check a public certificate, such as that of a proxy in front, instead of this server's own.
    public_pki: bool = False


@get("/join-tokens", opt=needs("read", "join-tokens", home=True))
async def list_join_tokens(state: Office, cursor: Cursor = None, limit: Limit = 1000) -> Page[JoinTokenView]:
    """Tokens in the order of their making, spent ones too."""
    return await join_tokens.listing(state.database, after=cursor, limit=limit)


@post("/join-tokens", opt=needs("create", "join-tokens", home=True))
async def create_join_token(state: Office, data: JSONBody[JoinTokenIn], who: NamedDependency[Principal]) -> JoinTokenMade:
    """Make a token. Its `token` is in this answer and nowhere else."""
    terms = Terms(
        life=timedelta(seconds=data.ttl_seconds), max_uses=data.max_uses, name=data.name, approve=data.approve, public_pki=data.public_pki
    )
    return await join_tokens.create(state.database, state.secrets, state.config, who, terms)


@delete("/join-tokens/{token:str}", status_code=200, opt=needs("delete", "join-tokens", home=True))
async def revoke_join_token(
    state: Office, token: FromPath[str], who: NamedDependency[Principal], version: NamedDependency[int | None]
) -> JoinTokenView:
    """Revoke a token. Workers that joined with it stay."""
    return await join_tokens.revoke(state.database, who, token, version=version)


HANDLERS = (list_join_tokens, create_join_token, revoke_join_token)
