"""/api/v1/routes"""

from pathlib import Path
from typing import Annotated

from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from mindgw.control import routes
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.routes import Kind, RouteChange, RouteTest, RouteView, RouteWish
from mindgw.server.management.guard import Office, needs
from mindgw.store.database import Database

Scoped = NamedDependency[Database]
Who = NamedDependency[Principal]
Version = NamedDependency[int | None]
Model = Annotated[str, QueryParameter(name="model", min_length=1, max_length=512, description="The name that is asked for.")]
User = Annotated[str | None, QueryParameter(name="user", max_length=200, description="E-mail address or id of whose request it is.")]


@get("/routes", opt=needs("read", "routes", home=True))
async def list_routes(state: Office) -> Page[RouteView]:
    """All routes, by name."""
    return await routes.listing(state.database)


@post("/routes", opt=needs("create", "routes", home=True))
async def create_route(state: Office, data: JSONBody[RouteWish], who: Who) -> RouteView:
    """Make a route. The running gateway obeys at once. 409 `route_exists`."""
    return await routes.create(state.database, who, data, state.routes_changed)


@get("/routes/{route:path}", opt=needs("read", "routes", home=True))
async def show_route(state: Office, route: FromPath[Path]) -> RouteView:
    """A route by its name."""
    return await routes.show(state.database, _name(route))


@patch("/routes/{route:path}", opt=needs("update", "routes", home=True))
async def change_route(state: Office, route: FromPath[Path], data: JSONBody[RouteChange], who: Who, version: Version) -> RouteView:
    """Change a route; fields that are not named stay as they are. The running gateway obeys at once."""
    return await routes.change(state.database, who, _name(route), data, state.routes_changed, version=version)


@delete("/routes/{route:path}", status_code=200, opt=needs("delete", "routes", home=True))
async def remove_route(state: Office, route: FromPath[Path], who: Who, version: Version) -> RouteView:
    """Take a route away; the answer has it as it was."""
    return await routes.remove(state.database, who, _name(route), state.routes_changed, version=version)


@get("/routing", opt=needs("read", "routes", home=True))
async def explain_routing(state: Office, database: Scoped, model: Model, user: User = None, kind: FromQuery[Kind] = "chat") -> RouteTest:
    """Where a request would go now, of somebody or of nobody in particular; nothing is sent."""
    return await routes.explain(database, state.pipeline, model, kind, user)


def _name(route: Path) -> str:
    """A name may have slashes in it, as those of models do."""
    return str(route).removeprefix("/")


HANDLERS = (list_routes, create_route, show_route, change_route, remove_route, explain_routing)
