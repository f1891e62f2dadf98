"""Keys that are changed, and keys that get another secret. Audited as the rest is; news goes out when it is on the disk."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.config import Keys as Policy
from mindgw.control import handing, key_bounds, key_policy, keys
from mindgw.control.keys import KeyChange, KeyMade, KeyView
from mindgw.errors import Conflict
from mindgw.store import audit, people, rows
from mindgw.store import keys as stored
from mindgw.store.audit import Who
from mindgw.store.database import Database
from mindgw.store.tables import Key, User

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


async def change(
    database: Database, who: Who | str, reference: str, wish: KeyChange, ground: Ground, *, version: int | None = None
) -> KeyView:
    """Changes what a key is like; its requests that run go on as they began. Raises NotFound, Conflict, BadRequest, PreconditionFailed,
    and Forbidden for a key that can, or then could, do more than whoever changes it."""
    async with database.write() as session:
        row = await _good(session, who, reference)
        changes = await _owner(session, row, wish) | _plain(wish) | key_bounds.columns(wish, row.scopes)
        if wish.expires_at is not UNSET:
            changes["expires_at"] = key_policy.check(wish.expires_at, clock.utcnow(), ground.policy, row.created_at)
        changes = {name: value for name, value in changes.items() if getattr(row, name) != value}
        before = {name: _told(getattr(row, name)) for name in changes}
        rows.change(row, version, **changes)
        await _check(session, who, row)
        after = {name: _told(getattr(row, name)) for name in changes}
        await audit.record(session, who, "key.update", row.id, name=row.name, changed=sorted(changes), before=before, after=after)
        (view,) = await keys.views(session, [row], ground.policy)
    ground.changed(view.id)
    return view


def _told(value: Any) -> Any:
    """A value of a key's row, none of which is a secret, as the audit log may hold it."""
    return value.isoformat() if isinstance(value, datetime) else value


async def rotate(
    database: Database, who: Who | str, reference: str, wish: Rotation, ground: Ground, *, version: int | None = None
) -> KeyMade:
    """Gives a key another secret. Raises NotFound, Conflict, PreconditionFailed, and Forbidden for a key that can do more than whoever
    is shown its secret."""
    async with database.write() as session:
        row = await _good(session, who, reference)
        now = clock.utcnow()
        until = now + timedelta(seconds=wish.grace_seconds)
        secret = await stored.rotate(session, row, ground.pepper, now, until, version=version)
        await audit.record(session, who, "key.rotate", row.id, name=row.name, grace_seconds=wish.grace_seconds)
        (view,) = await keys.views(session, [row], ground.policy)
    (ground.changed if wish.grace_seconds else ground.ended)(view.id)
    return keys.made(view, secret)


async def _good(session: AsyncSession, who: Who | str, reference: str) -> Key:
    """A key that is not revoked and that somebody may change, with nobody else changing it."""
    found = await keys.find(session, reference)
    row = await rows.locked(session, Key, found.id) or found
    if row.revoked_at is not None:
        raise Conflict("A revoked key stays as it is: make another one.", code="revoked_api_key")
    await _check(session, who, row)
    return row


async def _check(session: AsyncSession, who: Who | str, row: Key) -> None:
    """Raises Forbidden when the key can do more than somebody."""
    user = await session.get(User, row.user_id) if row.user_id else None
    await handing.check_acting(session, who, row.org_id, user, row.role)


async def _owner(session: AsyncSession, row: Key, wish: KeyChange) -> dict[str, Any]:
    """To whom it belongs from now on, as far as that is said."""
    changes: dict[str, Any] = {}
    if wish.team is not UNSET:
        changes["team_id"] = (await people.get_or_create_team(session, row.org_id, wish.team)).id
    if wish.user is not UNSET:
        changes["user_id"] = (await people.get_or_create_user(session, row.org_id, wish.user)).id if wish.user else None
    if wish.role is not UNSET:
        changes["role"] = wish.role
    return changes


def _plain(wish: KeyChange) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if wish.name is not UNSET:
        changes["name"] = keys.clean(wish.name)
    if wish.priority is not UNSET:
        keys.check_priority(wish.priority)
        changes["priority"] = wish.priority
    if wish.trusted_proxy is not UNSET:
        changes["trusted_proxy"] = wish.trusted_proxy
    return changes
