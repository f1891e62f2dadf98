"""Receipts on disk, until the server has them. One file of the state directory, see `records` for what stands in it.

A receipt is one write into the page cache, so it outlives this process at once. What is sent to the server is on the disk for good first:
not even a power cut makes this agent use a number twice. The waiting for that is `bookkeeping`'s, in threads; everything else here is
synchronous and belongs to the event loop.

Receipts are never dropped. What cannot be written is kept in memory and written as soon as the disk takes it; meanwhile `trouble` tells
why nothing new may be begun. A file that is damaged is put aside, and what can still be read goes on in a new chain.
"""

import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from mindgw_agent import clock, private_files, records, wire
from mindgw_agent.records import Acknowledged, Base, Entry
from mindgw_agent.wire import Receipt, Receipts

log = logging.getLogger("mindgw.agent")

#: Bytes of the file beyond which nothing new is begun.
LIMIT: Final = 64 * 1024 * 1024
#: Bytes of acknowledged receipts for which the rest is worth being written anew.
WASTE: Final = 256 * 1024
#: Damaged files that are kept for people to look at.
KEPT: Final = 9
#: A server that knows of a number beyond this one does not know what it says.
ABSURD: Final = 2**52


def nothing() -> None:
    """Nobody listens."""


class Copy(msgspec.Struct, frozen=True):
    """A new file in the making: its beginning, and which part of the old one follows."""

    base: Base
    start: int
    stop: int
    #: The old file, for the thread alone.
    source: int
    path: Path
    chain: int


