"""/api/v1/requests"""

from typing import Annotated, Any

from litestar import get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter

from mindgw.control import stories
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.stories import RequestView, StoryView, Wanted
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit
from mindgw.store.database import Database


def _only(name: str, what: str, most: int = 512) -> Any:
    return QueryParameter(name=name, max_length=most, description=f"Only {what}.")


async def owners(
    key: Annotated[str, _only("key", "those of the key of this id or name")] = "",
    user: Annotated[str, _only("user", "those of this person, or of this end user behind a trusted proxy")] = "",
    team: Annotated[str, _only("team", "those of the team of this name")] = "",
) -> dict[str, str]:
    """Whose requests."""
    return {"key": key, "user": user, "team": team}


async def ends(
    status: Annotated[str, _only("status", "those with this status, such as 429, or of this class, such as 5xx", 3)] = "",
    outcome: Annotated[str, _only("outcome", "those that ended so: done, cancelled, failed or replayed", 32)] = "",
    slow: Annotated[str, _only("slow", "those that took at least so long, such as 5s", 32)] = "",
    since: Annotated[str, _only("since", "those that were over from a moment, a UTC day or a span ago on", 64)] = "",
    until: Annotated[str, _only("until", "those that were over before a moment or the end of a UTC day", 64)] = "",
) -> dict[str, str]:
    """How and when they ended."""
    return {"status": status, "outcome": outcome, "slow": slow, "since": since, "until": until}


async def wanted(
    owners: NamedDependency[dict[str, str]],
    ends: NamedDependency[dict[str, str]],
    model: Annotated[str, _only("model", "requests for this model, as it was asked for or as its worker calls it")] = "",
    worker: Annotated[str, _only("worker", "those that this worker had last")] = "",
) -> Wanted:
    """What a list of requests is to have."""
    return Wanted(**owners, **ends, model=model, worker=worker)


_CHOSEN = {"owners": Provide(owners), "ends": Provide(ends), "wanted": Provide(wanted)}


@get("/requests", dependencies=_CHOSEN, opt=needs("read", "requests"))
async def list_requests(
    state: Office,
    database: NamedDependency[Database],
    who: NamedDependency[Principal],
    wanted: NamedDependency[Wanted],
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[RequestView]:
    """Requests that are over, the latest first, for as long as they are remembered (`requests.keep_days`). Whoever runs the server sees
    those of all organisations."""
    return await stories.listing(seen(state, database, who), who, wanted, before=cursor, limit=limit)


@get("/requests/{request_id:str}", opt=needs("read", "requests"))
async def show_request(
    state: Office, database: NamedDependency[Database], request_id: FromPath[str], who: NamedDependency[Principal]
) -> StoryView:
    """What became of a request, moment by moment, or so far, while it waits or runs: never what it said."""
    return await stories.show(seen(state, database, who), who, state.pipeline, request_id)


def seen(state: Office, database: Database, who: Principal) -> Database:
    """With the requests that somebody may see."""
    return state.database if who.is_home else database


HANDLERS = (list_requests, show_request)
