"""Organisations and teams as management sees them. Organisations belong to whoever runs the server; teams to their organisation."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control import handing
from mindgw.control.key_bounds import Labels
from mindgw.control.pages import Page, page_of
from mindgw.control.people import INVITED_FOR
from mindgw.control.principal import Principal
from mindgw.core.access import ADMIN
from mindgw.errors import BadRequest, Conflict, NotFound
from mindgw.store import audit, people, rows, tenants, users
from mindgw.store.database import Database
from mindgw.store.tables import Org, Team
from mindgw.store.users import DISABLED, INVITED, NewUser

Name = Annotated[str, Meta(min_length=1, max_length=people.MAX_NAME)]


class News(NamedTuple):
    """Who is told of changes."""

    #: Takes the id of an organisation that is disabled now and ends what it has running.
    cut: Callable[[str], None]
    #: Has everybody asked for again, after all other changes.
    forget: Callable[[], None]


class OrgView(Struct, frozen=True, kw_only=True):
    """An organisation."""

    id: str
    name: str
    #: active or disabled.
    state: str
    #: Kept for routing, which does not keep to them yet, such as {"region": "eu"}.
    labels: dict[str, str]
    created_at: datetime
    version: int


class OrgMade(OrgView, frozen=True, kw_only=True):
    """With what lets an administrator in who was named, which is never shown again; None: nobody was."""

    invitation: str | None


class OrgWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an organisation to be made is like."""

    name: Name
    labels: Labels = {}
    #: E-mail address of its first administrator, who is invited.
    admin: Name | None = None


class OrgChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different."""

    labels: Labels | UnsetType = UNSET
    #: E-mail address of somebody who is invited as its administrator, beside those that it has.
    admin: Name | UnsetType = UNSET
    #: Nobody of a disabled one is let in, by any key or session.
    state: Literal["active", "disabled"] | UnsetType = UNSET


class TeamView(Struct, frozen=True, kw_only=True):
    """A team."""

    id: str
    name: str
    created_at: datetime
    version: int


class TeamWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a team to be made is like."""

    name: Name


# -- organisations -----------------------------------------------------------------------------------------------------


async def listing(database: Database, *, after: str | None = None, limit: int) -> Page[OrgView]:
    """In the order of their making: the first one runs the server."""
    async with database.read() as session:
        return page_of([_view(row) for row in await rows.page(session, Org, after=after, limit=limit)], limit)


async def create(database: Database, pepper: bytes, who: Principal, wish: OrgWish) -> OrgMade:
    """Raises BadRequest, Forbidden for a pass that invites, and Conflict when there is one of this name."""
    if wish.admin:
        handing.check_lasting(who)
    name = people.clean_name(wish.name, "name")
    async with database.write() as session:
        if (await session.exec(select(Org.id).where(Org.name == name))).first() is not None:
            raise Conflict(f"There is an organisation {name!r} already.", code="org_exists")
        row = await people.get_or_create_org(session, name)
        row.labels = dict(wish.labels)
        await session.flush()
        await audit.record(session, who, "org.create", row.id, name=name, labels=row.labels)
        invitation = await _invite(session, pepper, who, row, wish.admin) if wish.admin else None
        shown = _view(row)
    return OrgMade(**asdict(shown), invitation=invitation)


async def _invite(session: AsyncSession, pepper: bytes, who: Principal, org: Org, address: str) -> str:
    """Whoever is there already becomes an administrator, and is no longer shut out. Raises BadRequest."""
    email = people.clean_email(address)
    if email.endswith(f"@{users.SERVICE}"):
        raise BadRequest(f"{email} would be a service account.", param="admin")
    user, _ = await users.obtain(session, NewUser(org_id=org.id, email=email, role=ADMIN, state=INVITED))
    rows.change(user, role=ADMIN, role_from="", state=INVITED if user.state == DISABLED else user.state)
    text = await users.invite(session, user, pepper, clock.utcnow() + timedelta(seconds=INVITED_FOR))
    await audit.record(session, who, "user.invite", user.id, email=user.email, role=user.role, org=org.name)
    return text


async def change(
    database: Database, pepper: bytes, who: Principal, reference: str, wish: OrgChange, news: News, *, version: int | None = None
) -> OrgMade:
    """Changes an organisation, by its id or name. Raises NotFound, BadRequest, PreconditionFailed, Forbidden for a pass that invites, and
    Conflict for one's own when it would be disabled."""
    said = {name: value for name, value in asdict(wish).items() if value is not UNSET}
    changed = {name: value for name, value in said.items() if name != "admin"}
    if "admin" in said:
        handing.check_lasting(who)
    async with database.write() as session:
        row = (await session.exec(select(Org).where((Org.id == reference) | (Org.name == reference)).with_for_update())).first()
        if row is None:
            raise NotFound(f"There is no organisation {reference[:80]!r}.")
        if row.id == who.org_id and changed.get("state") == DISABLED:
            raise Conflict("That is the organisation that runs this server.", code="org_home")
        shut = changed.get("state") == DISABLED != row.state
        rows.change(row, version, **changed)
        await audit.record(session, who, "org.update", row.id, name=row.name, **changed)
        invitation = await _invite(session, pepper, who, row, said["admin"]) if "admin" in said else None
        shown = _view(row)
    if shut:
        news.cut(shown.id)
    else:
        news.forget()
    return OrgMade(**asdict(shown), invitation=invitation)


def _view(row: Org) -> OrgView:
    return OrgView(id=row.id, name=row.name, state=row.state, labels=row.labels, created_at=row.created_at, version=row.version)


# -- teams -------------------------------------------------------------------------------------------------------------


async def teams(database: Database, *, after: str | None = None, limit: int) -> Page[TeamView]:
    """In the order of their making."""
    async with database.read() as session:
        return page_of([_team(row) for row in await rows.page(session, Team, after=after, limit=limit)], limit)


async def create_team(database: Database, who: Principal, wish: TeamWish) -> TeamView:
    """Raises BadRequest, and Conflict when there is one of this name."""
    name = people.clean_name(wish.name, "name")
    async with database.write() as session:
        org_id = await tenants.own(session)
        if (await session.exec(select(Team.id).where(Team.org_id == org_id, Team.name == name))).first() is not None:
            raise Conflict(f"There is a team {name!r} already.", code="team_exists")
        row = await people.get_or_create_team(session, org_id, name)
        await audit.record(session, who, "team.create", row.id, name=name)
        return _team(row)


def _team(row: Team) -> TeamView:
    return TeamView(id=row.id, name=row.name, created_at=row.created_at, version=row.version)
