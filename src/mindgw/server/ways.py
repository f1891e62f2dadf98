"""The routes of a running server, and what is said of its workers: read when routes change here, and once a second, as other servers of the
database change all that, too."""

import asyncio
from collections.abc import Mapping
from typing import Any

from mindgw.core.routing import Rules
from mindgw.gateway.pipeline import Pipeline
from mindgw.gateway.seat import Worker
from mindgw.store import fleet as stored
from mindgw.store import routes
from mindgw.store.database import Database
from mindgw.store.fleet import Said


class Ways:
    """Tells the pipeline where requests go."""

    def __init__(self, pipeline: Pipeline, database: Database) -> None:
        self._pipeline = pipeline
        self._database = database
        self._reading = asyncio.Lock()
        #: What the rules were made of.
        # bounded: by the routes that there are
        self._known: list[dict[str, Any]] = []
        self._rules = Rules()
        self._fleet = pipeline.fleet
        #: What was said of workers when that was last heeded, by their ids.
        # bounded: by the workers that there are
        self._states: dict[str, str] = {}

    async def refresh(self) -> None:
        """Routes, tags and what is said of workers as the database has them now. One at a time: what was read first must not be believed
        last."""
        async with self._reading:
            decisions = self._fleet.decisions
            async with self._database.read() as session:
                said = await stored.said(session, self._fleet.workers)
                found = await routes.load(session)
                known = [row.model_dump() for row in found]
                rules = routes.compiled(found) if known != self._known else self._rules
            self._known, self._rules = known, rules
            tags = {id: routes.tags_of(one.name, one.tags) for id, one in said.items() if one.state != "removed"}
            self._pipeline.adopt_routes(self._rules, tags)
            if self._fleet.decisions == decisions:  # else it may be older than what was decided here meanwhile: the next time
                self._heed(said)

    def _heed(self, said: Mapping[str, Said]) -> None:
        """What was decided about workers at another server holds for the links that are here."""
        for worker in list(self._fleet.workers.values()):
            one = said.get(worker.id)
            if one is not None and worker.link.closing is None:
                self._obey(worker, one)
        self._states = {id: one.state for id, one in said.items()}

    def _obey(self, worker: Worker, said: Said) -> None:
        if said.state == "removed":
            return self._pipeline.remove_worker(worker.id)
        if said.state == "locked":
            return self._pipeline.lock_worker(worker.id)
        errands = self._pipeline.errands
        if said.drained != worker.drained:
            (errands.drain if said.drained else errands.undrain)(worker.id)
        if said.state == "quarantined" and not worker.charge:
            self._fleet.accuse(worker, said.reason)
        # a charge that is not written down yet is none of the database's
        elif said.state == "active" and worker.charge and self._states.get(worker.id) == "quarantined":
            errands.release(worker.id)
        return None

    async def tell(self) -> None:
        """Writes into the log what routes that are only noted would have done."""
        self._pipeline.routes.tell()
