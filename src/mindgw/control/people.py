"""People as management sees them: invited, let in, shut out. Every change is audited in its own transaction; what somebody has running is
cut off when the change is on the disk."""

import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control import handing, stewards
from mindgw.control.pages import Page, page_of
from mindgw.control.principal import Principal
from mindgw.core.access import ADMIN, Role
from mindgw.errors import BadRequest, Conflict, NotFound, Unauthenticated
from mindgw.store import access, audit, identities, keys, people, rows, sessions, users
from mindgw.store.database import Database
from mindgw.store.tables import Org, Session, User
from mindgw.store.users import ACTIVE, DISABLED, INVITED, LAPSED, SERVICE, NewUser
from mindgw_agent import tokens

#: Seconds for which an invitation is good: usually, and at most.
INVITED_FOR, LONGEST = 7 * 86400, 30 * 86400

Name = Annotated[str, Meta(max_length=people.MAX_NAME)]
#: Takes the id of a user and ends what their keys and sessions have running.
Cut = Callable[[str], None]


class UserView(Struct, frozen=True, kw_only=True):
    """Somebody, or a service account."""

    id: str
    email: str
    name: str
    #: Name of their role in the whole organisation.
    role: str
    #: invited, active, disabled, or lapsed: an identity provider does not vouch for them any more.
    state: str
    #: Whether it is a program, which has keys but never signs in.
    service: bool
    created_at: datetime
    last_seen_at: datetime | None
    #: Until when their invitation is good; None: there is none.
    invite_expires_at: datetime | None
    version: int


class Invited(UserView, frozen=True, kw_only=True):
    """With what lets them in once, which is never shown again."""

    invitation: str


class Invite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is to be invited, and as what. Whoever is there already keeps name and role, and gets another way to sign in."""

    email: Annotated[str, Meta(min_length=3, max_length=people.MAX_NAME)]
    role: Name | None = None
    name: Name = ""
    ttl_seconds: Annotated[int, Meta(ge=60, le=LONGEST)] = INVITED_FOR


class ServiceWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a service account to be made is like."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
    role: Name = "user"


class UserChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different."""

    role: Name | UnsetType = UNSET
    name: Name | UnsetType = UNSET


class SessionView(Struct, frozen=True, kw_only=True):
    """A sign-in without its secret."""

    id: str
    created_at: datetime
    expires_at: datetime
    last_seen_at: datetime | None
    #: What its client calls itself.
    agent: str
    #: Whether it is the one that asks.
    current: bool = False


class Accepted(Struct, frozen=True, kw_only=True):
    """Somebody who is in now, with the session that is never shown again."""

    session: str
    user: str
    role: str
    expires_at: datetime


# -- who there is ------------------------------------------------------------------------------------------------------


async def listing(database: Database, who: Principal, *, after: str | None = None, limit: int) -> Page[UserView]:
    """Users in the order of their making."""
    async with database.read() as session:
        return page_of([view(row) for row in await users.page(session, who.org_id, after=after, limit=limit)], limit)


async def show(database: Database, who: Principal, reference: str) -> UserView:
    """`reference` is an id or an address, here and below. Raises NotFound, as all of them do."""
    async with database.read() as session:
        return view(await users.find(session, who.org_id, reference))


async def sessions_of(database: Database, who: Principal, reference: str) -> Page[SessionView]:
    """Where somebody is signed in, the latest first."""
    async with database.read() as session:
        row = await users.find(session, who.org_id, reference)
        return Page([session_view(each, who.session_id) for each in await sessions.open_ones(session, row.id, clock.utcnow())])


# -- changes -----------------------------------------------------------------------------------------------------------


async def invite(database: Database, pepper: bytes, who: Principal, wish: Invite) -> Invited:
    """Raises BadRequest, Forbidden when their role is not below that of who asks, and for a pass, Conflict for whoever cannot be invited:
    nobody invites themselves."""
    handing.check_lasting(who)
    email = people.clean_email(wish.email)
    if email.endswith(f"@{SERVICE}"):
        raise BadRequest(f"{email} would be a service account.", param="email", hint="`mindgw users create NAME` makes one")
    async with database.write() as session:
        role = await _grantable(session, who, wish.role or "user")
        wanted = NewUser(org_id=who.org_id, email=email, name=_clean(wish.name), role=role.name, state=INVITED)
        row, made = await users.obtain(session, wanted)
        await may_change(session, who, row)
        _can_be_invited(row, role if wish.role is not None and not made else None)
        text = await users.invite(session, row, pepper, clock.utcnow() + timedelta(seconds=wish.ttl_seconds))
        await audit.record(session, who, "user.invite", row.id, email=row.email, role=row.role)
        shown = view(row)
    return Invited(**asdict(shown), invitation=text)


