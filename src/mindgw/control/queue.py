"""The queue as management sees it, and what an operator may do to it. Every change is audited."""

from mindgw.control.live import Live
from mindgw.errors import NotFound
from mindgw.gateway.lineup import Entry, Stats
from mindgw.store import audit
from mindgw.store.database import Database

__all__ = ["Entry", "Stats", "bump", "cancel", "entries", "entry", "pause", "resume"]


def entries(live: Live, *, running: bool) -> list[Entry]:
    """Who waits, in the order of their turns, and who runs, if wanted."""
    return [entry for entry in live.lineup() if running or entry.state == "waiting"]


def entry(live: Live, request_id: str) -> Entry:
    """One request under way. Raises NotFound."""
    found = live.place_of(request_id)
    if found is None:
        raise _unknown(request_id)
    return found


async def cancel(database: Database, actor: str, live: Live, request_id: str) -> Entry:
    """Ends a request that waits or runs; its client hears why. Raises NotFound."""
    found = entry(live, request_id)
    if not live.cancel_request(request_id):
        raise _unknown(request_id)
    await _note(database, actor, "queue.cancel", request_id, key=found.key_id, model=found.model)
    return found


async def bump(database: Database, actor: str, live: Live, request_id: str) -> Entry:
    """Puts a request that waits before all others. Raises NotFound, also for one that runs already."""
    found = entry(live, request_id)
    if not live.bump_request(request_id):
        raise NotFound(f"Request {request_id!r} does not wait any more.", hint="`mindgw queue list` shows who waits")
    await _note(database, actor, "queue.bump", request_id, key=found.key_id, model=found.model)
    return live.place_of(request_id) or found


async def pause(database: Database, actor: str, live: Live, model: str) -> Stats:
    """Lets nobody have a slot, of one model or at all, until `resume`; who runs goes on. A restart of the server ends it."""
    live.pause_queue(model)
    await _note(database, actor, "queue.pause", model)
    return live.queue_stats()


async def resume(database: Database, actor: str, live: Live, model: str) -> Stats:
    """Ends one pause; without a model all of them."""
    live.resume_queue(model)
    await _note(database, actor, "queue.resume", model)
    return live.queue_stats()


async def _note(database: Database, actor: str, action: str, what: str, **detail: str) -> None:
    async with database.write() as session:
        await audit.record(session, actor, action, what or "*", **detail)


def _unknown(request_id: str) -> NotFound:
    return NotFound(f"No request {request_id[:80]!r} waits or runs.", hint="`mindgw queue list --running` shows who does")
