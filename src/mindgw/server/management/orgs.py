"""/api/v1/orgs and /api/v1/teams"""

from litestar import get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mindgw.control import orgs
from mindgw.control.orgs import News, OrgChange, OrgMade, OrgView, OrgWish, TeamView, TeamWish
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.store.database import Database

Scoped = NamedDependency[Database]
Who = NamedDependency[Principal]
Version = NamedDependency[int | None]


@get("/orgs", opt=needs("read", "orgs", home=True))
async def list_orgs(state: Office, cursor: Cursor = None, limit: Limit = 1000) -> Page[OrgView]:
    """Organisations in the order of their making; the first one runs the server."""
    return await orgs.listing(state.database, after=cursor, limit=limit)


@post("/orgs", opt=needs("create", "orgs", home=True))
async def create_org(state: Office, who: Who, data: JSONBody[OrgWish]) -> OrgMade:
    """Make an organisation. The `invitation` of its first administrator is in this answer and nowhere else."""
    return await orgs.create(state.database, state.secrets.pepper, who, data)


@patch("/orgs/{org:str}", opt=needs("update", "orgs", home=True))
async def change_org(state: Office, who: Who, org: FromPath[str], data: JSONBody[OrgChange], version: Version) -> OrgMade:
    """Give an organisation other labels or another administrator, or shut it out: what it has running ends at once. The `invitation` of the
    administrator is in this answer and nowhere else."""
    return await orgs.change(state.database, state.secrets.pepper, who, org, data, _news(state), version=version)


def _news(state: Office) -> News:
    def end(org_id: str) -> None:
        state.sessions.forget()
        state.pipeline.cut_org(org_id)

    return News(end, state.access_changed)


@get("/teams", opt=needs("read", "teams"))
async def list_teams(database: Scoped, cursor: Cursor = None, limit: Limit = 1000) -> Page[TeamView]:
    """Teams in the order of their making."""
    return await orgs.teams(database, after=cursor, limit=limit)


@post("/teams", opt=needs("create", "teams"))
async def create_team(database: Scoped, who: Who, data: JSONBody[TeamWish]) -> TeamView:
    """Make a team; keys make theirs, too."""
    return await orgs.create_team(database, who, data)


HANDLERS = (list_orgs, create_org, change_org, list_teams, create_team)