def _can_be_invited(row: User, role: Role | None) -> None:
    if row.service:
        raise Conflict(f"{row.email} is a service account, which does not sign in.")
    if row.state in (DISABLED, LAPSED):
        raise Conflict(f"{row.email} is {row.state}.", code="user_disabled", hint=f"mindgw users enable {row.email}")
    if role is not None and row.role != role.name:
        raise Conflict(f"{row.email} is there already, as {row.role}.", code="user_exists", hint=f"mindgw users role {row.email} ROLE")


async def create_service(database: Database, who: Principal, wish: ServiceWish) -> UserView:
    """Raises BadRequest, Forbidden, and Conflict when there is one of this name."""
    async with database.write() as session:
        role = await _grantable(session, who, wish.role)
        wanted = NewUser(org_id=who.org_id, email=f"{wish.name}@{SERVICE}", name=wish.name, role=role.name, service=True)
        row, made = await users.obtain(session, wanted)
        if not made:
            raise Conflict(f"There is a service account {wish.name!r} already.", code="user_exists")
        await audit.record(session, who, "user.create", row.id, email=row.email, role=row.role)
        return view(row)


async def change(database: Database, who: Principal, reference: str, wish: UserChange, *, version: int | None = None) -> UserView:
    """Gives somebody another role or name. Raises Forbidden, Conflict for one's own role and for the last administrator's,
    PreconditionFailed."""
    async with database.write() as session:
        row = await users.find(session, who.org_id, reference, lock=True)
        await may_change(session, who, row, oneself=wish.role is UNSET)
        before, changed = row.role, {name: value for name, value in asdict(wish).items() if value is not UNSET}
        if "name" in changed:
            changed["name"] = _clean(changed["name"])
        if "role" in changed:
            changed["role"] = (await _grantable(session, who, changed["role"])).name
            if changed["role"] != ADMIN:
                await stewards.spare(session, who, row)
        rows.change(row, version, **changed)
        await audit.record(session, who, "user.update", row.id, email=row.email, before=before, **changed)
        return view(row)


async def disable(database: Database, who: Principal, reference: str, cut: Cut, *, version: int | None = None) -> UserView:
    """Shuts somebody out: keys are refused, sessions are ended, what runs is cut off. A second time changes nothing."""
    async with database.write() as session:
        row = await users.find(session, who.org_id, reference, lock=True)
        await may_change(session, who, row)
        rows.expect(row, version)
        if row.state != DISABLED:
            rows.change(row, state=DISABLED, invite_digest=None, invite_expires_at=None)
            ended = await sessions.end(session, row.id, clock.utcnow())
            await sessions.unseal(session, row.id)
            await stewards.spare(session, who, row)
            await audit.record(session, who, "user.disable", row.id, email=row.email, sessions=ended)
        shown = view(row)
    cut(shown.id)
    return shown


async def enable(database: Database, who: Principal, reference: str, forget: Callable[[], None], *, version: int | None = None) -> UserView:
    """Lets somebody in again, with the keys of before; they sign in anew. Whoever is in already stays in, with all that runs. `forget` has
    everybody asked for again."""
    async with database.write() as session:
        row = await users.find(session, who.org_id, reference, lock=True)
        await may_change(session, who, row)
        rows.expect(row, version)
        if row.state in (DISABLED, LAPSED):
            rows.change(row, state=ACTIVE)
            await identities.vouch(session, row.id, clock.utcnow())
            await audit.record(session, who, "user.enable", row.id, email=row.email)
        shown = view(row)
    forget()
    return shown


