"""/api/v1/workers"""

from typing import Annotated

from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta, Struct

from mindgw.clock import utcnow
from mindgw.control import errands, fleet, tags
from mindgw.control.errands import ErrandStatus
from mindgw.control.fleet import WorkerStatus
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.tags import TagsView, TagsWish
from mindgw.control.trends import TrendView
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Cursor, Limit


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker's agent is to do; the argument is a model, or a number of lines."""

    verb: Annotated[str, Meta(max_length=32)]
    argument: Annotated[str, Meta(max_length=512)] = ""


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


@post("/workers/{worker:str}/drain", status_code=200, opt=needs("update", "workers", home=True))
async def drain_worker(
    state: Office, worker: FromPath[str], who: NamedDependency[Principal], version: NamedDependency[int | None]
) -> WorkerStatus:
    """Have a worker finish what it has and take nothing new, until `undrain`."""
    return await errands.drain(state.database, who, state.pipeline, worker, version=version)


@post("/workers/{worker:str}/undrain", status_code=200, opt=needs("update", "workers", home=True))
async def undrain_worker(
    state: Office, worker: FromPath[str], who: NamedDependency[Principal], version: NamedDependency[int | None]
) -> WorkerStatus:
    """Have a worker take requests again."""
    return await errands.undrain(state.database, who, state.pipeline, worker, version=version)


@post("/workers/{worker:str}/release", status_code=200, opt=needs("update", "workers", home=True))
async def release_worker(
    state: Office, worker: FromPath[str], who: NamedDependency[Principal], version: NamedDependency[int | None]
) -> WorkerStatus:
    """Let a worker out of quarantine."""
    return await errands.release(state.database, who, state.pipeline, worker, version=version)


@post("/workers/{worker:str}/commands", status_code=201, opt=needs("update", "workers", home=True))
async def order_worker(state: Office, worker: FromPath[str], data: JSONBody[Order], who: NamedDependency[Principal]) -> ErrandStatus:
    """Have a worker's agent do something: restart, logs, load, unload or pull. One of each at a time."""
    return await errands.order(state.database, who, state.pipeline, worker, data.verb, data.argument)


@get("/workers/{worker:str}/commands/{command:str}", opt=needs("update", "workers", home=True))
async def show_order(state: Office, worker: FromPath[str], command: FromPath[str]) -> ErrandStatus:
    """What became of a command."""
    return await errands.errand(state.database, state.pipeline, worker, command)


@patch("/workers/{worker:str}/tags", opt=needs("update", "workers", home=True))
async def tag_worker(
    state: Office,
    worker: FromPath[str],
    data: JSONBody[TagsWish],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> TagsView:
    """Give a worker tags, or take some away: null. The running gateway obeys at once."""
    return await tags.change(state.database, who, worker, data, state.routes_changed, version=version)


@get("/workers/{worker:str}/trend", opt=needs("read", "workers", home=True))
async def show_trend(
    state: Office,
    worker: FromPath[str],
    since: Annotated[str, QueryParameter(max_length=64, description="A span that ends now, such as 7d, or a moment.")] = "1h",
    step: Annotated[str, QueryParameter(max_length=64, description="Length of a step, such as 10s or 1h.")] = "",
) -> TrendView:
    """How a worker was: slots, requests, tokens, and its GPUs; in steps of 10 seconds for a week, of hours for 13 months."""
    return await state.past.trend(worker, since, step, utcnow())


HANDLERS = (
    list_workers, show_worker, show_trend, remove_worker, tag_worker, drain_worker, undrain_worker, release_worker,
    order_worker, show_order,
)  # fmt: skip
