"""/api/v1/dead-letters"""

from typing import Any

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from mindgw.control import dead_letters
from mindgw.control.dead_letters import LetterView, Retried
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.sealing import Safe
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.server.management.presence import while_connected
from mindgw.store.database import Database


@get("/dead-letters", opt=needs("read", "dead-letters"))
async def list_letters(database: NamedDependency[Database], cursor: Cursor = None, limit: Limit = 100) -> Page[LetterView]:
    """Requests that failed for good, the latest first."""
    return await dead_letters.listing(database, before=cursor, limit=limit)


@get("/dead-letters/{letter:str}", opt=needs("read", "dead-letters"))
async def show_letter(database: NamedDependency[Database], letter: FromPath[str]) -> LetterView:
    """One of them, by its own id or by that of its request."""
    return await dead_letters.show(database, letter)


@post("/dead-letters/{letter:str}/retry", status_code=200, opt=needs("update", "dead-letters"))
async def retry_letter(
    state: Office,
    database: NamedDependency[Database],
    request: Request[Any, Any, Any],
    letter: FromPath[str],
    who: NamedDependency[Principal],
) -> Retried:
    """Run the request again on behalf of its key, in its turn; the answer comes in one piece, however long it takes, and whoever hangs up
    ends it. 409 `no_body`: its body was not kept; `key_not_good`: its key was revoked or has expired; `retry_under_way`: it is being run
    again at this moment."""
    safe = Safe(state.secrets.sealing)
    retrying = dead_letters.retry(database, safe, who, state.pipeline, state.retrying, letter)
    return await while_connected(request.receive, retrying)


@delete("/dead-letters/{letter:str}", status_code=200, opt=needs("delete", "dead-letters"))
async def drop_letter(database: NamedDependency[Database], letter: FromPath[str], who: NamedDependency[Principal]) -> LetterView:
    """Forget one of them, with its body."""
    return await dead_letters.drop(database, who, letter)


HANDLERS = (list_letters, show_letter, retry_letter, drop_letter)
