"""The queue as management sees it, and what an operator may do to it. Every change is audited before it is made: what
cannot be recorded is not done.
"""

import re
import secrets
from collections import OrderedDict

from mindgw.control.live import Live
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.errors import BadRequest, NotFound
from mindgw.gateway.lineup import Entry, Stats, Wanted
from mindgw.store import audit
from mindgw.store.audit import Who
from mindgw.store.database import Database

__all__ = ["Entry", "Lists", "Stats", "Wanted", "bump", "cancel", "entry", "listing", "pause", "resume"]

#: Lists that may be read page by page at the same time.
_LISTS = 8


class Lists:
    """Whose turn it was when a list was begun: turns change all the time, and whoever reads page by page must miss nobody who stays."""

    def __init__(self) -> None:
        #: Name of a list -> ids of requests. Bounded: by _LISTS, the one that was not read for longest goes.
        self._lists: OrderedDict[str, list[str]] = OrderedDict()

    def keep(self, ids: list[str]) -> str:
        """The cursor of the first page."""
        name = secrets.token_hex(8)
        self._lists[name] = ids
        while len(self._lists) > _LISTS:
            self._lists.popitem(last=False)
        return f"{name}.0"

    def page(self, cursor: str, limit: int) -> tuple[list[str], str | None]:
        """Ids of one page, and the cursor of the next. Raises BadRequest when the list is not kept any more."""
        name, at = cursor.split(".") if re.fullmatch(r"[0-9a-f]{16}\.[0-9]{1,9}", cursor, re.ASCII) else ("", "0")
        ids = self._lists.get(name)
        if ids is None:
            raise BadRequest("This list is not kept any more.", param="cursor", hint="begin again, without a cursor")
        self._lists.move_to_end(name)
        end = int(at) + limit
        return ids[int(at) : end], f"{name}.{end}" if end < len(ids) else None


async def listing(live: Live, lists: Lists, wanted: Wanted, *, cursor: str | None, limit: int) -> Page[Entry]:
    """Who waits in the order of their turns, then who runs, as it was when the first page was asked for; a later page knows what was
    wanted, and leaves out who is gone. Raises BadRequest."""
    if cursor is None:
        ids = await live.ranking(wanted)
        following = None
        if len(ids) > limit:
            ids, following = lists.page(lists.keep(ids), limit)
    else:
        ids, following = lists.page(cursor, limit)
    return Page(await live.places_of(ids), following)


def seen_by(who: Principal) -> str:
    """Id of the organisation whose requests somebody sees; "" for whoever runs the server, and with it the queue of all."""
    return "" if who.is_home else who.org_id


def entry(live: Live, request_id: str, org_id: str = "") -> Entry:
    """One request under way, of that organisation if one is given. Raises NotFound."""
    found = live.place_of(request_id)
    if found is None or (org_id and live.org_of(request_id) != org_id):
        raise _unknown(request_id)
    return found


async def cancel(database: Database, who: Principal, live: Live, request_id: str) -> Entry:
    """Ends a request that waits or runs; its client hears why. Raises NotFound, also for one whose client is served or gone already."""
    found = entry(live, request_id, seen_by(who))
    over = NotFound(f"Request {request_id!r} is over; its slot is about to be free.")
    if not live.is_under_way(request_id):
        raise over
    await _note(database, who, "queue.cancel", request_id, key=found.key_id, model=found.model)
    if not live.cancel_request(request_id):
        await _too_late(database, who, "queue.cancel", request_id, over)
    return found


async def bump(database: Database, who: Who | str, live: Live, request_id: str) -> Entry:
    """Puts a request that waits before all others. Raises NotFound, also for one that runs already."""
    found = entry(live, request_id)
    over = NotFound(f"Request {request_id!r} does not wait any more.", hint="`mindgw queue list` shows who waits")
    if not live.waits(request_id):
        raise over
    await _note(database, who, "queue.bump", request_id, key=found.key_id, model=found.model)
    if not live.bump_request(request_id):
        await _too_late(database, who, "queue.bump", request_id, over)
    return live.place_of(request_id) or found


async def pause(database: Database, who: Who | str, live: Live, model: str) -> Stats:
    """Lets nobody have a slot, of one model or at all, until `resume`; who runs goes on. A restart of the server ends it."""
    await _note(database, who, "queue.pause", model)
    live.pause_queue(model)
    return live.queue_stats()


async def resume(database: Database, who: Who | str, live: Live, model: str) -> Stats:
    """Ends one pause; without a model all of them."""
    await _note(database, who, "queue.resume", model)
    live.resume_queue(model)
    return live.queue_stats()


async def _note(database: Database, who: Who | str, action: str, what: str, **detail: str) -> None:
    async with database.write() as session:
        await audit.record(session, who, action, what or "*", **detail)


async def _too_late(database: Database, who: Who | str, action: str, request_id: str, over: NotFound) -> None:
    """It ended while that was recorded. Raises `over`."""
    async with database.write() as session:
        await audit.refused(session, who, action, request_id, code=over.code)
    raise over


def _unknown(request_id: str) -> NotFound:
    return NotFound(f"No request {request_id[:80]!r} waits or runs.", hint="`mindgw queue list --running` shows who does")
