"""API keys: made, found, revoked. Whether a presented key is good is decided in `gateway.auth`."""

import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import bindparam, func, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core import access
from mindgw.core.access import Models, Rights
from mindgw.errors import NotFound
from mindgw.store import access as roles
from mindgw.store import rows
from mindgw.store.tables import Key, KeyChange, Org, Team, User
from mindgw_agent import tokens

#: What helps who has named a key that is not there.
SEE = "`mindgw keys list` shows them all"


def digest(pepper: bytes, secret: str) -> bytes:
    """What is stored of a secret: 32 bytes that are worth nothing without the pepper."""
    return hmac.digest(pepper, secret.encode(), "sha256")


#: States of users whose keys are good: who was invited may have some before they sign in.
WELCOME = frozenset({"active", "invited"})


class Holder(NamedTuple):
    """A key and who has it."""

    key: Key
    #: Name of the team and address of the user, "" for none.
    team: str = ""
    user: str = ""
    #: What it may do, and which models it may use; None: all of them.
    rights: Rights = access.NOTHING
    models: Models | None = None
    #: Whether its user and its organisation may use the gateway.
    welcome: bool = True
    #: When it is good no longer, unless it is used or rotated before; None: nothing is known of that but what stands in its row.
    ends: datetime | None = None
    #: What the organisation's requests are bound to.
    labels: Mapping[str, Any] = MappingProxyType({})
    #: Name of the organisation where teams are named with it: another one than runs the server, or a team whose name looks as if.
    org: str = ""


class Change(NamedTuple):
    """That a key is not what it was, or those of a team, a user or an organisation may not be: fields are those of the table, where they
    are explained."""

    id: int
    noun: str
    row_id: str
    at: datetime


class Held(NamedTuple):
    """The bounds of a key that makes or changes others; fields are those of the table."""

    team_id: str
    scopes: dict[str, Any]
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    labels: dict[str, Any]


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a key to be made is like; fields are those of the table, where they are explained."""

    name: str
    org_id: str
    team_id: str | None = None
    user_id: str | None = None
    role: str | None = None
    priority: str = ""
    trusted_proxy: bool = False
    scopes: dict[str, Any] = {}
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    labels: dict[str, str] = {}
    expires_at: datetime | None = None


async def create(session: AsyncSession, wanted: NewKey, pepper: bytes, *, pepper_version: int = 1) -> tuple[Key, str]:
    """The row and the key itself, which exists nowhere else: show it once and forget it."""
    made = tokens.make_key()
    row = Key(
        **msgspec.structs.asdict(wanted),
        id=made.id,
        digest=digest(pepper, made.secret),
        pepper_version=pepper_version,
        last4=made.text[-4:],
    )
    session.add(row)
    await session.flush()
    return row, made.text


async def rotate(session: AsyncSession, row: Key, pepper: bytes, now: datetime, until: datetime, *, version: int | None = None) -> str:
    """Gives a key another secret; the one before is good until then, an earlier one no longer. Returns the key as it is now, which exists
    nowhere else. Raises PreconditionFailed."""
    secret = tokens.make_key().secret
    text = f"{tokens.KEY_PREFIX}{row.id}_{secret}"
    text += tokens.crc6(text)
    before = {"prior_digest": row.digest, "prior_pepper_version": row.pepper_version, "prior_until": until}
    rows.change(row, version, digest=digest(pepper, secret), pepper_version=1, last4=text[-4:], rotated_at=now, **before)
    await session.flush()
    return text


async def get(session: AsyncSession, key_id: str) -> Key | None:
    """The key with this id, revoked ones too."""
    return await session.get(Key, key_id)


async def held(session: AsyncSession, key_id: str) -> Held | None:
    """The bounds of the key with this id, also where the session is confined to other teams than its own: it is for whoever asks with
    that key."""
    table = Key.__table__  # type: ignore[attr-defined]
    row = (await (await session.connection()).execute(table.select().where(table.c.id == key_id))).first()
    return Held(row.team_id or "", row.scopes, row.rpm, row.tpm, row.concurrency, row.labels) if row is not None else None


async def holder(session: AsyncSession, key_id: str) -> Holder | None:
    """The key with this id, revoked ones too, with the names of its team and user, what it may do, and whether they are welcome."""
    facts = select(Key, Team.name, User, Org).join(Org, col(Key.org_id) == Org.id)
    joined = facts.join(Team, col(Key.team_id) == Team.id, isouter=True).join(User, col(Key.user_id) == User.id, isouter=True)
    found = (await session.exec(joined.where(Key.id == key_id))).first()
    if found is None:
        return None
    key, team, org = found[0], found[1] or "", found[3]
    user: User | None = found[2]
    rights = await roles.rights(session, key.org_id, user, key.role)
    about = roles.subjects(rights, key_id=key.id, user_id=key.user_id or "", team_id=key.team_id or "")
    models = await roles.models(session, key.org_id, about)
    welcome = org.state == "active" and (user is None or user.state in WELCOME)
    named = org.name if team and ("/" in team or org.id != await _home(session)) else ""
    return Holder(key, team, user.email if user is not None else "", rights, models, welcome, labels=org.labels or {}, org=named)


async def _home(session: AsyncSession) -> str | None:
    """Id of the organisation that runs the server: the first that there was."""
    return (await session.exec(select(Org.id).order_by(col(Org.created_at), col(Org.id)).limit(1))).first()


async def page(session: AsyncSession, *, after: str | None = None, limit: int = rows.PAGE, revoked: bool = True) -> Sequence[Key]:
    """Keys in the order of their making; `revoked=False` leaves out those that are no longer good."""
    where = () if revoked else (col(Key.revoked_at).is_(None),)
    return await rows.page(session, Key, *where, after=after, limit=limit)


async def revoke(session: AsyncSession, key_id: str, at: datetime, *, version: int | None = None) -> Key:
    """Ends a key for good; doing it twice is no error. Raises NotFound, PreconditionFailed."""
    row = await rows.locked(session, Key, key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id!r}.", hint=SEE)
    rows.expect(row, version)
    return row if row.revoked_at is not None else rows.change(row, revoked_at=at)


async def changes(session: AsyncSession, since: Change | None = None) -> list[Change]:
    """Every change since one that is known, which comes first itself: when it does not, it is too long ago, or the database another one.
    Without one the newest alone."""
    newest = select(func.max(KeyChange.id)).scalar_subquery()
    wanted = select(KeyChange.id, KeyChange.noun, KeyChange.row_id, KeyChange.at).order_by(col(KeyChange.id))
    found = await session.exec(wanted.where(col(KeyChange.id) >= (newest if since is None else since.id)))
    return [Change(*row) for row in found]


async def touch(session: AsyncSession, seen: Mapping[str, datetime]) -> None:
    """Notes when keys were last used. Not a change: the version stays, and a moment older than the noted one is ignored."""
    if not seen:
        return
    earlier = or_(col(Key.last_used_at).is_(None), col(Key.last_used_at) < bindparam("at"))
    noting = update(Key.__table__).where(Key.__table__.c.id == bindparam("key"), earlier).values(last_used_at=bindparam("at"))  # type: ignore[attr-defined]
    ordered = [{"key": key_id, "at": at} for key_id, at in sorted(seen.items())]  # in one order, or two servers may wait for each other
    await (await session.connection()).execute(noting, ordered)
