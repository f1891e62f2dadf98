"""/api/v1/queue"""

from typing import Annotated, Any

from litestar import delete, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta, Struct

from mindgw.control import queue
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.queue import Entry, Stats, Wanted
from mindgw.errors import BadRequest
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.store.database import Database


class Paused(Struct, frozen=True, forbid_unknown_fields=True):
    """What is paused or resumed; an empty model is all of them."""

    model: Annotated[str, Meta(max_length=512)] = ""


def _only(name: str, what: str) -> Any:
    return QueryParameter(name=name, max_length=512, description=f"Only {what}.")


async def wanted(
    running: Annotated[bool, QueryParameter(name="running", description="As `state` all.")] = False,
    which: Annotated[str, QueryParameter(name="state", description="waiting, running or all; waiting, when not given.")] = "",
    model: Annotated[str, _only("model", "requests for this model")] = "",
    team: Annotated[str, _only("team", "those of the team of this name")] = "",
    user: Annotated[str, _only("user", "those of this person, or of this end user behind a trusted proxy")] = "",
    key: Annotated[str, _only("key", "those of the key of this id or name")] = "",
    *,
    who: NamedDependency[Principal],
) -> Wanted:
    """What a list of the queue is to have. Raises BadRequest."""
    if which not in {"", "waiting", "running", "all"}:
        raise BadRequest("state must be waiting, running or all.", param="state")
    state = which or ("all" if running else "waiting")
    own = queue.seen_by(who)
    return Wanted(state="" if state == "all" else state, model=model, team=team, user=user, key=key, org_id=own)


@get("/queue", dependencies={"wanted": Provide(wanted)}, opt=needs("read", "queue"))
async def list_queue(state: Office, wanted: NamedDependency[Wanted], cursor: Cursor = None, limit: Limit = 1000) -> Page[Entry]:
    """Who waits, in the order of their turns, and why; then who has a slot, if wanted. Pages show the order in which they stood when the
    first one was asked for, without those who are gone by then."""
    return await queue.listing(state.pipeline, state.lists, wanted, cursor=cursor, limit=limit)


@get("/queue/stats", opt=needs("read", "queue", home=True))
async def show_stats(state: Office) -> Stats:
    """The queue in numbers: classes, waits, errors of the estimates, shares of teams."""
    return state.pipeline.queue_stats()


@get("/queue/{entry:str}", opt=needs("read", "queue"))
async def show_entry(state: Office, entry: FromPath[str], who: NamedDependency[Principal]) -> Entry:
    """One request that waits or runs."""
    return queue.entry(state.pipeline, entry, queue.seen_by(who))


@delete("/queue/{entry:str}", status_code=200, opt=needs("delete", "queue"))
async def cancel_entry(state: Office, database: NamedDependency[Database], entry: FromPath[str], who: NamedDependency[Principal]) -> Entry:
    """Cancel a request; its client hears that an operator did."""
    return await queue.cancel(database, who, state.pipeline, entry)


@post("/queue/{entry:str}/bump", status_code=200, opt=needs("update", "queue", home=True))
async def bump_entry(state: Office, database: NamedDependency[Database], entry: FromPath[str], who: NamedDependency[Principal]) -> Entry:
    """Put a request that waits before all others."""
    return await queue.bump(database, who, state.pipeline, entry)


@post("/queue/pause", status_code=200, opt=needs("update", "queue", home=True))
async def pause_queue(state: Office, database: NamedDependency[Database], data: JSONBody[Paused], who: NamedDependency[Principal]) -> Stats:
    """Give nobody a slot, of one model or at all; requests that run go on."""
    return await queue.pause(database, who, state.pipeline, data.model)


@post("/queue/resume", status_code=200, opt=needs("update", "queue", home=True))
async def resume_queue(
    state: Office, database: NamedDependency[Database], data: JSONBody[Paused], who: NamedDependency[Principal]
) -> Stats:
    """End a pause; without a model all of them."""
    return await queue.resume(database, who, state.pipeline, data.model)


HANDLERS = (list_queue, show_stats, show_entry, cancel_entry, bump_entry, pause_queue, resume_queue)
