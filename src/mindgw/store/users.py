"""People and service accounts: invited, found, disabled, removed. Their organisations and teams are in `people`."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import delete, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import NotFound
from mindgw.store import rows
from mindgw.store.ids import new_id
from mindgw.store.keys import digest
from mindgw.store.tables import AccessRule, Identity, Key, Rate, RoleBinding, Session, User
from mindgw_agent import tokens

#: What helps who has named somebody who is not there.
SEE = "`mindgw users list` shows them all"
#: Domain of the addresses of service accounts: nobody gets mail there.
SERVICE = "service"
#: States. Rows of people who were removed stay, so that what they used keeps its name; who has lapsed comes back by their identity
#: provider alone.
INVITED, ACTIVE, DISABLED, REMOVED, LAPSED = "invited", "active", "disabled", "removed", "lapsed"


class NewUser(msgspec.Struct, frozen=True, kw_only=True):
    """What a user to be made is like; `email` is checked and in lower case."""

    org_id: str
    email: str
    name: str = ""
    role: str = "user"
    service: bool = False
    state: str = ACTIVE


async def find(session: AsyncSession, org_id: str, reference: str, *, lock: bool = False) -> User:
    """Somebody of that organisation by id or address; with `lock` nobody else changes them until the transaction ends. Raises NotFound,
    also for who was removed."""
    same = (User.id == reference) | (User.email == reference.strip().lower())
    wanted = select(User).where(same, User.org_id == org_id, User.state != REMOVED)
    row = (await session.exec(wanted.with_for_update() if lock else wanted)).first()
    if row is None:
        raise NotFound(f"There is no user {reference!r}.", hint=SEE)
    if lock:
        await session.refresh(row)
    return row


async def page(session: AsyncSession, org_id: str, *, after: str | None = None, limit: int = rows.PAGE) -> Sequence[User]:
    """The users of an organisation in the order of their making, without those who were removed."""
    return await rows.page(session, User, User.org_id == org_id, User.state != REMOVED, after=after, limit=limit)


async def obtain(session: AsyncSession, wanted: NewUser) -> tuple[User, bool]:
    """The user with that address, locked, and whether it was made now; whoever had been removed comes back as a new one, under the old
    id."""
    made = new_id()
    row = User(**msgspec.structs.asdict(wanted), id=made)
    await session.exec(rows.insert_once(session, User).values(**row.model_dump()))
    same = User.org_id == wanted.org_id, User.email == wanted.email
    found = (await session.exec(select(User).where(*same).with_for_update())).one()
    await session.refresh(found)
    if found.state != REMOVED:
        return found, found.id == made
    again = rows.change(found, name=wanted.name, role=wanted.role, service=wanted.service, state=wanted.state, last_seen_at=None)
    return again, True


async def was_removed(session: AsyncSession, org_id: str, email: str) -> bool:
    """Whether somebody with that address was here, and is no more."""
    gone = User.org_id == org_id, User.email == email, User.state == REMOVED
    return (await session.exec(select(User.id).where(*gone))).first() is not None


async def invite(session: AsyncSession, row: User, pepper: bytes, until: datetime) -> str:
    """The text by which this user signs in once, in place of any before it: show it once and forget it. `row` is locked."""
    secret, text = tokens.make_invitation(row.id)
    rows.change(row, invite_digest=digest(pepper, secret), invite_expires_at=until)
    await session.flush()
    return text


async def remove(session: AsyncSession, row: User, now: datetime) -> None:
    """Takes away all that a locked user has: keys for good, roles, the invitation, what identity providers know them by, and what is said
    of them alone: rules for models, the rate. Who comes back comes as somebody new. The row stays, out of sight."""
    good = col(Key.user_id) == row.id, col(Key.revoked_at).is_(None)
    await session.exec(update(Key).where(*good).values(revoked_at=now, version=col(Key.version) + 1))
    await session.exec(delete(RoleBinding).where(col(RoleBinding.user_id) == row.id))
    await session.exec(update(Session).where(col(Session.user_id) == row.id).values(identity_id="", refresh=None))
    await session.exec(delete(Identity).where(col(Identity.user_id) == row.id))
    await session.exec(delete(AccessRule).where(col(AccessRule.org_id) == row.org_id, col(AccessRule.subject) == f"user:{row.id}"))
    await session.exec(delete(Rate).where(col(Rate.scope) == f"user:{row.id}"))
    rows.change(row, state=REMOVED, role="user", invite_digest=None, invite_expires_at=None)
    await session.flush()


async def team_ids(session: AsyncSession, user_id: str) -> set[str]:
    """Teams in which a user has a role, or ever had a key. What is said of a team could be got round by keys in another."""
    bound = select(RoleBinding.team_id).where(col(RoleBinding.user_id) == user_id)
    of_keys = select(Key.team_id).where(col(Key.user_id) == user_id).distinct()
    found = (*(await session.exec(bound)).all(), *(await session.exec(of_keys)).all())
    return {team_id for team_id in found if team_id}


async def key_ids(session: AsyncSession, user_id: str) -> Sequence[str]:
    """Ids of the keys of a user, without those that were revoked."""
    return (await session.exec(select(Key.id).where(Key.user_id == user_id, col(Key.revoked_at).is_(None)))).all()
