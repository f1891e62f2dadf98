"""Organisations, teams and users. Whoever names one that does not exist yet has it made."""

from typing import Any, TypeVar

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import BadRequest, Conflict
from mindgw.store import rows
from mindgw.store.tables import Org, Team, User
from mindgw.store.tables.columns import Versioned

V = TypeVar("V", bound=Versioned)

#: Name of the organisation and of its team that `init` makes.
DEFAULT = "default"
#: The user that the first admin key belongs to.
ADMIN = "admin@localhost"

MAX_NAME = 200


async def get_or_create_org(session: AsyncSession, name: str = DEFAULT) -> Org:
    """Raises BadRequest when the name is empty, too long or holds control characters; so do the others."""
    return await _one(session, Org(name=clean_name(name, "name")), Org.name)


async def get_or_create_team(session: AsyncSession, org_id: str, name: str = DEFAULT) -> Team:
    """The organisation's team of that name."""
    return (await obtain_team(session, org_id, name))[0]


async def obtain_team(session: AsyncSession, org_id: str, name: str) -> tuple[Team, bool]:
    """As `get_or_create_team`, and whether it was made now."""
    wanted = Team(org_id=org_id, name=clean_name(name, "team"))
    row = await _one(session, wanted, Team.org_id, Team.name)
    return row, row.id == wanted.id


async def get_or_create_user(session: AsyncSession, org_id: str, email: str, *, name: str = "", role: str = "user") -> User:
    """The user with that address, compared without regard to case; name and role of one who exists stay as they are. Raises
    Conflict for who was disabled or removed."""
    return (await obtain_user(session, org_id, email, name=name, role=role))[0]


async def obtain_user(session: AsyncSession, org_id: str, email: str, *, name: str = "", role: str = "user") -> tuple[User, bool]:
    """As `get_or_create_user`, and whether they were made now."""
    wanted = User(org_id=org_id, email=clean_email(email), name=name, role=role)
    row = await _one(session, wanted, User.org_id, User.email)
    if row.state not in {"active", "invited"}:
        raise Conflict(f"{row.email} is {row.state}.", param="user", hint="`mindgw users enable` or `mindgw users invite` brings them back")
    return row, row.id == wanted.id


async def names(session: AsyncSession, table: type[Org] | type[Team], ids: set[str]) -> dict[str, str]:
    """id -> name of those organisations or teams."""
    found = await session.exec(select(table.id, table.name).where(col(table.id).in_(ids)))
    return dict(found.all())


async def emails(session: AsyncSession, ids: set[str]) -> dict[str, str]:
    """id -> address of those users."""
    found = await session.exec(select(User.id, User.email).where(col(User.id).in_(ids)))
    return dict(found.all())


async def _one(session: AsyncSession, row: V, *unique: Any) -> V:
    """The stored row that has the same unique values; `row` itself is stored when there is none. Two at once make one."""
    same = [col(column) == getattr(row, column.key) for column in unique]
    wanted = select(type(row)).where(*same)
    found = (await session.exec(wanted)).first()
    if found is None:
        await session.exec(rows.insert_once(session, type(row)).values(**row.model_dump()))
        found = (await session.exec(wanted)).first()
    if found is None:  # it is there, in another organisation
        raise Conflict("This name is taken.", code="taken", hint="choose another one")
    return found


def clean_email(text: str) -> str:
    """The address in lower case, without blanks around it. Raises BadRequest when it is none."""
    address = clean_name(text, "user").lower()
    before, at, after = address.partition("@")
    if not (before and at and after) or "@" in after or " " in address:
        raise BadRequest(f"{text!r} is not an e-mail address.", param="user")
    return address


def clean_name(text: str, param: str) -> str:
    """The name without blanks around it. Raises BadRequest about `param` when it cannot be one."""
    text = text.strip()
    if not text or len(text) > MAX_NAME or not text.isprintable():
        raise BadRequest(f"A name has 1 to {MAX_NAME} printable characters.", param=param)
    return text
