"""The routes of a running server, and what is said of its workers: read when routes change here, and once a second, as other servers of the
database change all that, too."""

import asyncio
from typing import Any

from mindgw.core.routing import Rules
from mindgw.gateway.pipeline import Pipeline
from mindgw.store import fleet as stored
from mindgw.store import routes
from mindgw.store.database import Database


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

    async def refresh(self) -> None:
        """Routes, tags and what is said of workers as the database has them now. One at a time: what was read first must not be believed
        last."""
        async with self._reading:
            decrees = self._pipeline.decrees
            mark = decrees.mark
            async with self._database.read() as session:
                said = await stored.said(session, decrees.present)
                found = await routes.load(session)
                known = [row.model_dump() for row in found]
                rules = routes.compiled(found) if known != self._known else self._rules
            self._known, self._rules = known, rules
            tags = {id: routes.tags_of(one.name, one.tags) for id, one in said.items() if one.state != "removed"}
            self._pipeline.adopt_routes(self._rules, tags)
            decrees.heed(said, mark)

    async def tell(self) -> None:
        """Writes into the log what routes that are only noted would have done."""
        self._pipeline.routes.tell()
