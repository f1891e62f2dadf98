"""Workers and models as management sees them: what is stored of a worker, and what it is doing now."""

from collections.abc import Callable, Iterable
from datetime import datetime

import msgspec
from msgspec import Struct

from mindgw.control.pages import Page, page_of
from mindgw.gateway.snapshot import CircuitView, EngineView, ModelView, Snapshot, WorkerView
from mindgw.store import audit, fleet
from mindgw.store.audit import Who, named
from mindgw.store.database import Database
from mindgw.store.tables import Worker
from mindgw_agent.wire import Gpu, Model

#: What the operator must look at, connected or not.
_HELD = frozenset({"pending", "locked", "quarantined"})


class EngineFacts(Struct, frozen=True, kw_only=True):
    """What runs on the box. Empty where nothing is known yet."""

    kind: str = ""
    version: str = ""
    url: str = ""


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """A worker, connected or not; live fields are zero or empty while it is away."""

    id: str
    name: str
    #: connecting, pending, ready, draining, paused, offline, quarantined or locked.
    state: str
    #: Why it is quarantined or locked; empty when it is neither.
    reason: str
    #: Whether an operator wants it to take nothing new, now and when it comes back.
    drained: bool
    #: Until when the owner of the box paused it; None: it is not paused.
    paused_until: datetime | None
    #: Names of the teams that the owner of the box keeps it for; none: for all.
    teams: list[str]
    slots: int
    used: int
    #: The first of `engines`.
    engine: EngineFacts
    engines: list[EngineView]
    #: Those of all engines, each once.
    models: list[Model]
    gpus: list[Gpu]
    rtt_ms: float | None
    last_seen: datetime | None
    epoch: int
    hostname: str
    #: What an operator says of it, for routes and residency, such as {"zone": "lab"}.
    tags: dict[str, str]
    created_at: datetime
    version: int
    #: Models that fail there, for which it is left alone.
    circuits: list[CircuitView] = []


class ModelStatus(Struct, frozen=True, kw_only=True):
    """A model and the ready workers that serve it."""

    id: str
    #: Their names.
    workers: list[str]
    slots: int
    used: int
    #: Tokens that fit on every one of them; None: none of them says.
    context: int | None
    #: chat, completions, embeddings.
    kinds: list[str]


async def workers(database: Database, snapshot: Snapshot, *, after: str | None = None, limit: int) -> Page[WorkerStatus]:
    """Workers in the order of their joining, removed ones left out."""
    async with database.read() as session:
        rows = await fleet.workers(session, after=after, limit=limit)
    live = _by_id(snapshot)
    return page_of([_status(row, live.get(row.id)) for row in rows], limit)


async def worker(database: Database, snapshot: Snapshot, reference: str) -> WorkerStatus:
    """`reference` is a name or an id. Raises NotFound."""
    async with database.read() as session:
        row = await fleet.find_worker(session, reference)
    return _status(row, _by_id(snapshot).get(row.id))


async def remove(
    database: Database, who: Who | str, reference: str, removed: Callable[[str], None], *, version: int | None = None
) -> WorkerStatus:
    """Puts a worker out for good: its key is void from now on, its name is free. Raises NotFound, PreconditionFailed. The callback,
    which closes the tunnel, runs once that is on the disk."""
    async with database.write() as session:
        found = await fleet.find_worker(session, reference)
        row = await fleet.set_state(session, found.id, "removed", reason=f"removed by {named(who)}", version=version)
        await audit.record(session, who, "worker.remove", row.id, name=row.name)
    removed(row.id)
    return _status(row, None)


def models(served: Iterable[ModelView]) -> list[ModelStatus]:
    """What can be asked for now, by name."""
    return [
        ModelStatus(id=one.id, workers=one.workers, slots=one.slots, used=one.used, context=one.context, kinds=one.kinds) for one in served
    ]


def _by_id(snapshot: Snapshot) -> dict[str, WorkerView]:
    return {view.id: view for view in snapshot.workers}


def _status(row: Worker, live: WorkerView | None) -> WorkerStatus:
    engines = live.engines if live else _stored_engines(row)
    first = engines[0] if engines else EngineView(id="")
    return WorkerStatus(
        id=row.id,
        name=row.name,
        state=_state(row, live),
        reason=(live.reason if live else "") or (row.reason if row.state_admin in _HELD else ""),
        drained=row.drained,
        paused_until=live.paused_until if live else None,
        teams=live.teams if live else [],
        slots=live.slots if live else 0,
        used=live.used if live else 0,
        engine=EngineFacts(kind=first.kind, version=first.version, url=first.url),
        engines=engines,
        models=_once(model for engine in engines for model in engine.models) if live else _once(_stored_models(row.models)),
        gpus=live.gpus if live else [],
        rtt_ms=live.rtt_ms if live else None,
        last_seen=live.last_seen if live and live.last_seen else row.last_seen_at,
        epoch=live.epoch if live else row.epoch,
        hostname=row.hostname,
        tags={name: str(value) for name, value in row.tags.items()},
        created_at=row.created_at,
        version=row.version,
        circuits=live.circuits if live else [],
    )


def _state(row: Worker, live: WorkerView | None) -> str:
    """What the operator says wins over what the link says."""
    if row.state_admin in _HELD:
        return row.state_admin
    if row.state_admin == "removed" or live is None:
        return "offline"
    return live.state


class _Kept(Struct, frozen=True):
    """An engine of the last report, as it is stored."""

    kind: str
    id: str = ""
    version: str = ""
    url: str = ""
    #: Ids.
    models: list[str] = []
    #: Of the document as a whole: all engines, this one too.
    engines: list["_Kept"] = []


def _stored_engines(row: Worker) -> list[EngineView]:
    """Of the last report; what another release wrote in another shape is left out."""
    try:
        first = msgspec.convert(row.engine, _Kept)
    except msgspec.ValidationError:
        return []
    known = {model.id: model for model in _stored_models(row.models)}
    return [
        EngineView(id=kept.id, kind=kept.kind, version=kept.version, url=kept.url, models=[known[id] for id in kept.models if id in known])
        for kept in first.engines or [first]
    ]


def _once(models: Iterable[Model]) -> list[Model]:
    return list({model.id: model for model in models}.values())


def _stored_models(stored: Iterable[object]) -> Iterable[Model]:
    """Of the last report; what another release wrote in another shape is left out."""
    for item in stored:
        try:
            yield msgspec.convert(item, Model)
        except msgspec.ValidationError:
            continue
