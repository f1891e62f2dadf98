"""Whom identity providers know, which sessions they vouch for, and sign-ons that were finished."""

import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import delete, func, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.access import USER
from mindgw.store import rows
from mindgw.store.tables import Identity, Key, RoleBinding, Session, Ticket, User
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
    await bind_teams(session, identity.user_id, identity.provider, ())
    key = await key_of(session, identity)
    if key.revoked_at is None:
        rows.change(key, revoked_at=now)
    await session.delete(identity)
    await session.flush()
    return ended


async def bind_teams(session: AsyncSession, user_id: str, provider: str, team_ids: Collection[str]) -> bool:
    """Makes these the teams in which a provider has the user be one; what people have said stays. Whether anything was changed. The
    caller holds the user's row."""
    mine = col(RoleBinding.user_id) == user_id, col(RoleBinding.role) == USER, col(RoleBinding.team_id).is_not(None)
    held = (await session.exec(select(RoleBinding).where(*mine))).all()
    gone = [row for row in held if row.provider == provider and row.team_id not in team_ids]
    fresh = [team_id for team_id in team_ids if team_id not in {row.team_id for row in held}]
    for row in gone:
        await session.delete(row)
    session.add_all([RoleBinding(user_id=user_id, role=USER, team_id=team_id, provider=provider) for team_id in fresh])
    await session.flush()
    return bool(gone or fresh)


async def key_of(session: AsyncSession, identity: Identity) -> Key:
    """The key that requests with a token of theirs count under."""
    return await session.get_one(Key, identity.key_id)


# -- sessions ----------------------------------------------------------------------------------------------------------


async def due(session: AsyncSession, now: datetime, ahead: timedelta, pause: timedelta) -> Sequence[tuple[str, str]]:
    """(id, name of the provider) of sessions that end within `ahead` unless their provider is asked, those that end first; none that
    somebody has begun to ask of within `pause`."""
    asked = or_(col(Session.checked_at).is_(None), col(Session.checked_at) < now - pause)
    good = col(Session.revoked_at).is_(None), col(Session.refresh).is_not(None), col(Session.expires_at) > now
    soon = col(Session.expires_at) < now + ahead, col(Session.expires_at) < col(Session.ends_at)
    wanted = select(Session.id, Identity.provider).join(Identity, col(Identity.id) == col(Session.identity_id)).where(*good, *soon, asked)
    return (await session.exec(wanted.order_by(col(Session.expires_at)).limit(ROUND))).all()


async def begin_check(session: AsyncSession, session_id: str, now: datetime, pause: timedelta) -> bool:
    """Whether it is for the caller to ask the provider about a session: of all who want to within `pause` one may. A refresh token is good
    once at many providers."""
    asked = or_(col(Session.checked_at).is_(None), col(Session.checked_at) < now - pause)
    mine = update(Session).where(col(Session.id) == session_id, col(Session.revoked_at).is_(None), asked).values(checked_at=now)
    return bool((await session.exec(mine)).rowcount)


async def others(session: AsyncSession, identity_id: str, session_id: str, now: datetime) -> int:
    """How many other sessions of an identity are good and will be asked about."""
    good = col(Session.revoked_at).is_(None), col(Session.refresh).is_not(None), col(Session.expires_at) > now
    mine = col(Session.identity_id) == identity_id, col(Session.id) != session_id
    return (await session.exec(select(func.count()).select_from(Session).where(*good, *mine))).one()


# -- tickets -----------------------------------------------------------------------------------------------------------


async def spend(session: AsyncSession, ticket: str, until: datetime) -> bool:
    """Notes that a sign-on is finished; False when it was before."""
    return bool((await session.exec(rows.insert_once(session, Ticket).values(id=ticket, expires_at=until))).rowcount)


async def forget_tickets(session: AsyncSession, now: datetime) -> int:
    """Removes those that could not be used again anyway."""
    return int((await session.exec(delete(Ticket).where(col(Ticket.expires_at) < now))).rowcount)
