"""What workers do and how they are, noted every ten seconds and written down now and then.

Of each worker there is one block in memory, a few bytes a step (`core.series`). It is written every few minutes, ends with its hour, and
is written once more when the server stops: a server that is killed loses what came since. Nothing here is waited for by a request.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from mindgw.core.series import Block, whole
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.seat import Worker
from mindgw.store.entries import BILLED, Entry
from mindgw.store.series import Stored

log = logging.getLogger("mindgw.server")

#: Seconds between two values of what is measured, and of what is summed up.
STEP, LONG_STEP = 10, 3600
#: How many of what is kept are one of what is meant, by the last word of a column's name: slots; requests and tokens a second; utilisation
#: from 0 to 1; bytes of memory; degrees Celsius.
SCALES: Mapping[str, float] = {
    "slots": 1, "used": 1, "elsewhere": 1, "requests": 1000, "tokens": 10, "utilisation": 1000, "memory": 2.0**-20, "temperature": 10,
}  # fmt: skip
#: Blocks that are kept while the database is away, those in the making apart.
MOST = 5000
#: Workers that are looked at before others have the loop, half a millisecond; and blocks that one transaction writes.
_LOOK, _BATCH = 25, 100

Write = Callable[[Sequence[Stored]], Awaitable[None]]


class Trends:
    """Of all workers. Call `sample` every few seconds, `flush` every few minutes and at the end. One owner: the event loop."""

    def __init__(self, fleet: Fleet, wall: Callable[[], float]) -> None:
        self._fleet = fleet
        self._wall = wall
        #: By worker id.
        # bounded: one a worker of the last hour
        self._blocks: dict[str, Block] = {}
        #: How much of each of them is written: steps.
        # bounded: as above
        self._written: dict[str, int] = {}
        #: Blocks that have come to their end and are not written yet, by worker id and their beginning.
        # bounded: by MOST
        self._ended: dict[tuple[str, int], Stored] = {}
        #: Requests and tokens of each worker since the step before.
        # bounded: by the workers that answered since
        self._done: dict[str, list[int]] = {}
        self._last: int | None = None
        #: First and last step of each stretch of time that was noted, the newest last; a stretch has no gap of more than an hour.
        self._stretches: deque[tuple[int, int]] = deque(maxlen=_STRETCHES)
        #: Whether the clock went back into one of them, and it is not over yet.
        self._is_behind = False

    def served(self, rows: Iterable[Entry]) -> None:
        """Rows of attempts that are over; their requests and tokens count for the step that it is now."""
        for row in rows:
            if row.worker_id:
                done = self._done.setdefault(row.worker_id, [0, 0])
                done[0] += row.kind in BILLED
                done[1] += row.completion_tokens

    async def sample(self) -> None:
        """Notes how things are, once a step: a second call within one does nothing, nor does one in a step that the clock went back
        to: what was noted of it stands."""
        now = int(self._wall()) // STEP
        if now == self._last:
            return
        passed = now - self._last if self._last is not None else 1
        done, self._done, self._last = self._done, {}, now
        if not self._is_new(now):
            return
        seconds = STEP * passed if passed > 0 else STEP
        for number, worker in enumerate(list(self._fleet.workers.values()), 1):
            self._note(worker.id, now, _measured(worker, done.get(worker.id, (0, 0)), seconds))
            if number % _LOOK == 0:
                await asyncio.sleep(0)
        for worker_id, block in list(self._blocks.items()):  # of those that are gone
            if block.start // _HOUR != now // _HOUR:
                self._end(worker_id)

    def blocks(self, worker_id: str) -> list[bytes]:
        """What of a worker is not written yet, or not all of it, with what is written of the same block."""
        ended = [block.data for (id, _), block in self._ended.items() if id == worker_id]
        block = self._blocks.get(worker_id)
        return [*ended, block.encode()] if block is not None else ended

    def starts(self, worker_id: str) -> frozenset[int]:
        """Unix seconds at which these begin: the database has less of them."""
        ended = {start for id, start in self._ended if id == worker_id}
        block = self._blocks.get(worker_id)
        return frozenset(ended | {block.start * STEP} if block is not None else ended)

    async def flush(self, write: Write) -> int:
        """Writes what is new, in batches; returns how many blocks. Raises what `write` raises; what was not written then is the next
        time."""
        written = 0
        while self._ended:
            batch = list(self._ended.items())[:_BATCH]
            await write([block for _, block in batch])
            written += len(batch)
            for place, block in batch:
                if self._ended.get(place) is block:
                    del self._ended[place]
        grown = [id for id, block in self._blocks.items() if block.count != self._written.get(id)]
        for start in range(0, len(grown), _BATCH):
            blocks = {id: self._blocks[id] for id in grown[start : start + _BATCH] if id in self._blocks}
            counts = {id: block.count for id, block in blocks.items()}
            await write([_stored(id, block) for id, block in blocks.items()])
            self._written.update({id: counts[id] for id, block in blocks.items() if self._blocks.get(id) is block})
            written += len(blocks)
        return written

    def _is_new(self, now: int) -> bool:
        """Whether nothing was noted of a step; it is from now on."""
        behind = any(first <= now <= last for first, last in self._stretches)
        if behind and not self._is_behind:
            log.warning("the clock went back: how workers are is not noted until it has passed what was noted before")
        self._is_behind = behind
        if not behind:
            first, last = self._stretches[-1] if self._stretches else (now, now)
            if 0 <= now - last <= _HOUR and self._stretches:
                self._stretches.pop()
            else:  # at first; far ahead, which may be a mistake and be taken back; or behind what is far ahead
                first = now
            self._stretches.append((first, now))
        return not behind

    def _note(self, worker_id: str, now: int, values: Mapping[str, int | None]) -> None:
        block = self._blocks.get(worker_id)
        if block is not None and (block.start // _HOUR != now // _HOUR or not block.append(now, values)):
            self._end(worker_id)  # an hour is over, or the clock went back from far ahead: what is measured then is another block
            block = None
        if block is None:
            block = self._blocks[worker_id] = Block(now)
            block.append(now, values)

    def _end(self, worker_id: str) -> None:
        block = self._blocks.pop(worker_id)
        if self._written.pop(worker_id, None) == block.count:
            return
        if len(self._ended) >= MOST:
            log.warning("the database does not take what workers measured: an hour of one of them is lost")
            del self._ended[next(iter(self._ended))]
        self._ended[worker_id, block.start * STEP] = _stored(worker_id, block)


#: Steps of an hour.
_HOUR = 3600 // STEP
#: Stretches of time that are remembered: a clock that goes to and fro so often is none.
_STRETCHES = 16


def _stored(worker_id: str, block: Block) -> Stored:
    return Stored(worker_id, STEP, block.start * STEP, block.encode())


def _measured(worker: Worker, done: Sequence[int], seconds: int) -> dict[str, int | None]:
    """Columns of one worker; `done`: requests and tokens of so many seconds."""
    engines = [seat.engine for seat in worker.seats.values()]
    said: dict[str, float] = {
        "slots": worker.slots,
        "used": worker.used,
        "elsewhere": sum(engine.elsewhere for engine in engines),
        "requests": done[0] / seconds,
        "tokens": done[1] / seconds,
    }
    for number, gpu in enumerate(worker.gpus):
        said[f"gpu{number}.utilisation"] = gpu.utilisation
        said[f"gpu{number}.memory"] = gpu.memory_used
        said[f"gpu{number}.temperature"] = gpu.temperature
    return {name: whole(value, SCALES[name.rpartition(".")[2]]) for name, value in said.items()}
