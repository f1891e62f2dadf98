"""/api/v1/keys"""

from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mindgw.control import key_changes, keys
from mindgw.control.key_changes import Ground, Rotation
from mindgw.control.keys import KeyChange, KeyMade, KeyView, KeyWish
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.store.database import Database


@get("/keys", opt=needs("read", "keys", team=True))
async def list_keys(state: Office, database: NamedDependency[Database], cursor: Cursor = None, limit: Limit = 1000) -> Page[KeyView]:
    """Keys in the order of their making, revoked ones too."""
    return await keys.listing(database, after=cursor, limit=limit, policy=state.config.keys)


@post("/keys", opt=needs("create", "keys", team=True))
async def create_key(
    state: Office, database: NamedDependency[Database], data: JSONBody[KeyWish], who: NamedDependency[Principal]
) -> KeyMade:
    """Make a key. Its `key` is in this answer and nowhere else."""
    return await keys.create(database, state.secrets.pepper, who, data, state.config.keys)


@get("/keys/{key:str}", opt=needs("read", "keys", team=True))
async def show_key(state: Office, database: NamedDependency[Database], key: FromPath[str]) -> KeyView:
    """A key by its id or its name."""
    return await keys.show(database, key, state.config.keys)


@patch("/keys/{key:str}", opt=needs("update", "keys", team=True))
async def change_key(
    state: Office,
    database: NamedDependency[Database],
    key: FromPath[str],
    data: JSONBody[KeyChange],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> KeyView:
    """Change what a key is good for, how often it may ask, when it ends, whose it is. Its next request is held to it."""
    return await key_changes.change(database, who, key, data, _ground(state), version=version)


@post("/keys/{key:str}/rotate", status_code=200, opt=needs("update", "keys", team=True))
async def rotate_key(
    state: Office,
    database: NamedDependency[Database],
    key: FromPath[str],
    data: JSONBody[Rotation],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> KeyMade:
    """Give a key another secret, which is in this answer and nowhere else. The old one stays good for a while."""
    return await key_changes.rotate(database, who, key, data, _ground(state), version=version)


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


def _ground(state: Office) -> Ground:
    return Ground(state.config.keys, state.secrets.pepper, state.pipeline.forget_key, state.pipeline.revoke_key)


HANDLERS = (list_keys, create_key, show_key, change_key, rotate_key, revoke_key)
