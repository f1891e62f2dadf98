"""/api/v1/users, /api/v1/service-accounts"""

from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from mindgw.control import people
from mindgw.control.pages import Page
from mindgw.control.people import Cut, Invite, Invited, ServiceWish, SessionView, UserChange, UserView
from mindgw.control.principal import Principal
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.store.database import Database

Scoped = NamedDependency[Database]
Who = NamedDependency[Principal]
Version = NamedDependency[int | None]


def cut(state: Office) -> Cut:
    """Ends what a user has running here, and lets nobody in on what is remembered of them."""

    def end(user_id: str) -> None:
        state.sessions.forget()
        state.pipeline.cut_user(user_id)

    return end


class Ended(Struct, frozen=True):
    """How many sessions were ended."""

    ended: int


@get("/users", opt=needs("read", "users"))
async def list_users(database: Scoped, who: Who, cursor: Cursor = None, limit: Limit = 1000) -> Page[UserView]:
    """People and service accounts in the order of their making."""
    return await people.listing(database, who, after=cursor, limit=limit)


@post("/users", opt=needs("create", "users"))
async def invite_user(state: Office, database: Scoped, who: Who, data: JSONBody[Invite]) -> Invited:
    """Invite somebody, or give somebody who is there another way to sign in. The `invitation` is in this answer and nowhere else; it is
    good once. 403 `role_too_high`: the role is not below that of who asks."""
    return await people.invite(database, state.secrets.pepper, who, data)


@post("/service-accounts", opt=needs("create", "users"))
async def create_service_account(database: Scoped, who: Who, data: JSONBody[ServiceWish]) -> UserView:
    """Make a user that is a program: it has keys, and never signs in."""
    return await people.create_service(database, who, data)


@get("/users/{user:str}", opt=needs("read", "users"))
async def show_user(database: Scoped, who: Who, user: FromPath[str]) -> UserView:
    """Somebody by id or address."""
    return await people.show(database, who, user)


@patch("/users/{user:str}", opt=needs("update", "users"))
async def change_user(
    state: Office, database: Scoped, who: Who, user: FromPath[str], data: JSONBody[UserChange], version: Version
) -> UserView:
    """Give somebody another role or name."""
    changed = await people.change(database, who, user, data, version=version)
    state.access_changed()
    return changed


@post("/users/{user:str}/disable", status_code=200, opt=needs("update", "users"))
async def disable_user(state: Office, database: Scoped, who: Who, user: FromPath[str], version: Version) -> UserView:
    """Shut somebody out: keys are refused and sessions are over from now on, and what they have running ends."""
    return await people.disable(database, who, user, cut(state), version=version)


@post("/users/{user:str}/enable", status_code=200, opt=needs("update", "users"))
async def enable_user(state: Office, database: Scoped, who: Who, user: FromPath[str], version: Version) -> UserView:
    """Let somebody in again, with the keys of before."""
    return await people.enable(database, who, user, state.access_changed, version=version)


@delete("/users/{user:str}", status_code=200, opt=needs("delete", "users"))
async def remove_user(state: Office, database: Scoped, who: Who, user: FromPath[str], version: Version) -> UserView:
    """Remove somebody: keys, sessions and roles end for good. What they used keeps their name."""
    removed = await people.remove(database, who, user, cut(state), version=version)
    await state.quotas_changed()
    return removed


@get("/users/{user:str}/sessions", opt=needs("read", "sessions"))
async def list_sessions(database: Scoped, who: Who, user: FromPath[str]) -> Page[SessionView]:
    """Where somebody is signed in."""
    return await people.sessions_of(database, who, user)


@delete("/users/{user:str}/sessions", status_code=200, opt=needs("delete", "sessions"))
async def end_sessions(state: Office, database: Scoped, who: Who, user: FromPath[str]) -> Ended:
    """Sign somebody out everywhere."""
    ended = Ended(await people.end_sessions(database, who, user))
    state.sessions.forget()
    return ended


HANDLERS = (
    list_users,
    invite_user,
    create_service_account,
    show_user,
    change_user,
    disable_user,
    enable_user,
    remove_user,
    list_sessions,
    end_sessions,
)
