"""/api/v1/roles and /api/v1/access"""

from typing import Annotated

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from mindgw.control import model_access, roles
from mindgw.control.model_access import ModelUse, RuleView, RuleWish
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.roles import BindingView, BindingWish, Can, RoleDetail, RoleView, RoleWish
from mindgw.server.management.guard import Office, needs
from mindgw.store.database import Database

Scoped = NamedDependency[Database]
Who = NamedDependency[Principal]
Version = NamedDependency[int | None]
User = Annotated[str, QueryParameter(name="user", max_length=200, description="E-mail address or id.")]
Team = Annotated[str | None, QueryParameter(name="team", max_length=200, description="Name or id of a team.")]


@get("/roles", opt=needs("read", "roles"))
async def list_roles(database: Scoped) -> Page[RoleView]:
    """All roles, the highest first."""
    return await roles.listing(database)


@post("/roles", opt=needs("create", "roles"))
async def create_role(database: Scoped, who: Who, data: JSONBody[RoleWish]) -> RoleView:
    """Make a role: below one's own, and with permissions that one has. 403 `role_too_high` says that it is not."""
    return await roles.create(database, who, data)


@get("/roles/{role:str}", opt=needs("read", "roles"))
async def show_role(database: Scoped, role: FromPath[str]) -> RoleDetail:
    """A role and who has it."""
    return await roles.show(database, role)


@delete("/roles/{role:str}", status_code=200, opt=needs("delete", "roles"))
async def remove_role(database: Scoped, who: Who, role: FromPath[str], version: Version) -> RoleView:
    """Take away a role that nobody has. 409 `role_in_use`, `role_built_in`."""
    return await roles.remove(database, who, role, version=version)


@post("/roles/{role:str}/bindings", opt=needs("update", "roles"))
async def bind_role(
    state: Office, database: Scoped, who: Who, role: FromPath[str], data: JSONBody[BindingWish], version: Version
) -> BindingView:
    """Give somebody a role, in the whole organisation or in one team. If-Match is the version of the user."""
    return await roles.bind(database, who, role, data, state.access_changed, version=version)


@delete("/roles/{role:str}/bindings", status_code=200, opt=needs("update", "roles"))
async def unbind_role(
    state: Office, database: Scoped, who: Who, role: FromPath[str], user: User, version: Version, team: Team = None
) -> BindingView:
    """Take a role from somebody. If-Match is the version of the user."""
    return await roles.unbind(database, who, role, BindingWish(user=user, team=team), state.access_changed, version=version)


@get("/access/check", opt=needs("read", "roles"))
async def check_access(
    database: Scoped,
    user: User,
    verb: Annotated[str, QueryParameter(name="verb", max_length=40, description="read, create, update, delete or use.")],
    resource: Annotated[str, QueryParameter(name="resource", max_length=40, description="What it is to be done to, such as keys.")],
) -> Can:
    """Whether somebody may do something, and which of their roles says so."""
    return await roles.can(database, user, verb, resource)


@get("/access/models", opt=needs("read", "access"))
async def check_model(
    state: Office,
    database: Scoped,
    user: User,
    model: Annotated[str, QueryParameter(name="model", max_length=512, description="One of its names.")],
) -> ModelUse:
    """Whether somebody may use a model, and which rule says so."""
    return await model_access.decide(database, user, model, state.pipeline)


@get("/access/rules", opt=needs("read", "access"))
async def list_rules(
    database: Scoped,
    subject: Annotated[str | None, QueryParameter(max_length=600, description="role:NAME, team:NAME, user:EMAIL or key:ID.")] = None,
) -> Page[RuleView]:
    """Which models are for whom, in the order of the making of the rules."""
    return await model_access.listing(database, subject)


@post("/access/rules", opt=needs("create", "access"))
async def add_rule(state: Office, database: Scoped, who: Who, data: JSONBody[RuleWish]) -> RuleView:
    """Allow or deny models. Who is allowed some may use no others, and what is denied is denied."""
    return await model_access.add(database, who, data, state.access_changed)


@delete("/access/rules/{rule:str}", status_code=200, opt=needs("delete", "access"))
async def remove_rule(state: Office, database: Scoped, who: Who, rule: FromPath[str], version: Version) -> RuleView:
    """Take a rule away."""
    return await model_access.remove(database, who, rule, state.access_changed, version=version)


HANDLERS = (
    list_roles,
    create_role,
    show_role,
    remove_role,
    bind_role,
    unbind_role,
    check_access,
    check_model,
    list_rules,
    add_rule,
    remove_rule,
)
