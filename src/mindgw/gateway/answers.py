"""Answers that were given a short while ago to requests with an Idempotency-Key: in memory for two minutes, and until they are written.

A task of the server calls `flush` a few times a second. What is written may be forgotten at any moment: the database knows it.

Where there are too many, those of API keys go first that have more than their share, a tenth: one key must not push out the others.
"""

from collections import Counter, OrderedDict, deque
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
#: The part of either that one API key may have where others need room: 1 of so many.
SHARES = 10


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


class _Line:
    """Entries in the order in which they came, over all and by API key."""

    __slots__ = ("_all", "_of")

    def __init__(self) -> None:
        #: Oldest first.
        # bounded: by whoever adds
        self._all: OrderedDict[bytes, _Entry] = OrderedDict()
        #: key id -> those of it, oldest first.
        # bounded: as above
        self._of: dict[str, OrderedDict[bytes, _Entry]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, entry: _Entry) -> None:
        """At the end; there is none of its identity."""
        self._all[entry.ended.identity] = entry
        self._of.setdefault(entry.ended.key_id, OrderedDict())[entry.ended.identity] = entry

    def get(self, identity: bytes) -> _Entry | None:
        return self._all.get(identity)

    def pop(self, identity: bytes) -> _Entry | None:
        """Takes one out; None when it is not there."""
        entry = self._all.pop(identity, None)
        if entry is not None:
            mine = self._of[entry.ended.key_id]
            del mine[identity]
            if not mine:
                del self._of[entry.ended.key_id]
        return entry

    def count(self, key_id: str) -> int:
        return len(self._of.get(key_id, ()))

    def first(self, key_id: str | None = None) -> _Entry | None:
        """The oldest, of all or of one key; None when there is none."""
        line = self._all if key_id is None else self._of.get(key_id)
        return next(iter(line.values()), None) if line else None


class _Large:
    """How much each API key has, and which have more than their share: of these there are never many."""

    __slots__ = ("_share", "amounts", "over")

    def __init__(self, share: Callable[[], int]) -> None:
        self._share = share
        #: key id -> its amount, above 0.
        # bounded: by what is held
        self.amounts: Counter[str] = Counter()
        #: Those with more than their share.
        # bounded: as above
        self.over: set[str] = set()

    def change(self, key_id: str, amount: int) -> None:
        self.amounts[key_id] += amount
        (self.over.add if self.amounts[key_id] > self._share() else self.over.discard)(key_id)
        if not self.amounts[key_id]:
            del self.amounts[key_id]

    def largest(self) -> list[str]:
        """Those with more than their share, the largest first."""
        return sorted(self.over, key=lambda key_id: -self.amounts[key_id])


class Answers:
    """By the identity of their requests. Monotonic seconds throughout."""

    def __init__(self, settings: Idempotency) -> None:
        self._settings = settings
        #: Bytes of answers, those that are on their way included; and whose they are.
        self.held = 0
        self._bytes = _Large(lambda: MOST_BYTES // SHARES)
        #: All of them, and how many each key has.
        # bounded: by MOST and what `full` lets in
        self._entries = _Line()
        self._names = _Large(lambda: MOST // SHARES)
        #: Those of them that have their answer.
        # bounded: as above
        self._bodies = _Line()
        #: Those of them that no batch has written yet, oldest first.
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
        if body is not None and not self.grow(ended.key_id, len(body)):
            body = None
        entry = _Entry(ended, body, now + min(RECENT, self._settings.keep), written)
        self._discard(ended.identity)
        self._entries.add(entry)
        self._names.change(ended.key_id, 1)
        if body is not None:
            self._bodies.add(entry)
        if not written:
            self._unwritten.append(entry)
        while len(self._entries) > MOST and (oldest := self._next(self._entries, self._names)) is not None and oldest.written:
            self._discard(oldest.ended.identity)

    def grow(self, key_id: str, size: int) -> bool:
        """Whether there is room for so many bytes more of a key, which are taken; the oldest answers make it."""
        while self.held + size > MOST_BYTES and (entry := self._next(self._bodies, self._bytes)) is not None:
            if entry.ended.key_id not in self._bytes.over and self._bytes.amounts[key_id] + size > MOST_BYTES // SHARES:
                return False  # others must not make room for a key that has more than its share
            if entry.written:
                self._discard(entry.ended.identity)
            else:
                self._strip(entry)
        if self.held + size > MOST_BYTES:
            return False
        self._hold(key_id, size)
        return True

    def shrink(self, key_id: str, size: int) -> None:
        """Gives back what `grow` took."""
        self._hold(key_id, -size)

    def _hold(self, key_id: str, size: int) -> None:
        self.held += size
        if size:
            self._bytes.change(key_id, size)

    def _next(self, line: _Line, large: _Large) -> _Entry | None:
        """Who makes room: the oldest of the key that has most beyond its share and has some here, or else the oldest of all."""
        return next((line.first(key_id) for key_id in large.largest() if line.count(key_id)), line.first())

    def _strip(self, entry: _Entry) -> None:
        """Takes its answer from an entry that has one."""
        self._bodies.pop(entry.ended.identity)
        self._hold(entry.ended.key_id, -len(entry.body or b""))
        entry.body = None

    def forget(self, now: float) -> None:
        """Lets go of what is not needed here any more."""
        while (entry := self._entries.first()) is not None and entry.written and entry.until <= now:
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
        entry = self._entries.pop(identity)
        if entry is None:
            return
        self._names.change(entry.ended.key_id, -1)
        if self._bodies.pop(identity) is not None:
            self._hold(entry.ended.key_id, -len(entry.body or b""))
