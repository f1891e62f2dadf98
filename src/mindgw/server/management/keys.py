"""/api/v1/keys"""

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mindgw.control import keys
from mindgw.control.keys import KeyMade, KeyView, KeyWish
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.store.database import Database


@get("/keys", opt=needs("read", "keys", team=True))
async def list_keys(database: NamedDependency[Database], cursor: Cursor = None, limit: Limit = 1000) -> Page[KeyView]:
    """Keys in the order of their making, revoked ones too."""
    return await keys.listing(database, after=cursor, limit=limit)


@post("/keys", opt=needs("create", "keys", team=True))
async def create_key(
    state: Office, database: NamedDependency[Database], data: JSONBody[KeyWish], who: NamedDependency[Principal]
) -> KeyMade:
    """Make a key. Its `key` is in this answer and nowhere else."""
    return await keys.create(database, state.secrets.pepper, who, data)


@get("/keys/{key:str}", opt=needs("read", "keys", team=True))
async def show_key(database: NamedDependency[Database], key: FromPath[str]) -> KeyView:
    """A key by its id or its name."""
    return await keys.show(database, key)


@delete("/keys/{key:str}", status_code=200, opt=needs("delete", "keys", team=True))
async def revoke_key(
    state: Office,
    database: NamedDependency[Database],
    key: FromPath[str],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> KeyView:
    """Revoke a key: it is refused from now on, and what it has running ends."""
    return await keys.revoke(database, who, key, state.pipeline.revoke_key, version=version)


HANDLERS = (list_keys, create_key, show_key, revoke_key)