class Outbox:
    """One agent's receipts. Call `open` first; whatever a disk does is told by `trouble`, nothing here raises OSError."""

    def __init__(self, path: Path, agent_id: str, *, fresh: bool, now: Callable[[], int] = clock.unix_ms, limit: int = LIMIT) -> None:
        self._path = path
        self._agent_id = agent_id
        #: The agent never was on a link: that there is no file is as it should be.
        self._fresh = fresh
        #: Unix milliseconds.
        self._now = now
        self._limit = limit
        #: The open file; None while it cannot be opened.
        self._file: int | None = None
        #: Bytes of it that are good: the next record begins there.
        self._end = 0
        #: Something may stand behind that, left by a write that failed.
        self._ragged = False
        #: Where the chain of the file begins.
        self._base = self._first()
        #: Where the record of each receipt begins that was not acknowledged; the first one is number acked + 1.
        self._starts: deque[int] = deque()  # bounded: by the limit of the file
        #: Newest receipt that was acknowledged, and its hash.
        self.acked, self._acked_hash = 0, self._base.hash
        #: Newest receipt of all, and its hash.
        self.last, self.head = 0, self._base.hash
        #: Newest receipt that is on the disk for good.
        self.synced = 0
        #: Receipts that the disk did not take, without numbers; only of requests that ran when it began to refuse.
        self._owed: deque[Receipt] = deque()  # bounded: by the slots
        #: Why the disk cannot be used; "" when it can.
        self._fault = ""
        #: A sync failed, and nobody knows what is on the disk now: the file must be written anew.
        self._is_doubtful = False
        #: Grows when the chain begins anew: numbers and hashes from before mean nothing then.
        self.chain = 0
        #: Called when there is something to write, to sync or to repair.
        self.on_work: Callable[[], None] = nothing
        #: Called when there is something to send, or less of it.
        self.on_news: Callable[[], None] = nothing

    @property
    def waiting(self) -> int:
        """Receipts that were not acknowledged."""
        return len(self._starts) + len(self._owed)

    @property
    def is_settled(self) -> bool:
        """Whatever there is has a number: the file could be read, and nothing waits to be written."""
        return self._file is not None and not self._owed

    @property
    def trouble(self) -> str:
        """Why no new request may be begun: its receipt could not be kept. "" when all is well."""
        if self._fault:
            return self._fault
        if self._end >= self._limit:
            return f"the outbox is full: {self._limit} bytes of receipts wait for the server"
        return ""

    @property
    def needs_repair(self) -> bool:
        return bool(self._fault)

    @property
    def needs_sync(self) -> bool:
        return self._file is not None and self.synced < self.last

    @property
    def needs_copy(self) -> bool:
        """Whether so much of the file was acknowledged that the rest is better written anew; after a failed sync it must be."""
        return self._file is not None and (self._is_doubtful or self._dead >= max(WASTE, self._end // 4))

    @property
    def _dead(self) -> int:
        """Bytes of what was acknowledged."""
        return self._starts[0] if self._starts else self._end

    # -- what the exchange does ------------------------------------------------------------------------------------

    def append(self, receipt: Receipt) -> None:
        """Number the receipt and write it down. It outlives the process when this returns, unless there is `trouble`."""
        if self._owed or not self._append(receipt):
            self._owed.append(receipt)
        self.on_work()

    def _append(self, receipt: Receipt) -> bool:
        numbered = msgspec.structs.replace(receipt, seq=self.last + 1)
        hash = wire.chained(self.head, numbered)
        start = self._end
        if not self._write(records.pack(Entry(numbered, hash))):
            return False
        self._starts.append(start)
        self.last, self.head = numbered.seq, hash
        return True

    def _write(self, data: bytes) -> bool:
        """One write at the end of the file; a part of it that got there is not there."""
        if self._file is None:
            return False
        try:
            if self._ragged:
                os.ftruncate(self._file, self._end)
                self._ragged = False
            if os.pwrite(self._file, data, self._end) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._ragged = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
                self._ragged = False
            self._failed(f"receipts cannot be written to {self._path}: {error.strerror}")
            return False
        self._end += len(data)
        return True

    def _failed(self, why: str) -> None:
        self._fault = why
        self.on_work()

    # -- what the link does ----------------------------------------------------------------------------------------

    def batch(self, after: int, prev: bytes) -> Receipts | None:
        """The next receipts behind number `after`, whose hash is `prev`, as many as fit; None when there is none to be sent.

        `after` is `acked` or the `last` of an earlier batch, and of this `chain`.
        """
        most = min(self.synced - after, wire.MAX_BATCH)
        if most <= 0:
            return None
        receipts: list[Receipt] = []
        head, room = prev, wire.MAX_RECEIPTS
        for entry in self._entries(after - self.acked, most):
            room -= wire.size_of(entry.receipt)
            if room < 0:
                break
            receipts.append(entry.receipt)
            head = entry.hash
        return msgspec.structs.replace(self.blank(after, prev), receipts=receipts, head=head) if receipts else None

    def blank(self, after: int, prev: bytes) -> Receipts:
        """A batch without receipts."""
        return Receipts(after=after, prev=prev, head=prev, gap=self._base.gap if self._base.gap_after == after else "")

    def acknowledged(self, seq: int) -> None:
        """The server has all up to this one. When it has more than there ever was here, the chain begins anew behind that."""
        if self._file is None:
            return  # it will be said again
        if seq > ABSURD:
            log.warning("the server speaks of receipt %d; the newest one is %d", seq, self.last)
        elif seq > self.last:
            self._begin_anew(seq, "the server knows of receipts that are not on this disk")
        elif seq > self.acked and (there := self._entries(seq - self.acked - 1, 1)):
            for _ in range(seq - self.acked):
                self._starts.popleft()
            self.acked, self._acked_hash = seq, there[0].hash
            self.synced = max(self.synced, seq)
            self._write(records.pack(Acknowledged(seq)))
        self.on_work()
        self.on_news()

    @property
    def acked_hash(self) -> bytes:
        """The hash of `acked`: where a link begins to send."""
        return self._acked_hash

    def _entries(self, first: int, count: int) -> list[Entry]:
        """That many of those that wait; none, and `trouble`, when the disk does not give them."""
        if self._file is None or not count:
            return []
        start = self._starts[first]
        stop = self._starts[first + count] if first + count < len(self._starts) else self._end
        found: list[Entry] = []
        why, at = "they are not as they were written", 0
        try:
            data = os.pread(self._file, stop - start, start)
        except OSError as error:
            why, data = str(error.strerror), b""
        while len(found) < count and (there := records.unpack(data, at)) is not None:
            if isinstance(there[0], Entry):
                found.append(there[0])
            at = there[1]
        if len(found) == count:
            return found
        self._let_go()
        self._failed(f"receipts cannot be read from {self._path}: {why}")
        return []

    # -- the file --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read what an earlier process left, or begin."""
        try:
            data = private_files.read(self._path)
        except FileNotFoundError:
            self._begin_anew(self._now(), "" if self._fresh else "the outbox was missing", ())
            return
        except OSError as error:
            self._failed(f"receipts cannot be read from {self._path}: {error.strerror}")
            return
        contents = records.read(data, self._agent_id)
        seq, hash = contents.last
        if contents.base is None or contents.damage:
            kept = [entry.receipt for entry in contents.entries if entry.receipt.seq > contents.acked] + contents.found
            self._recover(contents.damage, kept, max(seq, self.last) + len(data))
            return
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._failed(f"receipts cannot be written to {self._path}: {error.strerror}")
            return
        done = contents.acked - contents.base.seq
        acked_hash = contents.entries[done - 1].hash if done else contents.base.hash
        self._install(file, contents.base, contents.starts[done:], contents.end)
        self._ragged = contents.end < len(data)
        self.acked, self._acked_hash = contents.acked, acked_hash
        self.last, self.head = seq, hash
        self.synced = self.acked

    def _recover(self, damage: str, receipts: Sequence[Receipt], after: int) -> None:
        """Put a damaged file aside and go on with what could be read of it."""
        aside = next(path for number in range(KEPT) if not (path := self._aside(number)).exists() or number == KEPT - 1)
        try:
            aside.unlink(missing_ok=True)
            os.link(self._path, aside)
        except OSError as error:
            self._failed(f"the outbox is damaged ({damage}) and cannot be put aside as {aside}: {error.strerror}")
            return
        log.error(
            "the outbox %s is damaged: %s; it is kept as %s, %d receipts go on in a new chain", self._path, damage, aside, len(receipts)
        )
        self._begin_anew(max(after, self._now()), f"the outbox was damaged: {damage}", receipts)

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.damaged" + (f".{number + 1}" if number else ""))

    def _begin_anew(self, after: int, gap: str, receipts: Sequence[Receipt] | None = None) -> None:
        """A new file with a new chain behind that number, of these receipts or of those that wait here; without a gap the first one."""
        if receipts is None:
            receipts = [entry.receipt for entry in self._entries(0, len(self._starts))]
            if len(receipts) < len(self._starts):
                return
        base = Base(self._agent_id, after, wire.anew(self._agent_id, after, gap), after, gap) if gap else self._first()
        data, starts, last, head = records.compose(base, receipts)
        try:
            private_files.write(self._path, data)
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._failed(f"receipts cannot be written to {self._path}: {error.strerror}")
            return
        self._install(file, base, starts, len(data))
        self.acked, self._acked_hash = base.seq, base.hash
        self.synced, self.last, self.head = last, last, head

    def _first(self) -> Base:
        return Base(self._agent_id, 0, wire.genesis(self._agent_id))

    def _install(self, file: int, base: Base, starts: Iterable[int], end: int) -> None:
        """From now on this is the file."""
        self._let_go()
        self._file = file
        self._base = base
        self._starts = deque(starts)  # bounded: by the limit of the file
        self._end = end
        self._ragged = self._is_doubtful = self._fresh = False
        self.chain += 1
        self.on_work()
        self.on_news()

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def repair(self) -> None:
        """Try again what the disk refused."""
        if self._file is None:
            self.open()
        while self._owed and self._append(self._owed[0]):
            self._owed.popleft()
        # a word that changes nothing tells whether the disk takes anything
        if self._file is not None and not self._owed and self._write(records.pack(Acknowledged(self.acked))):
            self._fault = ""

    def close(self) -> None:
        """On the disk when this returns, if the disk can be used. Blocks."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
        self._let_go()

    # -- what waits for the disk -----------------------------------------------------------------------------------

    def handle(self) -> int:
        """The file once more, for a thread, which closes it. Raises OSError."""
        assert self._file is not None
        return os.dup(self._file)

    def sync_done(self, chain: int, last: int, error: OSError | None) -> None:
        """The file was synced when `last` was the newest receipt, or it was not."""
        if chain != self.chain:
            return
        if error is not None:
            self._is_doubtful = True
            self._failed(f"receipts cannot be written to {self._path}: {error.strerror}")
            return
        self.synced = max(self.synced, last)
        self.on_news()

    def copy_begin(self) -> Copy:
        """What the new file is to hold. Raises OSError."""
        gap_after, gap = (self._base.gap_after, self._base.gap) if self._base.gap_after == self.acked else (0, "")
        base = Base(self._agent_id, self.acked, self._acked_hash, gap_after, gap)
        return Copy(base, self._dead, self._end, self.handle(), self._path.with_name(f".{self._path.name}.new"), self.chain)

    def copy_done(self, copy: Copy, file: int, size: int) -> None:
        """Take the new file, `size` bytes so far, in place of the old one; its directory is still to be synced. Raises OSError."""
        if copy.chain != self.chain or self._file is None:
            os.close(file)
            return
        late = os.pread(self._file, self._end - copy.stop, copy.stop)
        try:
            if os.pwrite(file, late, size) != len(late):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            copy.path.replace(self._path)
        except OSError:
            os.close(file)
            copy.path.unlink(missing_ok=True)
            raise
        self._let_go()
        self._file = file
        self._base = copy.base
        shift = copy.stop - size
        self._starts = deque(start - shift for start in self._starts)  # bounded: by the limit of the file
        self._end -= shift
        self._ragged = self._is_doubtful = False
