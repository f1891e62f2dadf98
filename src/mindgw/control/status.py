"""The server at one look."""

from msgspec import Struct

from mindgw import __version__, clock
from mindgw.errors import ConfigError
from mindgw.gateway.snapshot import Snapshot
from mindgw.store import fleet
from mindgw.store.database import Database


class WorkerCount(Struct, frozen=True):
    ready: int
    total: int


class QueueDepth(Struct, frozen=True):
    waiting: int
    running: int


class Status(Struct, frozen=True, kw_only=True):
    version: str
    #: Whether the server can serve: its database is there and at the schema of this release. Says nothing of workers.
    ready: bool
    workers: WorkerCount
    #: How many models can be asked for now.
    models: int
    queue: QueueDepth
    #: Seconds.
    uptime_s: float


async def status(database: Database, snapshot: Snapshot, models: int) -> Status:
    """`models`: how many are served now. Answers also when the database does not: it then counts the connected workers alone."""
    connected = [view for view in snapshot.workers if view.state != "offline"]
    try:
        ready = await database.at_head()
        total = await _stored(database) if ready else len(connected)
    except ConfigError:
        ready, total = False, len(connected)
    return Status(
        version=__version__,
        ready=ready,
        workers=WorkerCount(ready=sum(view.state == "ready" for view in connected), total=total),
        models=models,
        queue=QueueDepth(waiting=snapshot.waiting, running=snapshot.running),
        uptime_s=round(clock.monotonic() - snapshot.started_at, 3),
    )


async def _stored(database: Database) -> int:
    async with database.read() as session:
        return len(await fleet.workers(session))
