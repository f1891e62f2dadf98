"""Keys that are changed, and keys that get another secret. Audited as the rest is; news goes out when it is on the disk."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.config import Keys as Policy
from mindgw.control import handing, key_bounds, key_policy, keys, owners
from mindgw.control.keys import KeyChange, KeyMade, KeyView
from mindgw.control.principal import Principal
from mindgw.core import access as kernel
from mindgw.errors import Conflict
from mindgw.store import audit, rows
from mindgw.store import keys as stored
from mindgw.store.audit import Who
from mindgw.store.database import Database
from mindgw.store.tables import Key, User

#: Seconds for which the old secret may stay good: thirty days.
LONGEST = 30 * 86400
#: Columns that say as what a key acts.
OWNED = frozenset({"team_id", "user_id", "role"})


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
    and Forbidden for a key that can, or then could, do more than whoever changes it. No key changes itself."""
    async with database.write() as session:
        row = await _good(session, who, reference)
        changes = await _owner(session, who, row, wish) | _plain(who, wish) | key_bounds.columns(wish, row.scopes)
        if wish.expires_at is not UNSET:
            changes["expires_at"] = key_policy.check(wish.expires_at, clock.utcnow(), ground.policy, row.created_at)
        changes = {name: value for name, value in changes.items() if getattr(row, name) != value}
        before = {name: _told(getattr(row, name)) for name in changes}
        rows.change(row, version, **changes)
        await _check(session, who, row, acting=bool(changes.keys() & OWNED))
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
    is shown its secret, for a key that asks for its own, and for a pass."""
    handing.check_lasting(who)
    async with database.write() as session:
        row = await _good(session, who, reference)
        await _check(session, who, row, acting=True)
        if row.provider:
            raise Conflict(f"This key has no secret: it stands for tokens of {row.provider}.", code="no_secret")
        now = clock.utcnow()
        until = now + timedelta(seconds=wish.grace_seconds)
        row.role = owners.pinned(who, await session.get(User, row.user_id) if row.user_id else None, row.role)
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
    if isinstance(who, Principal) and who.key_id == row.id:
        raise Conflict("A key neither changes nor rotates itself: who holds it could lift its bounds.", code="oneself")
    await _check(session, who, row)
    return row


async def _check(session: AsyncSession, who: Who | str, row: Key, *, acting: bool = False) -> None:
    """Raises Forbidden when the key can do more than somebody, or is bound by less than the key by which they ask; with `acting`, also when
    they may not hold it."""
    key = await handing.acting(session, row)
    await (handing.check_acting(session, who, key, kernel.UPDATE) if acting else handing.check_strength(session, who, key))
    key_bounds.check_held(await key_bounds.of_maker(session, who), row)


async def _owner(session: AsyncSession, who: Who | str, row: Key, wish: KeyChange) -> dict[str, Any]:
    """To whom it belongs from now on, as far as that is said."""
    changes: dict[str, Any] = {}
    if wish.team is not UNSET:
        changes["team_id"] = (await owners.team(session, who, row.org_id, wish.team)).id
    if wish.user is not UNSET:
        found = await owners.person(session, who, row.org_id, wish.user, kernel.UPDATE) if wish.user else None
        changes["user_id"] = found.id if found is not None else None
    if wish.role is not UNSET:
        await handing.check_named(session, row.org_id, wish.role)
        changes["role"] = wish.role
    if changes.keys() & {"user_id", "role"}:
        user_id = changes.get("user_id", row.user_id)
        user = await session.get(User, user_id) if user_id else None
        changes["role"] = owners.pinned(who, user, changes.get("role", row.role))
    return changes


def _plain(who: Who | str, wish: KeyChange) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if wish.name is not UNSET:
        changes["name"] = keys.clean(wish.name)
    if wish.priority is not UNSET:
        keys.check_priority(who, wish.priority)
        changes["priority"] = wish.priority
    if wish.trusted_proxy is not UNSET:
        changes["trusted_proxy"] = wish.trusted_proxy
    return changes
