"""Tags of workers: what an operator says of them, such as the region that they are in."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from msgspec import Meta, Struct

from mindgw.core import routing
from mindgw.errors import BadRequest, Conflict
from mindgw.store import audit, fleet, rows
from mindgw.store.audit import Who
from mindgw.store.database import Database

#: Most tags of one worker.
MOST = 50

#: Has the running gateway read the tags again.
News = Callable[[], Awaitable[object]]


class TagsWish(Struct, frozen=True, forbid_unknown_fields=True):
    """Tags to set; null takes one away."""

    tags: Annotated[dict[str, str | None], Meta(min_length=1, max_length=MOST)]


class TagsView(Struct, frozen=True, kw_only=True):
    """The tags of a worker."""

    id: str
    name: str
    tags: dict[str, str]
    version: int


async def change(database: Database, who: Who | str, worker: str, wish: TagsWish, changed: News, *, version: int | None = None) -> TagsView:
    """Gives a worker tags, or takes some away; the gateway hears of it when they are on the disk. Raises BadRequest, NotFound, Conflict,
    PreconditionFailed."""
    for name, value in wish.tags.items():
        _check(name, value)
    async with database.write() as session:
        row = await fleet.find_worker(session, worker)
        merged: dict[str, Any] = {**row.tags, **wish.tags}
        kept = {name: value for name, value in merged.items() if value is not None}
        if len(kept) > MOST:
            raise Conflict(f"A worker has {MOST} tags at most.", code="too_many_tags")
        rows.change(row, version, tags=kept)
        await audit.record(session, who, "worker.tag", row.id, name=row.name, tags=wish.tags)
        view = TagsView(id=row.id, name=row.name, tags=kept, version=row.version)
    await changed()
    return view


def _check(name: str, value: str | None) -> None:
    try:
        routing.tag(f"{name}={value if value is not None else 'x'}")
    except ValueError as wrong:
        raise BadRequest(f"A tag {wrong}.", param="tags") from None
    if name == routing.OWN:
        raise BadRequest(f"The tag {routing.OWN!r} is a worker's own name.", param="tags")
