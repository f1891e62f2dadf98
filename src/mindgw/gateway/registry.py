"""Which agents may come in, and what they said last: the store as the link door needs it.

Reports are only noted here; `flush` writes the newest of each worker, so that a chatty fleet costs one statement a worker and round.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from msgspec import to_builtins

from mindgw.gateway.fleet import Fleet
from mindgw.gateway.handshake import Rejected
from mindgw.gateway.seat import Worker
from mindgw.store import audit, faults
from mindgw.store import fleet as stored
from mindgw.store.database import Database
from mindgw.store.tables import Worker as Record
from mindgw_agent import identity as keys
from mindgw_agent import wire

log = logging.getLogger("mindgw.agents")


class Registry:
    """Finds workers, writes their sessions down, and holds the server's identity key."""

    def __init__(self, database: Database, identity: bytes) -> None:
        self._database = database
        self._key = identity
        #: The server's public identity key, 32 bytes.
        self.identity = keys.public_half(identity)
        #: Last reports that are not written yet, by worker id.
        # bounded: one entry a worker
        self._reports: dict[str, tuple[datetime, wire.Report]] = {}
        #: Those whose charges are not written yet, by worker id.
        # bounded: one entry a worker
        self._accused: dict[str, Worker] = {}
        #: Hears of each whose charge was written.
        self.on_booked: Callable[[Worker], None] = lambda worker: None

    def sign(self, message: bytes) -> bytes:
        """The server's signature."""
        return keys.sign(self._key, message)

    async def find(self, worker_id: str) -> Record:
        """The worker with this id; raises Rejected when it is unknown, removed or locked."""
        async with self._database.read() as session:
            return _welcome(await stored.worker(session, worker_id))

    async def enter(self, worker_id: str, epoch: int) -> tuple[Record, str]:
        """Writes a session's number down. The worker as it is now, with nobody changing it before that is done, and of what it is accused
        that is not written yet. Raises Rejected when a newer session began meanwhile, and as `find`."""
        async with self._database.write() as session:
            if await stored.advance_epoch(session, worker_id, at_least=epoch - 1) != epoch:
                raise Rejected("replaced", "Another session of this agent began at the same moment.")
            accused = self._accused.get(worker_id)
            return _welcome(await stored.worker(session, worker_id)), accused.charge if accused is not None else ""

    async def lock(self, worker_id: str) -> None:
        """Keeps an identity out that was used twice."""
        async with self._database.write() as session:
            await stored.set_state(session, worker_id, "locked", reason="its identity was used from two places")

    def seen(self, worker: Worker, report: wire.Report) -> None:
        """Notes a report, to be written by `flush`."""
        self._reports[worker.id] = datetime.fromtimestamp(worker.last_seen, UTC), report

    def accused(self, worker: Worker) -> None:
        """Notes why a worker is in quarantine, to be written by `flush`."""
        log.warning("worker %s is in quarantine: %s", worker.name, worker.charge)
        self._accused[worker.id] = worker

    async def flush(self) -> None:
        """Writes what was noted; nothing is lost when the database is away. A report that it cannot take is set aside, loudly."""
        for worker in list(self._accused.values()):
            await self._accuse(worker)
        if not self._reports:
            return
        reports = dict(self._reports)
        try:
            await self._write(reports)
        except faults.FAULTS as wrong:
            if not faults.in_the_data(wrong):
                raise
            for worker_id, noted in reports.items():
                await self._write_alone(worker_id, noted)
        self._reports = {id: noted for id, noted in self._reports.items() if reports.get(id) is not noted}

    async def _accuse(self, worker: Worker) -> None:
        """Writes a charge down, unless an operator was quicker and dropped it."""
        async with self._database.write() as session:
            row = await stored.quarantine(session, worker.id, worker.charge) if worker.charge else None
            if row is not None:
                await audit.record(session, "gateway", "worker.quarantine", row.id, name=row.name, reason=worker.charge)
        self._accused.pop(worker.id, None)
        if worker.charge:
            self.on_booked(worker)

    async def _write(self, reports: dict[str, tuple[datetime, wire.Report]]) -> None:
        async with self._database.write() as session:
            for worker_id, (at, report) in reports.items():
                models = [to_builtins(model) for engine in report.engines for model in engine.models]
                await stored.note_report(session, worker_id, at, models=models, engine=_engines(report), hostname=report.hostname)

    async def _write_alone(self, worker_id: str, noted: tuple[datetime, wire.Report]) -> None:
        try:
            await self._write({worker_id: noted})
        except faults.FAULTS as wrong:
            if not faults.in_the_data(wrong):
                raise
            log.exception("the report of worker %s cannot be stored and is set aside: %a", worker_id, noted[1])

    async def remember(self, fleet: Fleet) -> None:
        """Tells the fleet which models the workers had that are still away."""
        async with self._database.read() as session:
            for record in [each for each in await stored.workers(session) if each.state_admin != "pending"]:
                names = (name for model in record.models for name in (model["id"], *model.get("aliases", ())))
                fleet.remembered[record.id] = frozenset(map(str, names))


def _welcome(record: Record | None) -> Record:
    """The same, if it may come in; raises Rejected."""
    if record is None or record.state_admin == "removed":
        raise Rejected("revoked", "The server does not know this agent (any more). Join again with a new token.")
    if record.state_admin == "locked":
        raise Rejected("locked", f"This agent is locked: {record.reason or 'ask the operator'}.")
    return record


def _engines(report: wire.Report) -> dict[str, Any]:
    """The first engine's facts, and those of all with the ids of their models."""
    engines = [
        {
            "id": engine.id,
            "kind": engine.kind,
            "version": engine.version,
            "url": engine.url,
            "models": [model.id for model in engine.models],
        }
        for engine in report.engines
    ]
    return {**{fact: engines[0][fact] for fact in ("kind", "version", "url")}, "engines": engines} if engines else {}
