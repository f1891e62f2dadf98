"""/api/v1/workers"""

from litestar import delete, get, patch
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mindgw.control import fleet, tags
from mindgw.control.fleet import WorkerStatus
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.tags import TagsView, TagsWish
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit


@get("/workers", opt=needs("read", "workers", home=True))
async def list_workers(state: Office, cursor: Cursor = None, limit: Limit = 1000) -> Page[WorkerStatus]:
    """Workers in the order of their joining, connected or not."""
    return await fleet.workers(state.database, state.pipeline.snapshot(), after=cursor, limit=limit)


@get("/workers/{worker:str}", opt=needs("read", "workers", home=True))
async def show_worker(state: Office, worker: FromPath[str]) -> WorkerStatus:
    """A worker by its name or its id."""
    return await fleet.worker(state.database, state.pipeline.snapshot(), worker)


@delete("/workers/{worker:str}", status_code=200, opt=needs("delete", "workers", home=True))
async def remove_worker(
    state: Office, worker: FromPath[str], who: NamedDependency[Principal], version: NamedDependency[int | None]
) -> WorkerStatus:
    """Remove a worker for good: its agent's key is revoked and its tunnel closed."""
    return await fleet.remove(state.database, who, worker, state.pipeline.remove_worker, version=version)


@patch("/workers/{worker:str}/tags", opt=needs("update", "workers", home=True))
async def tag_worker(
    state: Office,
    worker: FromPath[str],
    data: JSONBody[TagsWish],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> TagsView:
    """Give a worker tags, or take some away: null."""
    return await tags.change(state.database, who, worker, data, version=version)


HANDLERS = (list_workers, show_worker, remove_worker, tag_worker)
