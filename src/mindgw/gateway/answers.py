"""Answers that were given a short while ago to requests with an Idempotency-Key: in memory for two minutes, and until they are written.

A task of the server calls `flush` a few times a second. What is written may be forgotten at any moment: the database knows it.
"""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from mindgw.config import Idempotency
from mindgw.store.replays import Ended

#: How a request ended, and its answer; None: that is not kept.
Sent = tuple[Ended, bytes | None]
#: Seconds for which an answer stays in memory.
RECENT = 120.0
#: Answers that one batch writes at most.
BATCH = 100
#: Requests that memory holds, and bytes of answers, those that are on their way included.
MOST, MOST_BYTES = 20_000, 64 * 2**20


class _Entry:
    """One request that is over."""

    __slots__ = ("body", "ended", "until", "written")

    def __init__(self, ended: Ended, body: bytes | None, until: float, written: bool) -> None:
        self.ended = ended
        #: The answer; None when it was too large or there was no room.
        self.body = body
        #: Monotonic second until which it is needed here.
        self.until = until
        #: True when the database has it.
        self.written = written


class Answers:
    """By the identity of their requests. Monotonic seconds throughout."""

    def __init__(self, settings: Idempotency) -> None:
        self._settings = settings
        #: Bytes of answers, those that are on their way included.
        self.held = 0
        #: Oldest first.
        # bounded: by MOST and what `full` lets in
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        #: Those of them that have their answer, oldest first.
        # bounded: as above
        self._bodies: OrderedDict[bytes, _Entry] = OrderedDict()
        #: Those that no batch has written yet, oldest first.
        # bounded: as above
        self._unwritten: deque[_Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def unwritten(self) -> int:
        """Requests that are not in the database yet."""
        return len(self._unwritten)

    @property
    def full(self) -> bool:
        """True when the database has been away for so long that a request might be forgotten before it is written."""
        return len(self._unwritten) >= MOST

    def get(self, identity: bytes, now: float) -> Sent | None:
        """How it ended; None when memory does not say."""
        entry = self._entries.get(identity)
        if entry is None or (entry.written and entry.until <= now):
            return None
        return replace(entry.ended, note=entry.ended.note or ("" if entry.body is not None else "crowded")), entry.body

    def add(self, ended: Ended, body: bytes | None, now: float, *, written: bool = False) -> None:
        """Takes in how a request ended; `written`: it comes from the database. A body that was on its way has been given up before."""
        if body is not None and not self.grow(len(body)):
            body = None
        entry = _Entry(ended, body, now + min(RECENT, self._settings.keep), written)
        self._discard(ended.identity)
        self._entries[ended.identity] = entry
        if body is not None:
            self._bodies[ended.identity] = entry
        if not written:
            self._unwritten.append(entry)
        while len(self._entries) > MOST and next(iter(self._entries.values())).written:
            self._discard(next(iter(self._entries)))

    def grow(self, size: int) -> bool:
        """Whether there is room for so many bytes more, which are taken; the oldest answers make it."""
        while self.held + size > MOST_BYTES and self._bodies:
            identity, entry = next(iter(self._bodies.items()))
            if entry.written:
                self._discard(identity)
            else:
                del self._bodies[identity]
                self.held -= len(entry.body or b"")
                entry.body = None
        if self.held + size > MOST_BYTES:
            return False
        self.held += size
        return True

    def shrink(self, size: int) -> None:
        """Gives back what `grow` took."""
        self.held -= size

    def forget(self, now: float) -> None:
        """Lets go of what is not needed here any more."""
        while self._entries and (entry := next(iter(self._entries.values()))).written and entry.until <= now:
            self._discard(entry.ended.identity)

    async def flush(self, write: Callable[[Sequence[Sent]], Awaitable[None]]) -> int:
        """Writes all that is new, in batches; returns how many. Raises what `write` raises, losing none. One at a time."""
        count = 0
        while self._unwritten:
            entries = [self._unwritten[i] for i in range(min(BATCH, len(self._unwritten)))]
            await write([self._row(entry) for entry in entries])
            for entry in entries:
                self._unwritten.popleft()
                entry.written = True
            count += len(entries)
        return count

    def _row(self, entry: _Entry) -> Sent:
        if entry.body is None:
            return (entry.ended if entry.ended.note else replace(entry.ended, note="crowded")), None
        return (entry.ended, entry.body) if self._settings.keep_body else (replace(entry.ended, note="off"), None)

    def _discard(self, identity: bytes) -> None:
        entry = self._entries.pop(identity, None)
        if entry is not None and self._bodies.pop(identity, None) is not None:
            self.held -= len(entry.body or b"")
