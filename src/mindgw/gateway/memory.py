"""What the fair order knows of who used how much, on the disk, so that a restart wipes no slate clean."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from mindgw.core.fair import Fair, Path
from mindgw.store import flows
from mindgw.store.database import Database

T = TypeVar("T")

#: Flows that are looked at and kept; of more than these some begin anew after a restart.
MOST = 20_000
#: Flows that are looked at before others have the loop, and rows that one transaction writes.
_STEP, BATCH = 500, 1000
#: A counter that did not change for so long is forgotten.
KEPT = timedelta(days=7)


class Memory:
    """The counters of one order. Call `recall` once, before the first request, then `flush` again and again, and at the end."""

    def __init__(self, order: Fair, database: Database, today: Callable[[], datetime]) -> None:
        self._order = order
        self._database = database
        #: Wall clock.
        self._today = today
        #: Counters as the database has them.
        # bounded: by MOST
        self._written: dict[Path, int] = {}

    async def recall(self) -> None:
        """Gives the order what the last server knew."""
        since = self._today() - KEPT
        async with self._database.write() as session:
            await flows.drop_older(session, since)
        async with self._database.read() as session:
            found = await flows.load(session, since, MOST)
        self._order.restore(found.items())
        self._written = {path: round(counter) for path, counter in found.items()}

    async def flush(self) -> int:
        """Writes the counters that changed by a unit or more since the last time; returns how many. Raises what the database raises;
        what was not written then is the next time."""
        wanted = await self._look()
        changed = [(path, units) for path, units in wanted.items() if self._written.get(path) != units]
        for batch in _batches(changed):
            async with self._database.write() as session:
                await flows.keep(session, dict(batch), self._today())
            self._written.update(batch)
        gone = [path for path in self._written if path not in wanted]
        for paths in _batches(gone):
            async with self._database.write() as session:
                await flows.drop(session, paths)
            for path in paths:
                del self._written[path]
        return len(changed) + len(gone)

    async def _look(self) -> dict[Path, int]:
        """Whole units of all flows that are ahead of somebody, and of the flows above them."""
        seen: dict[Path, int] = {}
        counters = islice(self._order.counters(), MOST)
        while step := list(islice(counters, _STEP)):
            seen.update((path, round(units)) for path, units in step)
            await asyncio.sleep(0)
        ahead = {path[:depth] for path, units in seen.items() if units for depth in range(1, len(path) + 1)}
        return {path: units for path, units in seen.items() if path in ahead}


def _batches(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
