"""Keys that are changed, and keys that get another secret. Audited as the rest is; news goes out when it is on the disk."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from msgspec import UNSET, Meta, Struct

from mindgw import clock
from mindgw.config import Keys as Policy
from mindgw.control import key_bounds, key_policy, keys
from mindgw.control.keys import KeyChange, KeyMade, KeyView
from mindgw.errors import Conflict
from mindgw.store import audit, rows
from mindgw.store import keys as stored
from mindgw.store.database import Database
from mindgw.store.tables import Key

#: Seconds for which the old secret may stay good: thirty days.
LONGEST = 30 * 86400


class Rotation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a key gets another secret."""

    #: Seconds for which the old one stays good; 0: it ends at once, with all that runs on the key.
    grace_seconds: Annotated[int, Meta(ge=0, le=LONGEST)] = 86400


class Ground(Struct, frozen=True):
    """What a change stands on, and who must hear of it."""

    policy: Policy
    pepper: bytes
    #: Told that a key is not what it was; and that nothing may be done with it any more.
    changed: Callable[[str], None]
    ended: Callable[[str], None]


async def change(database: Database, actor: str, reference: str, wish: KeyChange, ground: Ground, *, version: int | None = None) -> KeyView:
    """Changes what a key is like; its requests that run go on as they began. Raises NotFound, Conflict, BadRequest, PreconditionFailed."""
    async with database.write() as session:
        found = await keys.find(session, reference)
        row = await rows.locked(session, Key, found.id) or found
        if row.revoked_at is not None:
            raise Conflict("A revoked key stays as it was.", code="revoked_api_key")
        now = clock.utcnow()
        changes = key_bounds.columns(wish, row.scopes)
        if wish.name is not UNSET:
            changes["name"] = keys.clean(wish.name)
        if wish.priority is not UNSET:
            keys.check_priority(wish.priority)
            changes["priority"] = wish.priority
        if wish.trusted_proxy is not UNSET:
            changes["trusted_proxy"] = wish.trusted_proxy
        if wish.expires_at is not UNSET:
            changes["expires_at"] = key_policy.check(wish.expires_at, now, ground.policy, row.created_at)
        changes = {name: value for name, value in changes.items() if getattr(row, name) != value}
        rows.change(row, version, **changes)
        await audit.record(session, actor, "key.update", row.id, name=row.name, changed=sorted(changes))
        (view,) = await keys.views(session, [row], ground.policy)
    ground.changed(view.id)
    return view


async def rotate(database: Database, actor: str, reference: str, wish: Rotation, ground: Ground, *, version: int | None = None) -> KeyMade:
    """Gives a key another secret. Raises NotFound, Conflict, PreconditionFailed."""
    async with database.write() as session:
        found = await keys.find(session, reference)
        row = await rows.locked(session, Key, found.id) or found
        if row.revoked_at is not None:
            raise Conflict("A revoked key has no secret any more: make another one.", code="revoked_api_key")
        now = clock.utcnow()
        until = now + timedelta(seconds=wish.grace_seconds)
        secret = await stored.rotate(session, row, ground.pepper, now, until, version=version)
        await audit.record(session, actor, "key.rotate", row.id, name=row.name, grace_seconds=wish.grace_seconds)
        (view,) = await keys.views(session, [row], ground.policy)
    (ground.changed if wish.grace_seconds else ground.ended)(view.id)
    return keys.made(view, secret)
