"""Whom identity providers know, and sign-ons that were finished. Whether they still vouch for them is `vouching`."""

import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import delete, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.access import USER
from mindgw.store import people, rows
from mindgw.store.tables import Departure, Identity, Key, RoleBinding, Session, Ticket, User
from mindgw_agent import tokens

#: When the claims were made of somebody of whom the provider has said nothing yet.
NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Known(NamedTuple):
    """Somebody whom a provider knows."""

    identity: Identity
    user: User


class Bound(NamedTuple):
    """What became of somebody's teams."""

    gone: set[str]
    fresh: set[str]


async def find(session: AsyncSession, issuer: str, subject: str, *, lock: bool = False) -> Known | None:
    """Who that is; with `lock` nobody else changes the user until the transaction ends."""
    wanted = select(Identity).where(col(Identity.issuer) == issuer, col(Identity.subject) == subject)
    identity = (await session.exec(wanted)).first()
    if identity is None:
        return None
    user = await rows.locked(session, User, identity.user_id) if lock else await session.get(User, identity.user_id)
    if lock:  # somebody else may have changed both before, or taken the identity away
        found = (await session.exec(wanted.execution_options(populate_existing=True))).first()
        if found is None or found.user_id != identity.user_id:
            return None
    return Known(identity, user) if user is not None else None


async def known(session: AsyncSession, identity_id: str) -> Known | None:
    """Who that is, as it is now; "" is nobody."""
    identity = await session.get(Identity, identity_id, populate_existing=True) if identity_id else None
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
    identity = Identity(issuer=who[0], subject=who[1], user_id=user.id, provider=provider, key_id=key.id, claims_at=at, vouched_at=at)
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
    await session.exec(update(Session).where(mine).values(identity_id=""))
    await move_keys(session, identity.user_id, (await bind_teams(session, identity, ())).gone)
    key = await key_of(session, identity)
    if key.revoked_at is None:
        rows.change(key, revoked_at=now)
    await session.delete(identity)
    await session.flush()
    return ended


async def bind_teams(session: AsyncSession, identity: Identity, team_ids: Collection[str]) -> Bound:
    """Makes these the teams in which a provider has somebody be a user; what people have said stays, and so does what another provider
    has. The caller holds the user's row."""
    mine = col(RoleBinding.user_id) == identity.user_id, col(RoleBinding.role) == USER, col(RoleBinding.team_id).is_not(None)
    held = (await session.exec(select(RoleBinding).where(*mine))).all()
    gone = [row for row in held if row.identity_id == identity.id and row.team_id not in team_ids]
    fresh = [team_id for team_id in team_ids if team_id not in {row.team_id for row in held}]
    for row in gone:
        await session.delete(row)
    made = [RoleBinding(user_id=identity.user_id, role=USER, team_id=team_id, identity_id=identity.id) for team_id in fresh]
    session.add_all(made)
    await session.flush()
    return Bound({row.team_id for row in gone if row.team_id}, set(fresh))


async def move_keys(session: AsyncSession, user_id: str, left: Collection[str], into: str = "") -> list[str]:
    """Moves somebody's keys out of teams in which they have no role any more, to another one, "" for one that is left; also those that
    are revoked, for a key is what makes a team somebody's own (`users.team_ids`). Ids of those that are not. The caller holds the user's
    row."""
    bound = set((await session.exec(select(RoleBinding.team_id).where(col(RoleBinding.user_id) == user_id))).all())
    lost = {team_id for team_id in left if team_id not in bound}
    if not lost:
        return []
    moved = (await session.exec(select(Key).where(col(Key.user_id) == user_id, col(Key.team_id).in_(lost)))).all()
    left_over = sorted(team_id for team_id in bound if team_id)
    for key in moved:
        target = into or (left_over[0] if left_over else (await people.get_or_create_team(session, key.org_id)).id)
        rows.change(key, team_id=target)
    await session.flush()
    return [key.id for key in moved if key.revoked_at is None]


async def key_of(session: AsyncSession, identity: Identity) -> Key:
    """The key that requests with a token of theirs count under."""
    return await session.get_one(Key, identity.key_id)


# -- whoever was removed -------------------------------------------------------------------------------------------------


async def depart(session: AsyncSession, user_id: str, now: datetime) -> None:
    """Forgets by what somebody was known who is removed, but for when that was."""
    mine = (await session.exec(select(Identity).where(col(Identity.user_id) == user_id))).all()
    for one in mine:
        same = {"issuer": one.issuer, "subject": one.subject}
        await session.exec(delete(Departure).where(*(col(getattr(Departure, name)) == value for name, value in same.items())))
        session.add(Departure(**same, at=now))
        await session.delete(one)
    await session.flush()


async def departed(session: AsyncSession, issuer: str, subject: str) -> datetime | None:
    """When somebody was removed; None: nobody was, or that is long ago."""
    row = await session.get(Departure, (issuer, subject))
    return row.at if row is not None else None


async def forget_departures(session: AsyncSession, before: datetime) -> int:
    """Removes those of before that moment."""
    return int((await session.exec(delete(Departure).where(col(Departure.at) < before))).rowcount)


# -- tickets -----------------------------------------------------------------------------------------------------------


async def spend(session: AsyncSession, ticket: str, until: datetime) -> bool:
    """Notes that a sign-on is finished; False when it was before."""
    return bool((await session.exec(rows.insert_once(session, Ticket).values(id=ticket, expires_at=until))).rowcount)


async def forget_tickets(session: AsyncSession, now: datetime) -> int:
    """Removes those that could not be used again anyway."""
    return int((await session.exec(delete(Ticket).where(col(Ticket.expires_at) < now))).rowcount)
