"""Tags of workers: what an operator says of them, such as the region that they are in."""

import re
from typing import Annotated, Any

from msgspec import Meta, Struct

from mindgw.errors import BadRequest, Conflict
from mindgw.store import audit, fleet, rows
from mindgw.store.audit import Who
from mindgw.store.database import Database

#: Most tags of one worker.
MOST = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")
#: A tag that would be taken for the name of a worker.
_OWN = "worker"


class TagsWish(Struct, frozen=True, forbid_unknown_fields=True):
    """Tags to set; null takes one away."""

    tags: Annotated[dict[str, str | None], Meta(min_length=1, max_length=MOST)]


class TagsView(Struct, frozen=True, kw_only=True):
    """The tags of a worker."""

    id: str
    name: str
    tags: dict[str, str]
    version: int


async def change(database: Database, who: Who | str, worker: str, wish: TagsWish, *, version: int | None = None) -> TagsView:
    """Gives a worker tags, or takes some away. Raises BadRequest, NotFound, Conflict, PreconditionFailed."""
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
        return TagsView(id=row.id, name=row.name, tags=kept, version=row.version)


def _check(name: str, value: str | None) -> None:
    if not _NAME.fullmatch(name) or (value is not None and not _VALUE.fullmatch(value)):
        raise BadRequest(f"A tag must be NAME=VALUE, such as zone=lab, not {name[:63]!r}={(value or '')[:63]!r}.", param="tags")
    if name == _OWN:
        raise BadRequest(f"The tag {_OWN!r} is a worker's own name.", param="tags")
