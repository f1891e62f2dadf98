"""/api/v1/queue"""

from typing import Annotated

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct

from mindgw.control import queue
from mindgw.control.pages import Page
from mindgw.control.queue import Entry, Stats
from mindgw.server.management.guard import Office


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """What is paused or resumed; an empty model is all of them."""

    model: Annotated[str, Meta(max_length=512)] = ""


@get("/queue")
async def list_queue(state: Office, running: FromQuery[bool] = False) -> Page[Entry]:
    """Who waits, in the order of their turns, and why."""
    return Page(queue.entries(state.pipeline, running=running))


@get("/queue/stats")
async def show_stats(state: Office) -> Stats:
    """The queue in numbers: classes, waits, errors of the estimates, shares of teams."""
    return state.pipeline.queue_stats()


@get("/queue/{entry:str}")
async def show_entry(state: Office, entry: FromPath[str]) -> Entry:
    """One request that waits or runs."""
    return queue.entry(state.pipeline, entry)


@delete("/queue/{entry:str}", status_code=200)
async def cancel_entry(state: Office, entry: FromPath[str], actor: NamedDependency[str]) -> Entry:
    """Cancel a request; its client hears that an operator did."""
    return await queue.cancel(state.database, actor, state.pipeline, entry)


@post("/queue/{entry:str}/bump", status_code=200)
async def bump_entry(state: Office, entry: FromPath[str], actor: NamedDependency[str]) -> Entry:
    """Put a request that waits before all others."""
    return await queue.bump(state.database, actor, state.pipeline, entry)


@post("/queue/pause", status_code=200)
async def pause_queue(state: Office, data: JSONBody[Which], actor: NamedDependency[str]) -> Stats:
    """Give nobody a slot, of one model or at all; requests that run go on."""
    return await queue.pause(state.database, actor, state.pipeline, data.model)


@post("/queue/resume", status_code=200)
async def resume_queue(state: Office, data: JSONBody[Which], actor: NamedDependency[str]) -> Stats:
    """End a pause; without a model all of them."""
    return await queue.resume(state.database, actor, state.pipeline, data.model)


HANDLERS = (list_queue, show_stats, show_entry, cancel_entry, bump_entry, pause_queue, resume_queue)
