"""Sign-ins of people: made, found, ended. Whether a presented session is good is decided in `control.sessions`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import delete, exists, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.access import Rights
from mindgw.store import access, rows
from mindgw.store.keys import digest
from mindgw.store.tables import Identity, Key, Org, Session, User
from mindgw_agent import tokens

#: Characters that are kept of what a client calls itself.
MAX_AGENT = 120


class Signed(NamedTuple):
    """A session and whose it is."""

    session: Session
    user: User
    org: Org
    #: What its user may do.
    rights: Rights


async def create(
    session: AsyncSession, user_id: str, pepper: bytes, *, at: datetime, until: datetime, agent: str = "", identity: Identity | None = None
) -> tuple[Session, str]:
    """The row and the secret itself, which exists nowhere else: show it once and forget it. `identity`: by which the user has signed on."""
    made = tokens.make_session()
    row = Session(
        id=made.id,
        user_id=user_id,
        digest=digest(pepper, made.secret),
        created_at=at,
        expires_at=until,
        agent="".join(c for c in agent[:MAX_AGENT] if c.isprintable()),
        identity_id=identity.id if identity is not None else "",
    )
    session.add(row)
    await session.flush()
    return row, made.text


async def find(session: AsyncSession, session_id: str) -> Signed | None:
    """The session with this id, one that has ended too."""
    joined = select(Session, User, Org).join(User, col(Session.user_id) == User.id).join(Org, col(User.org_id) == Org.id)
    found = (await session.exec(joined.where(Session.id == session_id))).first()
    if found is None:
        return None
    row, user, org = found
    return Signed(row, user, org, await access.rights(session, org.id, user))


async def open_ones(session: AsyncSession, user_id: str, now: datetime) -> Sequence[Session]:
    """The sessions of a user that are good, the latest first; a page of them."""
    wanted = select(Session).where(Session.user_id == user_id, col(Session.revoked_at).is_(None), col(Session.expires_at) > now)
    return (await session.exec(wanted.order_by(col(Session.created_at).desc(), col(Session.id)).limit(rows.PAGE))).all()


async def end(session: AsyncSession, user_id: str, now: datetime, session_id: str | None = None) -> int:
    """Ends one session of a user, or all of them, for good; how many of those were still good. What an identity provider is asked with
    stays: the user may have keys, and somebody has to ask whether it still knows them."""
    good = col(Session.user_id) == user_id, col(Session.revoked_at).is_(None), col(Session.expires_at) > now
    one = () if session_id is None else (col(Session.id) == session_id,)
    return int((await session.exec(update(Session).where(*good, *one).values(revoked_at=now))).rowcount)


async def forget(session: AsyncSession, before: datetime) -> int:
    """Removes sessions that ended before that moment, but those by which an identity provider can be asked about somebody with keys."""
    over = or_(col(Session.expires_at) < before, col(Session.revoked_at) < before)
    keys = select(Key.id).where(col(Key.user_id) == col(Session.user_id), col(Key.revoked_at).is_(None), col(Key.provider) == "")
    needless = or_(col(Session.refresh).is_(None), ~exists(keys))
    return int((await session.exec(delete(Session).where(over, needless))).rowcount)


async def seal(session: AsyncSession, session_id: str, refresh: bytes | None) -> None:
    """Keeps what the provider is asked with from now on; None: nothing."""
    await session.exec(update(Session).where(col(Session.id) == session_id).values(refresh=refresh))


async def unseal(session: AsyncSession, user_id: str) -> None:
    """Nobody is asked about any session of that user."""
    await session.exec(update(Session).where(col(Session.user_id) == user_id).values(refresh=None))


async def touch(session: AsyncSession, seen: Mapping[str, tuple[str, datetime]]) -> None:
    """Notes when sessions, and the users they are of, were last seen: id -> (user id, when). No change: versions stay."""
    for session_id, (_, at) in sorted(seen.items()):  # in one order, or two servers may wait for each other
        earlier = or_(col(Session.last_seen_at).is_(None), col(Session.last_seen_at) < at)
        await session.exec(update(Session).where(col(Session.id) == session_id, earlier).values(last_seen_at=at))
    last: dict[str, datetime] = {}
    for user_id, at in seen.values():
        last[user_id] = max(at, last.get(user_id, at))
    for user_id, at in sorted(last.items()):
        earlier = or_(col(User.last_seen_at).is_(None), col(User.last_seen_at) < at)
        await session.exec(update(User).where(col(User.id) == user_id, earlier).values(last_seen_at=at))
