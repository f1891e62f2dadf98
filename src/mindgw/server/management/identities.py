"""/api/v1/users/USER/identities: by what identity providers know somebody."""

from litestar import delete, get, post
from litestar.params import FromPath, JSONBody

from mindgw.control import identities
from mindgw.control.identities import IdentityView, Link
from mindgw.control.pages import Page
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.users import Scoped, Who


@get("/users/{user:str}/identities", opt=needs("read", "users"))
async def list_identities(database: Scoped, who: Who, user: FromPath[str]) -> Page[IdentityView]:
    """By what identity providers know somebody."""
    return await identities.listing(database, who, user)


@post("/users/{user:str}/identities", opt=needs("update", "users"))
async def link_identity(state: Office, database: Scoped, who: Who, user: FromPath[str], data: JSONBody[Link]) -> IdentityView:
    """Have whoever a provider knows as `subject` be this user from now on. 403 `role_too_high`: the user is not below who asks."""
    return await identities.link(database, who, state.config.providers, user, data)


@delete("/users/{user:str}/identities/{identity:str}", status_code=200, opt=needs("update", "users"))
async def unlink_identity(state: Office, database: Scoped, who: Who, user: FromPath[str], identity: FromPath[str]) -> IdentityView:
    """Have the word of a provider let nobody in as this user any more; `identity` is an id or the name of the provider. Sessions, tokens
    and teams that came of it end."""
    return await identities.unlink(database, who, user, identity, state.pipeline.revoke_key, forget=state.sessions.forget)


HANDLERS = (list_identities, link_identity, unlink_identity)
