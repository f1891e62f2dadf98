"""Roles as management sees them: sets of permissions, and who has them. Every change is audited in its own transaction; the running
gateway hears of it when it is on the disk."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import handing, scopes, stewards
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.core import access as kernel
from mindgw.errors import BadRequest, Conflict, NotFound
from mindgw.store import access, audit, rows, tenants, users
from mindgw.store.database import Database
from mindgw.store.tables import Role, RoleBinding, User

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,39}\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=200)]

#: Told that who may do what has changed.
News = Callable[[], None]


class RoleView(Struct, frozen=True, kw_only=True):
    """A role."""

    name: str
    #: Whoever has a higher one may give this one and take it away.
    rank: int
    #: Each a verb and what it may be done to, such as read:keys.
    permissions: list[str]
    #: Part of the program: it cannot be changed.
    built_in: bool
    #: 0 for one that is built in.
    version: int


class BindingView(Struct, frozen=True, kw_only=True):
    """Somebody who has a role."""

    user: str
    role: str
    #: Name of the team in which it holds; None: in the whole organisation.
    team: str | None
    #: None: it stands with the user, see `users list`.
    created_at: datetime | None


class RoleDetail(RoleView, frozen=True, kw_only=True):
    """A role with who has it."""

    bindings: list[BindingView]


class RoleWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a role to be made is like."""

    name: Name
    #: Such as read:keys, *:queue or read:*.
    permissions: Annotated[list[Text], Meta(min_length=1, max_length=200)]
    rank: Annotated[int, Meta(ge=1, le=kernel.TOP - 1)]


class BindingWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is to have a role, or to have it no longer."""

    #: E-mail address or id.
    user: Text
    #: Name or id of the team in which it holds; when not given, in the whole organisation.
    team: Text | None = None


class Can(Struct, frozen=True, kw_only=True):
    """Whether somebody may do something."""

    user: str
    verb: str
    resource: str
    allowed: bool
    #: Roles that say so, in the whole organisation.
    roles: list[str]
    #: Names of the teams in which they may, beyond that.
    teams: list[str]


async def listing(database: Database) -> Page[RoleView]:
    """All roles, the highest first."""
    async with database.read() as session:
        made = await access.custom(session, await tenants.own(session))
    known = [_built_in(role) for role in kernel.BUILT_IN.values()] + [_view(row) for row in made]
    return Page(sorted(known, key=lambda role: (-role.rank, role.name)))


async def show(database: Database, name: str) -> RoleDetail:
    """A role and who has it. Raises NotFound."""
    async with database.read() as session:
        built_in = kernel.BUILT_IN.get(name)
        org_id = await tenants.own(session)
        view = _built_in(built_in) if built_in is not None else _view(await access.find(session, org_id, name))
        bindings = await _holders(session, org_id, name)
    return RoleDetail(**{field: getattr(view, field) for field in view.__struct_fields__}, bindings=bindings)


async def create(database: Database, who: Principal, wish: RoleWish) -> RoleView:
    """Makes a role below that of who asks, which permits nothing that theirs does not. Raises BadRequest, Forbidden, Conflict."""
    try:
        wanted = kernel.Role(wish.name, wish.rank, kernel.mask(wish.permissions))
    except ValueError as wrong:
        raise BadRequest(f"'permissions': {wrong}.", param="permissions") from None
    handing.check_role(who, wanted)
    async with database.write() as session:
        row = Role(org_id=await tenants.own(session), name=wish.name, permissions=kernel.names(wanted.mask), rank=wish.rank)
        row = await access.create(session, row)
        await audit.record(session, who, "role.create", row.id, name=row.name, rank=row.rank, permissions=row.permissions)
    return _view(row)


async def remove(database: Database, who: Principal, name: str, *, version: int | None = None) -> RoleView:
    """Takes a role away that nobody has. Raises NotFound, Conflict, Forbidden, PreconditionFailed."""
    if name in kernel.BUILT_IN:
        raise Conflict(f"The role {name!r} is built in.", code="role_built_in")
    async with database.write() as session:
        org_id = await tenants.own(session)
        row = await access.find(session, org_id, name, lock=True)
        handing.check_role(who, access.as_role(row))
        rows.expect(row, version)
        if await access.in_use(session, org_id, name):
            raise Conflict(f"Somebody has the role {name!r}, or a rule names it.", code="role_in_use", hint=f"`mindgw roles show {name}`")
        view = _view(row)
        await session.delete(row)
        await audit.record(session, who, "role.remove", row.id, name=name)
    return view


async def bind(database: Database, who: Principal, name: str, wish: BindingWish, told: News, *, version: int | None = None) -> BindingView:
    """Gives somebody a role; a second time changes nothing. `version` is that of the user. Raises NotFound, Forbidden,
    PreconditionFailed."""
    async with database.write() as session:
        user, team = await _meant(session, who, name, wish)
        rows.expect(user, version)
        if team is None and user.role == name:
            return _own(user)
        rows.change(user)
        if await access.bind(session, user.id, name, team[0] if team else None):
            await audit.record(session, who, "role.bind", user.id, role=name, user=user.email, team=team[0] if team else None)
        found = next(
            row for row in await access.bindings(session, [user.id]) if (row.role, row.team_id) == (name, team[0] if team else None)
        )
    told()
    return _binding(found, user.email, team[1] if team else None)


async def unbind(
    database: Database, who: Principal, name: str, wish: BindingWish, told: News, *, version: int | None = None
) -> BindingView:
    """Takes a role from somebody; who has no other one is a user then. `version` is that of the user. Raises NotFound, Forbidden,
    Conflict, PreconditionFailed."""
    async with database.write() as session:
        user, team = await _meant(session, who, name, wish)
        held = [row for row in await access.bindings(session, [user.id]) if (row.role, row.team_id) == (name, team[0] if team else None)]
        if not held and (team is not None or user.role != name):
            raise NotFound(f"{user.email} does not have the role {name} there.", hint=f"`mindgw roles show {name}` shows who has it")
        if team is None and name == kernel.ADMIN:
            await stewards.spare(session, who, user)
        gone = _binding(held[0], user.email, team[1] if team else None) if held else _own(user)
        await access.unbind(session, user.id, name, team[0] if team else None)
        if team is None and user.role == name:
            if name == kernel.USER:
                raise Conflict("Whoever has no other role is a user.", code="last_role", hint="`mindgw users disable` shuts somebody out")
            rows.change(user, version, role=kernel.USER, role_from="")
        else:
            rows.change(user, version)
        await audit.record(session, who, "role.unbind", user.id, role=name, user=user.email, team=team[0] if team else None)
    told()
    return gone


async def can(database: Database, user: str, verb: str, resource: str) -> Can:
    """Whether somebody may do that, and which roles say so. Raises NotFound, BadRequest for what is no permission."""
    if (verb, resource) not in kernel.BITS:
        known = ", ".join(kernel.RESOURCES.get(resource, ())) or f"one of {', '.join(sorted(kernel.RESOURCES))}"
        what = f"{resource} takes {known}" if resource in kernel.RESOURCES else f"a resource is {known}"
        raise BadRequest(f"{verb[:40]}:{resource[:40]} is no permission: {what}.", param="resource")
    async with database.read() as session:
        org_id = await tenants.own(session)
        row = await users.find(session, org_id, user)
        rights = await access.rights(session, org_id, row)
        roles = await access.roles(session, org_id, rights.roles)
        teams = await scopes.names(session, "team", rights.teams_where(verb, resource))
    saying = [name for name in rights.roles if roles[name].mask & kernel.BITS[verb, resource]]
    allowed = rights.may(verb, resource) and row.state == users.ACTIVE
    return Can(user=row.email, verb=verb, resource=resource, allowed=allowed, roles=saying, teams=sorted(teams.values()))


async def _meant(session: AsyncSession, who: Principal, name: str, wish: BindingWish) -> tuple[User, tuple[str, str] | None]:
    """The user, locked, and (id, name) of the team. Raises NotFound, Forbidden unless who asks stands above both role and person."""
    org_id = await tenants.own(session)
    handing.check_role(who, await access.role(session, org_id, name))
    user = await users.find(session, org_id, wish.user, lock=True)
    handing.check_person(who, await access.rights(session, org_id, user))
    if wish.team is None:
        return user, None
    team_id = await scopes.lookup(session, "team", wish.team)
    return user, (team_id, (await scopes.names(session, "team", [team_id]))[team_id])


async def _holders(session: AsyncSession, org_id: str, name: str) -> list[BindingView]:
    """Who has a role: by their own row, then by bindings."""
    own = select(User).where(col(User.org_id) == org_id, col(User.role) == name, col(User.state) != users.REMOVED)
    bound = select(RoleBinding, User.email).join(User, col(User.id) == RoleBinding.user_id)
    mine = bound.where(col(User.org_id) == org_id, RoleBinding.role == name).order_by(col(RoleBinding.created_at), col(RoleBinding.id))
    pairs: Sequence[tuple[RoleBinding, str]] = (await session.exec(mine)).all()
    teams = await scopes.names(session, "team", {row.team_id for row, _ in pairs if row.team_id})
    standing = [_own(user) for user in (await session.exec(own.order_by(col(User.created_at), col(User.id)))).all()]
    return standing + [_binding(row, email, teams.get(row.team_id or "")) for row, email in pairs]


def _own(user: User) -> BindingView:
    return BindingView(user=user.email, role=user.role, team=None, created_at=None)


def _binding(row: RoleBinding, email: str, team: str | None) -> BindingView:
    return BindingView(user=email, role=row.role, team=team, created_at=row.created_at)


def _built_in(role: kernel.Role) -> RoleView:
    return RoleView(name=role.name, rank=role.rank, permissions=kernel.names(role.mask), built_in=True, version=0)


def _view(row: Role) -> RoleView:
    return RoleView(name=row.name, rank=row.rank, permissions=row.permissions, built_in=False, version=row.version)
