"""Whether identity providers still vouch for those whom they have sent: whom to ask about, with what, and what hangs on the answer.

What a provider is asked with is kept with the identity, the newest alone: one question stands for all sessions and keys of a person, and it
can be put after the last session has ended.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, case, exists, or_, update
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.identities import NEVER
from mindgw.store.tables import Identity, Key, Session, User
from mindgw.store.users import ACTIVE


class Idle(NamedTuple):
    """An identity on which nothing hangs, and what its provider gave for being asked."""

    id: str
    issuer: str
    refresh: bytes


def _has_sessions(now: datetime) -> ColumnElement[bool]:
    good = col(Session.revoked_at).is_(None), col(Session.expires_at) > now
    return exists().where(col(Session.identity_id) == col(Identity.id), *good)


def _has_keys(now: datetime) -> ColumnElement[bool]:
    """Keys with a secret: those without one stand for tokens, which end by themselves."""
    good = col(Key.revoked_at).is_(None), or_(col(Key.expires_at).is_(None), col(Key.expires_at) > now)
    return exists().where(col(Key.user_id) == col(Identity.user_id), col(Key.provider) == "", *good)


async def due(session: AsyncSession, issuer: str, now: datetime, pause: timedelta, most: int) -> Sequence[str]:
    """Ids of identities that a provider is to be asked about, because there are sessions or keys by them, those that have waited longest
    first; none that somebody has begun to ask about within `pause`."""
    mine = col(Identity.issuer) == issuer, col(Identity.refresh).is_not(None), col(Identity.due_at) <= now
    free = or_(col(Identity.checked_at).is_(None), col(Identity.checked_at) < now - pause)
    wanted = select(Identity.id).join(User, col(User.id) == col(Identity.user_id)).where(col(User.state) == ACTIVE, *mine, free)
    wanted = wanted.where(or_(_has_sessions(now), _has_keys(now)))
    return (await session.exec(wanted.order_by(col(Identity.due_at), col(Identity.id)).limit(most))).all()


async def begin(session: AsyncSession, identity_id: str, now: datetime, pause: timedelta) -> bool:
    """Whether it is for the caller to ask about somebody now: of all who want to within `pause` one may, for many providers take what they
    are asked with once. The caller says how it ended, by `put_off` or `vouch`."""
    free = or_(col(Identity.checked_at).is_(None), col(Identity.checked_at) < now - pause)
    mine = col(Identity.id) == identity_id, col(Identity.refresh).is_not(None), col(Identity.due_at) <= now
    return bool((await session.exec(update(Identity).where(*mine, free).values(checked_at=now))).rowcount)


async def swap(session: AsyncSession, identity_id: str, old: bytes, new: bytes | None) -> bool:
    """Keeps `new` in place of what a provider was asked with; False when that is not what is kept any more, as somebody has signed in
    meanwhile."""
    mine = col(Identity.id) == identity_id, col(Identity.refresh) == old
    return bool((await session.exec(update(Identity).where(*mine).values(refresh=new))).rowcount)


async def put_off(session: AsyncSession, identity_id: str, until: datetime) -> None:
    """It came to nothing: the next question is then."""
    await session.exec(update(Identity).where(col(Identity.id) == identity_id).values(due_at=until, checked_at=None))


async def vouch(session: AsyncSession, identity_id: str, now: datetime, span: timedelta) -> None:
    """A provider vouches for somebody: their sessions by it are good for `span`, those that have not ended before, and in half of that it
    is asked again."""
    said = {"vouched_at": now, "due_at": now + span / 2, "checked_at": None}
    await session.exec(update(Identity).where(col(Identity.id) == identity_id).values(**said))
    until = now + span
    last = case((col(Session.ends_at) < until, col(Session.ends_at)), else_=until)
    good = col(Session.revoked_at).is_(None), col(Session.expires_at) > now, col(Session.expires_at) < until
    await session.exec(update(Session).where(col(Session.identity_id) == identity_id, *good).values(expires_at=last))


async def end_sessions(session: AsyncSession, identity_id: str, now: datetime) -> int:
    """Ends the sessions by an identity for good; how many were still good."""
    good = col(Session.revoked_at).is_(None), col(Session.expires_at) > now
    ended = update(Session).where(col(Session.identity_id) == identity_id, *good).values(revoked_at=now)
    return int((await session.exec(ended)).rowcount)


async def silent(session: AsyncSession, before: datetime, now: datetime, most: int) -> Sequence[str]:
    """Ids of identities of people who have keys, and for whom no provider that ever did has vouched since `before`."""
    other = aliased(Identity)
    better = exists().where(col(other.user_id) == col(Identity.user_id), col(other.vouched_at) >= before)
    old = col(Identity.vouched_at) < before, col(Identity.claims_at) != NEVER
    wanted = select(Identity.id).join(User, col(User.id) == col(Identity.user_id))
    wanted = wanted.where(col(User.state) == ACTIVE, *old, ~better, _has_keys(now))
    return (await session.exec(wanted.order_by(col(Identity.vouched_at), col(Identity.id)).limit(most))).all()


async def idle(session: AsyncSession, now: datetime, most: int) -> Sequence[Idle]:
    """Identities that are kept something for, and on which neither a session nor a key hangs."""
    wanted = select(Identity).where(col(Identity.refresh).is_not(None), ~_has_sessions(now), ~_has_keys(now))
    found = (await session.exec(wanted.order_by(col(Identity.id)).limit(most))).all()
    return [Idle(row.id, row.issuer, row.refresh) for row in found if row.refresh is not None]


async def lost(session: AsyncSession, user_id: str) -> Sequence[Identity]:
    """By which identities somebody is out."""
    return (await session.exec(select(Identity).where(col(Identity.user_id) == user_id, col(Identity.lost_at).is_not(None)))).all()


async def trust(session: AsyncSession, user_id: str, now: datetime) -> None:
    """Somebody here vouches for a user in place of all providers."""
    await session.exec(update(Identity).where(col(Identity.user_id) == user_id).values(lost_at=None, vouched_at=now))
