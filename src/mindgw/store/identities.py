"""Whom identity providers know, which sessions they vouch for, and sign-ons that were finished."""

import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, delete, exists, func, or_, update
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.access import USER
from mindgw.store import rows
from mindgw.store.tables import Identity, Key, RoleBinding, Session, Ticket, User
from mindgw.store.users import ACTIVE
from mindgw_agent import tokens

#: When the claims were made of somebody of whom the provider has said nothing yet.
NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Sessions of which a provider is asked in one round.
ROUND = 50


class Known(NamedTuple):
    """Somebody whom a provider knows."""

    identity: Identity
    user: User


async def find(session: AsyncSession, issuer: str, subject: str, *, lock: bool = False) -> Known | None:
    """Who that is; with `lock` nobody else changes the user until the transaction ends."""
    wanted = select(Identity).where(col(Identity.issuer) == issuer, col(Identity.subject) == subject)
    identity = (await session.exec(wanted)).first()
    if identity is None:
        return None
    user = await rows.locked(session, User, identity.user_id) if lock else await session.get(User, identity.user_id)
    if lock:  # somebody else may have changed both before
        await session.refresh(identity)
    return Known(identity, user) if user is not None else None


async def of_session(session: AsyncSession, row: Session) -> Known | None:
    """Who has signed on with it; None: nobody did."""
    identity = await session.get(Identity, row.identity_id) if row.identity_id else None
    user = await session.get(User, identity.user_id) if identity is not None else None
    return Known(identity, user) if identity is not None and user is not None else None


async def add(session: AsyncSession, identity: Identity) -> bool:
    """False when somebody else added the same one a moment ago."""
    return bool((await session.exec(rows.insert_once(session, Identity).values(**identity.model_dump()))).rowcount)


async def make(session: AsyncSession, user: User, who: tuple[str, str], *, provider: str, team_id: str, at: datetime) -> Identity | None:
    """Notes that a provider knows a user as `who`, its issuer and subject, and makes the key that tokens of theirs stand for: it has no
    secret. None when somebody is known so already; the caller then gives its transaction up."""
    key = Key(
        id=tokens.make_key().id, name=f"sign-on {provider}", digest=os.urandom(32),
        org_id=user.org_id, team_id=team_id, user_id=user.id, provider=provider,
    )  # fmt: skip
    session.add(key)
    await session.flush()
    identity = Identity(issuer=who[0], subject=who[1], user_id=user.id, provider=provider, key_id=key.id, claims_at=at)
    if at != NEVER:
        identity.vouched_at = at
    return identity if await add(session, identity) else None


async def of_user(session: AsyncSession, user_id: str) -> Sequence[Identity]:
    """By what somebody is known, in the order of their making."""
    mine = select(Identity).where(col(Identity.user_id) == user_id)
    return (await session.exec(mine.order_by(col(Identity.created_at), col(Identity.id)).limit(rows.PAGE))).all()


async def unmake(session: AsyncSession, identity: Identity, now: datetime) -> int:
    """Forgets one for good, with its key, its sessions, and the teams that its provider gave; how many sessions were still good. The caller
    holds the user's row."""
    mine = col(Session.identity_id) == identity.id
    good = col(Session.revoked_at).is_(None), col(Session.expires_at) > now
    ended = int((await session.exec(update(Session).where(mine, *good).values(revoked_at=now))).rowcount)
    await session.exec(update(Session).where(mine).values(identity_id="", refresh=None))
    await bind_teams(session, identity.user_id, identity.issuer, ())
    key = await key_of(session, identity)
    if key.revoked_at is None:
        rows.change(key, revoked_at=now)
    await session.delete(identity)
    await session.flush()
    return ended


class Teams(NamedTuple):
    """What has become of somebody's teams."""

    #: Ids of those in which they have no role any more.
    gone: frozenset[str]
    is_changed: bool


async def bind_teams(session: AsyncSession, user_id: str, issuer: str, team_ids: Collection[str]) -> Teams:
    """Makes these the teams in which a provider has the user be one; what people have said stays. The caller holds the user's row."""
    held = (await session.exec(select(RoleBinding).where(col(RoleBinding.user_id) == user_id, col(RoleBinding.team_id).is_not(None)))).all()
    own = [row for row in held if row.role == USER]
    gone = [row for row in own if row.provider == issuer and row.team_id not in team_ids]
    fresh = [team_id for team_id in team_ids if team_id not in {row.team_id for row in own}]
    for row in gone:
        await session.delete(row)
    session.add_all([RoleBinding(user_id=user_id, role=USER, team_id=team_id, provider=issuer) for team_id in fresh])
    await session.flush()
    left = {row.team_id for row in held if row not in gone}
    return Teams(frozenset(row.team_id for row in gone if row.team_id and row.team_id not in left), bool(gone or fresh))


async def keys_in(session: AsyncSession, user_id: str, team_ids: Collection[str]) -> Sequence[Key]:
    """Keys of somebody in these teams that are good, but those that stand for tokens."""
    mine = col(Key.user_id) == user_id, col(Key.team_id).in_(team_ids), col(Key.revoked_at).is_(None), col(Key.provider) == ""
    return (await session.exec(select(Key).where(*mine))).all()