async def remove(database: Database, who: Principal, reference: str, cut: Cut, *, version: int | None = None) -> UserView:
    """Ends keys, sessions and roles of somebody for good. What they used keeps their name."""
    async with database.write() as session:
        row = await users.find(session, who.org_id, reference, lock=True)
        await may_change(session, who, row)
        shown = view(rows.change(row, version))
        await stewards.spare(session, who, row)
        now = clock.utcnow()
        ended = await sessions.end(session, row.id, now)
        revoked = list(await users.key_ids(session, row.id))
        await users.remove(session, row, now)
        await audit.record(session, who, "user.remove", row.id, email=row.email, keys=revoked, sessions=ended)
    cut(shown.id)
    return shown


async def end_sessions(database: Database, who: Principal, reference: str) -> int:
    """Signs somebody out everywhere; how many sessions there were."""
    async with database.write() as session:
        row = await users.find(session, who.org_id, reference, lock=True)
        await may_change(session, who, row, oneself=True)
        ended = await sessions.end(session, row.id, clock.utcnow())
        await audit.record(session, who, "session.end", row.id, email=row.email, sessions=ended)
    return ended


def _clean(name: str) -> str:
    """What somebody is called; nothing at all will do."""
    return people.clean_name(name, "name") if name.strip() else ""


async def _grantable(session: AsyncSession, who: Principal, name: str) -> Role:
    """The role, when whoever asks may give it. Raises BadRequest, Forbidden."""
    try:
        role = await access.role(session, who.org_id, name)
    except NotFound as wrong:
        raise BadRequest(wrong.message, param="role", hint=wrong.hint) from None
    handing.check_role(who, role)
    return role


async def may_change(session: AsyncSession, who: Principal, row: User, *, oneself: bool = False) -> None:
    """Raises Forbidden unless who asks stands above that user, Conflict for oneself unless that is no matter. A session is its user; a
    key, which may do less and be in many hands, is somebody like everybody else."""
    if who.user_id == row.id and not oneself:
        raise Conflict("Nobody does that to themselves.", code="oneself", hint="another admin can")
    if who.user_id == row.id and who.session_id:
        return
    handing.check_person(who, await access.rights(session, row.org_id, row))


# -- coming in ---------------------------------------------------------------------------------------------------------


async def accept(database: Database, pepper: bytes, text: str, *, life: float, agent: str = "", address: str = "") -> Accepted:
    """Signs somebody in for `life` seconds who shows an invitation, which is spent by that. Raises Unauthenticated; what cannot be one
    costs no statement."""
    parsed = tokens.parse_invitation(text.strip())
    if parsed is None:
        raise _no_invitation()
    now = clock.utcnow()
    async with database.write() as session:
        row = await rows.locked(session, User, parsed[0])
        good = hmac.compare_digest(keys.digest(pepper, parsed[1]), (row.invite_digest if row else None) or b"\0" * 32)
        if row is None or not good:
            raise _no_invitation()
        if row.invite_expires_at is None or row.invite_expires_at <= now:
            raise Unauthenticated("This invitation is over.", code="expired_invitation", hint="ask for another one")
        org = await session.get_one(Org, row.org_id)
        if row.state not in keys.WELCOME or org.state != ACTIVE:
            raise Unauthenticated("This user may not sign in.", code="user_disabled")
        rows.change(row, state=ACTIVE, invite_digest=None, invite_expires_at=None, last_seen_at=now)
        made, secret = await sessions.create(session, row.id, pepper, at=now, until=now + timedelta(seconds=life), agent=agent)
        them = Principal(org_id=row.org_id, is_home=False, user_id=row.id, email=row.email, session_id=made.id, address=address)
        await audit.record(session, them, "session.create", row.id, email=row.email)
        return Accepted(session=secret, user=row.email, role=row.role, expires_at=made.expires_at)


def _no_invitation() -> Unauthenticated:
    return Unauthenticated("This is no invitation, or it was used already.", code="invalid_invitation", hint="ask for another one")


# -- views -------------------------------------------------------------------------------------------------------------


def view(row: User) -> UserView:
    """What is shown of a user."""
    return UserView(
        id=row.id,
        email=row.email,
        name=row.name,
        role=row.role,
        state=row.state,
        service=row.service,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        invite_expires_at=row.invite_expires_at,
        version=row.version,
    )


def session_view(row: Session, current: str = "") -> SessionView:
    """What is shown of a session; `current` is the id of the one that asks."""
    return SessionView(
        id=row.id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_seen_at=row.last_seen_at,
        agent=row.agent,
        current=row.id == current,
    )
