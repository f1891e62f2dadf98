"""/api/v1/me: what everybody sees of themselves."""

from datetime import datetime

from litestar import delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Struct

from mindgw.control import handing, me, stories
from mindgw.control.keys import KeyMade, KeyView
from mindgw.control.me import KeyAsked, LimitsView, MeView, ModelView
from mindgw.control.pages import Page
from mindgw.control.people import SessionView
from mindgw.control.queue import Entry
from mindgw.control.stories import StoryView
from mindgw.control.usage import Summary
from mindgw.errors import Forbidden
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.usage import Since, Until
from mindgw.server.management.users import Ended, Scoped, Version, Who


class PassMade(Struct, frozen=True):
    """A token for the management API, which is good for some minutes."""

    token: str
    expires_at: datetime


@get("/me", opt=needs("read", "me"))
async def show_me(state: Office, database: Scoped, who: Who) -> MeView:
    """Who it is that asks, and what they may do."""
    return await me.show(database, who, state.config.keys)


@get("/me/limits", opt=needs("read", "me"))
async def show_my_limits(database: Scoped, who: Who) -> LimitsView:
    """Quotas and rates that hold the key, or the person, back."""
    return await me.limits(database, who)


@get("/me/usage", opt=needs("read", "me"))
async def show_my_usage(database: Scoped, who: Who, by: FromQuery[str] = "day", since: Since = "", until: Until = "") -> Summary:
    """What the key has used, or all keys of the person, summed up by day, model or key."""
    return await me.used(database, who, by, since, until)


@get("/me/models", opt=needs("read", "me"))
async def list_my_models(state: Office, database: Scoped, who: Who) -> Page[ModelView]:
    """Models that are served now and that one may use."""
    return await me.models(database, who, state.pipeline)


@get("/me/queue", opt=needs("read", "me"))
async def list_my_queue(state: Office, database: Scoped, who: Who) -> Page[Entry]:
    """What one has in the queue, and what runs."""
    return await me.queue(database, who, state.pipeline)


@get("/me/requests/{request_id:str}", opt=needs("read", "me"))
async def show_my_request(state: Office, database: Scoped, who: Who, request_id: FromPath[str]) -> StoryView:
    """What became of a request of one's own, moment by moment, or so far, while it waits or runs."""
    return await stories.own(database, who, state.pipeline, request_id)


@get("/me/keys", opt=needs("read", "me"))
async def list_my_keys(state: Office, database: Scoped, who: Who) -> Page[KeyView]:
    """The keys of the person, revoked ones too; a key sees itself alone."""
    return await me.own_keys(database, who, state.config.keys)


@post("/me/keys", opt=needs("create", "me"))
async def create_my_key(state: Office, database: Scoped, who: Who, data: JSONBody[KeyAsked]) -> KeyMade:
    """Make a key for oneself; takes a session, and not a token made from it. Its `key` is in this answer and nowhere else."""
    return await me.make_key(database, state.secrets.pepper, who, data, state.config.keys)


@delete("/me/keys/{key:str}", status_code=200, opt=needs("delete", "me"))
async def revoke_my_key(state: Office, database: Scoped, who: Who, key: FromPath[str], version: Version) -> KeyView:
    """Revoke a key of one's own; a key may revoke itself."""
    return await me.revoke_key(database, who, key, state.pipeline.revoke_key, version=version)


@get("/me/sessions", opt=needs("read", "me"))
async def list_my_sessions(database: Scoped, who: Who) -> Page[SessionView]:
    """Where one is signed in; takes a session."""
    return await me.own_sessions(database, who)


@delete("/me/sessions", status_code=200, opt=needs("delete", "me"))
async def end_my_sessions(state: Office, database: Scoped, who: Who) -> Ended:
    """Sign out everywhere, the session that asks too."""
    ended = Ended(await me.end_sessions(database, who))
    state.sessions.forget()
    return ended


@delete("/me/sessions/{session:str}", status_code=200, opt=needs("delete", "me"))
async def end_my_session(state: Office, database: Scoped, who: Who, session: FromPath[str]) -> Ended:
    """Sign out; `current` is the session that asks."""
    ended = Ended(await me.end_session(database, who, session))
    state.sessions.forget()
    return ended


@post("/me/token", status_code=200, opt=needs("create", "me"))
async def create_my_token(state: Office, who: Who) -> PassMade:
    """A token that is good for some minutes, for programs that should not hold the session itself. It goes with the session, and
    makes no other."""
    handing.check_lasting(who)
    signed = await state.sessions.of(who.session_id)
    if signed is None:
        raise Forbidden("This takes a session, not an API key.", code="session_required")
    return PassMade(*state.sessions.make_pass(signed, state.config.sessions.token))


HANDLERS = (
    show_me,
    show_my_limits,
    show_my_usage,
    list_my_models,
    list_my_queue,
    show_my_request,
    list_my_keys,
    create_my_key,
    revoke_my_key,
    list_my_sessions,
    end_my_sessions,
    end_my_session,
    create_my_token,
)