async def key_of(session: AsyncSession, identity: Identity) -> Key:
    """The key that requests with a token of theirs count under."""
    return await session.get_one(Key, identity.key_id)


# -- sessions ----------------------------------------------------------------------------------------------------------


Due = Sequence[tuple[str, str]]


async def due(session: AsyncSession, now: datetime, ahead: timedelta, pause: timedelta, without: Collection[str] = ()) -> Due:
    """(id, name of the provider) of sessions that end within `ahead` unless their provider is asked, those first of which nobody has asked
    for longest; none that somebody has begun to ask of within `pause`, none of providers `without`."""
    soon = col(Session.expires_at) < now + ahead, col(Session.expires_at) < col(Session.ends_at)
    return await _asked_of(session, now - pause, without, *_good(Session, now), *soon)


async def absent(session: AsyncSession, now: datetime, silence: timedelta, pause: timedelta, without: Collection[str] = ()) -> Due:
    """The same of sessions that are over, of people who are signed in nowhere and have keys, when nobody has vouched for them for
    `silence`."""
    other = aliased(Session)
    within = select(other.id).where(col(other.identity_id) == col(Session.identity_id), *_good(other, now))
    keys = select(Key.id).where(col(Key.user_id) == col(Session.user_id), col(Key.revoked_at).is_(None), col(Key.provider) == "")
    active = select(User.id).where(col(User.id) == col(Session.user_id), col(User.state) == ACTIVE)
    over = or_(col(Session.revoked_at).is_not(None), col(Session.expires_at) <= now), col(Session.refresh).is_not(None)
    silent = col(Identity.vouched_at) < now - silence
    return await _asked_of(session, now - pause, without, *over, silent, exists(active), exists(keys), ~exists(within))


def _good(table: type[Session], now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Sessions that are good, and of which the provider can be asked."""
    return col(table.revoked_at).is_(None), col(table.refresh).is_not(None), col(table.expires_at) > now


async def _asked_of(session: AsyncSession, before: datetime, without: Collection[str], *where: ColumnElement[bool]) -> Due:
    asked = or_(col(Session.checked_at).is_(None), col(Session.checked_at) < before)
    wanted = select(Session.id, Identity.provider).join(Identity, col(Identity.id) == col(Session.identity_id)).where(*where, asked)
    wanted = wanted.where(col(Identity.provider).not_in(without)) if without else wanted
    return (await session.exec(wanted.order_by(col(Session.checked_at).nulls_first(), col(Session.expires_at)).limit(ROUND))).all()


async def begin_check(session: AsyncSession, session_id: str, now: datetime, pause: timedelta) -> bool:
    """Whether it is for the caller to ask the provider about a session, one that is over too: of all who want to within `pause` one may. A
    refresh token is good once at many providers."""
    asked = or_(col(Session.checked_at).is_(None), col(Session.checked_at) < now - pause)
    mine = update(Session).where(col(Session.id) == session_id, asked).values(checked_at=now)
    return bool((await session.exec(mine)).rowcount)


async def supersede(session: AsyncSession, identity_id: str, now: datetime) -> None:
    """Sessions that are over are not asked of any more: their person has signed in anew."""
    over = or_(col(Session.revoked_at).is_not(None), col(Session.expires_at) <= now)
    await session.exec(update(Session).where(col(Session.identity_id) == identity_id, over).values(refresh=None))


async def unvouched(session: AsyncSession, before: datetime) -> Sequence[Known]:
    """People for whom no provider has vouched since then, of those that ever did; some of them."""
    other = aliased(Identity)
    since = select(other.id).where(col(other.user_id) == col(Identity.user_id), col(other.vouched_at) >= before)
    wanted = select(Identity, User).join(User, col(User.id) == col(Identity.user_id))
    wanted = wanted.where(col(User.state) == ACTIVE, col(Identity.vouched_at) < before, ~exists(since)).limit(ROUND)
    return [Known(identity, user) for identity, user in (await session.exec(wanted)).all()]


async def vouch(session: AsyncSession, user_id: str, now: datetime) -> None:
    """Somebody here does so in place of the providers."""
    known = col(Identity.user_id) == user_id, col(Identity.vouched_at).is_not(None)
    await session.exec(update(Identity).where(*known).values(vouched_at=now))


async def others(session: AsyncSession, identity_id: str, session_id: str, now: datetime) -> int:
    """How many other sessions of an identity are good and will be asked about."""
    mine = col(Session.identity_id) == identity_id, col(Session.id) != session_id
    return (await session.exec(select(func.count()).select_from(Session).where(*_good(Session, now), *mine))).one()


# -- tickets -----------------------------------------------------------------------------------------------------------


async def spend(session: AsyncSession, ticket: str, until: datetime) -> bool:
    """Notes that a sign-on is finished; False when it was before."""
    return bool((await session.exec(rows.insert_once(session, Ticket).values(id=ticket, expires_at=until))).rowcount)


async def forget_tickets(session: AsyncSession, now: datetime) -> int:
    """Removes those that could not be used again anyway."""
    return int((await session.exec(delete(Ticket).where(col(Ticket.expires_at) < now))).rowcount)
