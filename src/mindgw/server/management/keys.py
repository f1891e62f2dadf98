"""/api/v1/keys"""

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mindgw.control import keys
from mindgw.control.keys import KeyMade, KeyView, KeyWish
from mindgw.control.pages import Page
from mindgw.server.management.guard import Office
from mindgw.server.management.pages import Cursor, Limit


@get("/keys")
async def list_keys(state: Office, cursor: Cursor = None, limit: Limit = 1000) -> Page[KeyView]:
    """Keys in the order of their making, revoked ones too."""
    return await keys.listing(state.database, after=cursor, limit=limit)


@post("/keys")
async def create_key(state: Office, data: JSONBody[KeyWish], actor: NamedDependency[str]) -> KeyMade:
    """Make a key. Its `key` is in this answer and nowhere else."""
    return await keys.create(state.database, state.secrets.pepper, actor, data)


@get("/keys/{key:str}")
async def show_key(state: Office, key: FromPath[str]) -> KeyView:
    """A key by its id or its name."""
    return await keys.show(state.database, key)


@delete("/keys/{key:str}", status_code=200)
async def revoke_key(state: Office, key: FromPath[str], actor: NamedDependency[str], version: NamedDependency[int | None]) -> KeyView:
    """Revoke a key: it is refused from now on, and what it has running ends."""
    return await keys.revoke(state.database, actor, key, state.pipeline.revoke_key, version=version)


HANDLERS = (list_keys, create_key, show_key, revoke_key)
