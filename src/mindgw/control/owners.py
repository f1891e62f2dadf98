"""Whose keys are: people and teams, made by who names one that is not there and may make it. That they are made is in the audit log."""

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import handing
from mindgw.control.principal import Principal
from mindgw.core.access import TOP
from mindgw.errors import BadRequest, Forbidden
from mindgw.store import audit, people, users
from mindgw.store.audit import Who
from mindgw.store.tables import Team, User


async def team(session: AsyncSession, who: Who | str, org_id: str, name: str | None) -> Team:
    """The team of that name; None: the default one, which every organisation has. Raises BadRequest, Conflict, Forbidden."""
    called = people.clean_name(name or people.DEFAULT, "team")
    same = Team.org_id == org_id, Team.name == called
    found = (await session.exec(select(Team).where(*same))).first()
    if found is not None:
        return found
    if called != people.DEFAULT:
        _require(who, "teams", f"There is no team {called!r}, and to make one")
    row, made = await people.obtain_team(session, org_id, called)
    if made:
        await audit.record(session, who, "team.create", row.id, name=row.name)
    return row


async def person(session: AsyncSession, who: Who | str, org_id: str, email: str, verb: str) -> User:
    """Who has that address; `verb` is what is done to a key of theirs. Raises BadRequest, Forbidden, and Conflict for who was disabled or
    removed."""
    address = people.clean_email(email)
    same = col(User.org_id) == org_id, col(User.email) == address
    found = (await session.exec(select(User).where(*same))).first()
    if not isinstance(who, Principal) or found is None or found.id != who.user_id:
        handing.check_others(who, verb)  # before anything is said of who is there
    if found is None:
        if address.endswith(f"@{users.SERVICE}"):
            raise BadRequest(f"There is no service account {address}.", param="user", hint="`mindgw users create NAME` makes one")
        _require(who, "users", f"There is no user {address}, and to make one")
    row, made = await people.obtain_user(session, org_id, address)
    if made:
        await audit.record(session, who, "user.create", row.id, email=row.email, role=row.role)
    return row


def pinned(who: Who | str, user: User | None, role: str | None) -> str | None:
    """The role of a key whose secret somebody is shown: when it is another person's, it stays what that person is now. It must not grow
    with them in the hands of who made it, but in those of who can do everything anyway."""
    if role is not None or user is None or not isinstance(who, Principal) or who.user_id == user.id:
        return role
    return None if who.rights.rank >= TOP else user.role


def _require(who: Who | str, resource: str, why: str) -> None:
    if isinstance(who, Principal) and not who.may("create", resource):
        raise Forbidden(f"{why} takes the permission create:{resource}.")
