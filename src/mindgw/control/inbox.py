"""Where agents' receipts come in: each is checked, booked, kept, and only then acknowledged, so that the agent may forget it.

What this server settles itself, or another one that lives, is only compared: the receipt waits until the row is in the ledger. What was
begun by a server that is gone is billed by its receipt. Every step may be done twice: the ledger has one place for the end of an attempt,
and what is kept knows its number; so nothing is written down here about how far a batch has come.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock, errors
from mindgw.control import recount
from mindgw.control.books import Books
from mindgw.control.complaints import Complaints, Note
from mindgw.control.recount import Counted, Link
from mindgw.core import receipt
from mindgw.core.receipt import Broken
from mindgw.gateway.tag import BadTag, Tag
from mindgw.store import audit, budgets, epochs, faults
from mindgw.store import receipts as stored
from mindgw.store.budgets import LEDGER
from mindgw.store.database import Database
from mindgw.store.entries import TERMINAL, Entry
from mindgw_agent import identity, wire

log = logging.getLogger("mindgw.receipts")

#: Batches of one worker that wait at most. Agents send a few ahead of the server's word.
WAITING = 50
#: Attempts that one event of the audit log names.
EXAMPLES = 20
#: Seconds after which somebody should look why a server does not settle what a receipt is about, and after which nobody will any more
#: when the request does not even run here.
LONG = 60.0

Acknowledge = Callable[[int], None]
Slot = tuple[str, int]


class _Fault(NamedTuple):
    """What is wrong with a batch: as in `core.receipt`, or its signature."""

    name: str
    why: str


class _Opened(msgspec.Struct):
    """A batch that was looked at."""

    batch: wire.Receipts
    links: list[Link]
    #: None: all is well.
    fault: _Fault | None
    #: Attempts that the ledger counts otherwise.
    mismatches: list[dict[str, Any]] = []
    #: Attempts that this server should have settled, and never will.
    orphans: list[Link] = []
    #: All that it asks for is done, but that its agent does not know.
    is_kept: bool = False


class _Box:
    """What one worker sent over one link."""

    def __init__(self, worker_id: str, acknowledge: Acknowledge) -> None:
        self.worker_id = worker_id
        self.acknowledge = acknowledge
        #: Batches that are not acknowledged, oldest first.
        # bounded: by WAITING
        self.batches: deque[wire.Receipts] = deque()
        #: The oldest one, once it was looked at.
        self.opened: _Opened | None = None
        #: The worker's public key, and number and hash of the last receipt that is kept; None: not read yet.
        self.key: bytes | None = None
        self.head: tuple[int, bytes] | None = None
        #: Monotonic second since when the oldest batch waits for rows that servers write themselves, or that was told; None: it does not.
        self.since: float | None = None
        #: Attempts among them that should be settled here -> since when their request does not run any more.
        # bounded: by the size of a batch
        self.idle: dict[Slot, float] = {}
        #: The worker said, and it was noted, that it has nothing from before this link.
        self.is_cleared = False


class Inbox:
    """All workers' receipts. `take` as they come, `work` again and again, one call at a time."""

    def __init__(
        self, database: Database, books: Books, open_tag: Callable[[bytes, str], Tag], public_key: Callable[[str], Awaitable[bytes]]
    ) -> None:
        """`open_tag` raises BadTag; `public_key` gives that of a worker, of one that was removed too, and b"" for an unknown one."""
        self._database = database
        self._books = books
        self._open_tag = open_tag
        self._public_key = public_key
        #: One a worker that is linked.
        # bounded: by the workers
        self._boxes: dict[str, _Box] = {}
        #: Epochs of this process: more than one when others took it for dead.
        # bounded: one for each such mistake
        self._own: set[int] = set()
        #: What the audit log was told of late.
        self._complaints = Complaints()
        #: Whether a request still runs here, or has a row that is yet to be written; set by who knows.
        self.runs: Callable[[str], bool] = lambda request_id: False
        #: Receipts that are kept, and rows that were made of receipts.
        self.booked = 0
        self.recovered = 0
        #: Receipts with a tag that was not ours, attempts that the agent counted otherwise, and those that nobody will settle.
        self.forged = 0
        self.mismatches = 0
        self.orphans = 0

    # -- what links do --------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Batches that are not acknowledged."""
        return sum(len(box.batches) for box in self._boxes.values())

    def take(self, worker_id: str, batch: wire.Receipts, acknowledge: Acknowledge) -> None:
        """Takes in what a link brought. `acknowledge`, equal for all that comes over one link, is called with a number when all up to it is
        in the ledger. What comes again takes the place of what waits. Raises ProtocolError when the agent does not wait for the
        server's word."""
        box = self._boxes.get(worker_id)
        if box is None or box.acknowledge != acknowledge:
            box = self._boxes[worker_id] = _Box(worker_id, acknowledge)
        while box.batches and box.batches[-1].after >= batch.after:
            said = box.batches.pop()
            if said.clear and not batch.clear:
                batch = msgspec.structs.replace(batch, clear=True)
        if len(box.batches) >= WAITING:
            raise wire.ProtocolError(f"more than {WAITING} batches of receipts without an acknowledgement")
        box.batches.append(batch)

    def forget(self, worker_id: str, acknowledge: Acknowledge | None = None) -> None:
        """The worker's link is gone, or the one with this `acknowledge`. What was not acknowledged comes again over the next one."""
        box = self._boxes.get(worker_id)
        if box is not None and acknowledge in (None, box.acknowledge):
            del self._boxes[worker_id]

    # -- the chore ------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Does what can be done by now. Raises what the database raises; whatever is not done then is done the next time."""
        self._own.add(self._books.epoch)
        await self._tell_rest()
        wrong: Exception | None = None
        for box in [*self._boxes.values()]:
            try:
                await self._empty(box)
            except faults.FAULTS as fault:
                if not faults.in_the_data(fault):
                    raise
                fault.add_note(f"receipts of worker {box.worker_id} cannot be booked; they are tried again")
                wrong = wrong or fault  # one worker's trouble is not that of the others
        if wrong is not None:
            raise wrong

    async def _empty(self, box: _Box) -> None:
        """Settles its batches, up to the first one that must wait."""
        while self._boxes.get(box.worker_id) is box and box.batches:
            batch = box.batches[0]
            if not await self._settle(box, batch):
                return
            box.opened = box.since = None
            box.idle.clear()
            if box.batches and box.batches[0] is batch:
                box.batches.popleft()
            if self._boxes.get(box.worker_id) is box:
                box.acknowledge(batch.last)

    async def _settle(self, box: _Box, batch: wire.Receipts) -> bool:
        """False: it must wait."""
        opened = box.opened
        if opened is None or opened.batch is not batch:
            opened = box.opened = await self._open(box, batch)
        if not opened.is_kept:
            if not await self._book(box, opened):
                return False
            await self._keep(box, opened)
        if batch.clear and not box.is_cleared:
            await self._books.cleared(box.worker_id)
            box.is_cleared = True
        return True

    # -- looking --------------------------------------------------------------------------------------------------

    async def _open(self, box: _Box, batch: wire.Receipts) -> _Opened:
        if box.key is None:
            box.key = await self._public_key(box.worker_id)
        if box.head is None:
            box.head = await self._head(box.worker_id)
        found = _check(box.worker_id, box.key, box.head, batch)
        if isinstance(found, _Fault):
            links = [Link(one, b"", b"", self._tag(box.worker_id, one), True) for one in batch.receipts]
            return _Opened(batch, links, found)
        links, prev = [], batch.prev
        for one, hash in found:
            links.append(Link(one, prev, hash, self._tag(box.worker_id, one), one.seq > box.head[0]))
            prev = hash
        return _Opened(batch, links, None)

    async def _head(self, worker_id: str) -> tuple[int, bytes]:
        async with self._database.read() as session:
            return await stored.head(session, worker_id) or (0, b"")

    def _tag(self, worker_id: str, one: wire.Receipt) -> Tag | None:
        try:
            return self._open_tag(one.tag, worker_id)
        except BadTag:
            return None

    # -- booking --------------------------------------------------------------------------------------------------

    async def _book(self, box: _Box, opened: _Opened) -> bool:
        """Bills what no server will bill any more. False while rows are missing that a server is about to write itself."""
        links = [link for link in opened.links if link.tag is not None]
        rows, living = await self._rows(links) if links else ({}, set())
        late: list[Entry] = []
        owed: list[Link] = []
        opened.mismatches = []
        for link in links:
            assert link.tag is not None
            mine = link.tag.epoch in self._own
            if link.slot not in rows and (mine or link.tag.epoch in living):
                owed.append(link)
                continue
            if link.slot not in rows:
                late.append(recount.recovered(box.worker_id, link.tag, link.receipt))
                rows[link.slot] = late[-1]
            row = rows[link.slot]
            if link.is_new and (recount.differs(row, link.receipt) or (not mine and recount.is_absurd(link.receipt, link.tag))):
                opened.mismatches.append(recount.example(row, link))
        if late:
            await self._books.append(late)
            self.recovered += len(late)
            log.info("%d attempts of servers that are gone are booked by receipts of worker %s", len(late), box.worker_id)
        opened.orphans = self._orphans(box, owed)
        if len(owed) > len(opened.orphans):
            self._wait(box, len(owed) - len(opened.orphans))
            return False
        return True

    async def _rows(self, links: Iterable[Link]) -> tuple[dict[Slot, Counted], set[int]]:
        """How the ledger says that attempts of their requests ended, and which of their epochs are those of other servers that live. A row
        that is written in between is found when the receipt is booked."""
        tags = [link.tag for link in links if link.tag is not None]
        others = {tag.epoch for tag in tags} - self._own
        row = LEDGER.c
        columns = (row.request_id, row.attempt, row.kind, row.outcome, row.source, row.prompt_tokens, row.completion_tokens)
        async with self._database.read() as session:
            requests = {tag.request_id for tag in tags}
            query = select(*columns).where(budgets.among(session, row.request_id, requests), row.kind.in_(TERMINAL))
            found = await (await session.connection()).execute(query)
            rows: dict[Slot, Counted] = {(one.request_id, one.attempt): one for one in found}
            return rows, await epochs.living(session, self._books.epoch, others, await epochs.now(session)) if others else set()

    def _orphans(self, box: _Box, owed: Iterable[Link]) -> list[Link]:
        """Those of them that should have been settled here, and never will: their rows could not be written, and were set aside."""
        now = clock.monotonic()
        own = [link for link in owed if link.tag is not None and link.tag.epoch in self._own]
        box.idle = {link.slot: now if self.runs(link.slot[0]) else box.idle.get(link.slot, now) for link in own}
        return [link for link in own if now - box.idle[link.slot] > LONG]

    def _wait(self, box: _Box, owed: int) -> None:
        now = clock.monotonic()
        if box.since is None:
            box.since = now
        elif now - box.since > LONG:
            log.warning("worker %s: %d receipts wait for %d s for requests that are not settled here", box.worker_id, owed, now - box.since)
            box.since = now

    # -- keeping --------------------------------------------------------------------------------------------------

    async def _keep(self, box: _Box, opened: _Opened) -> None:
        """Keeps the receipts, and tells the audit log what was wrong with them."""
        try:
            fork = await self._write(box, opened)
            if fork:
                opened.fault = _Fault("fork", fork)
                await self._write(box, opened)
        except BaseException:
            # they may be there all the same: what is kept is read again
            box.opened = box.head = None
            raise
        opened.is_kept = True
        self.booked += sum(link.is_new and link.tag is not None for link in opened.links)
        self.forged += _forged(opened)
        self.mismatches += len(opened.mismatches)
        self.orphans += len(_new_orphans(opened))
        assert box.head is not None
        if opened.fault is None and opened.links and opened.batch.last > box.head[0]:
            box.head = (opened.batch.last, opened.batch.head)

    async def _write(self, box: _Box, opened: _Opened) -> str:
        """Why the receipts cannot be kept, and then nothing is; "" when all is well."""
        kept = [recount.kept(link) for link in opened.links] if opened.fault is None else []
        notes, now = list(_notes(opened)), clock.monotonic()
        due = self._complaints.due(box.worker_id, notes, now)
        try:
            if kept or due:
                async with self._database.write() as session:
                    await stored.append(session, box.worker_id, kept, opened.batch.signature, clock.utcnow())
                    await _record(session, box.worker_id, due)
        except errors.Conflict as wrong:
            return str(wrong)
        self._complaints.noted(box.worker_id, notes, now)
        for action, detail in due:
            log.error("receipts of worker %s up to %d: %s: %s", box.worker_id, opened.batch.last, action, detail.get("why", detail))
        return ""

    async def _tell_rest(self) -> None:
        """Tells the audit log what was left out when there was too much to tell."""
        now = clock.monotonic()
        rest = self._complaints.rest(now)
        if rest:
            async with self._database.write() as session:
                for worker_id, note in rest:
                    await _record(session, worker_id, [note])
        self._complaints.tidy(now)


async def _record(session: AsyncSession, worker_id: str, notes: Iterable[Note]) -> None:
    for action, detail in notes:
        await audit.record(session, f"agent:{worker_id}", action, worker_id, **detail)


def _check(worker_id: str, key: bytes, head: tuple[int, bytes], batch: wire.Receipts) -> list[tuple[wire.Receipt, bytes]] | _Fault:
    """All receipts of the batch with their hashes. `head`: number and hash of the last one that is kept."""
    if not identity.verify(key, batch.signature, wire.transcript_receipts(worker_id, batch.last, batch.head)):
        return _Fault("signature", "the signature is not the worker's")
    found = receipt.check(batch, worker_id, *head)
    missing = isinstance(found, Broken) and found.fault == "missing"
    if missing and batch.receipts:
        log.warning("worker %s: receipts between %d and %d are unknown; its word is taken for them", worker_id, head[0], batch.after)
    # what came before is compared with what is kept when it is kept again
    if missing or (isinstance(found, list) and batch.after < head[0]):
        found = receipt.check(batch, worker_id, batch.after, batch.prev)
    return _Fault(found.fault, found.why) if isinstance(found, Broken) else found


def _forged(opened: _Opened) -> int:
    return sum(link.tag is None and link.is_new for link in opened.links)


def _new_orphans(opened: _Opened) -> list[Link]:
    return [link for link in opened.orphans if link.is_new]


def _notes(opened: _Opened) -> Iterable[Note]:
    """What the audit log is told of a batch: actions and their details."""
    batch, fault = opened.batch, opened.fault
    about = {"after": batch.after, "last": batch.last}
    if fault is not None:
        yield "receipt.fork" if fault.name == "fork" else "receipt.broken", {**about, "fault": fault.name, "why": fault.why}
    elif batch.gap and any(link.is_new for link in opened.links):
        yield "receipt.gap", {**about, "why": batch.gap}
    if forged := _forged(opened):
        yield "receipt.forged", {**about, "count": forged}
    if opened.mismatches:
        yield "metering.mismatch", {"count": len(opened.mismatches), "examples": opened.mismatches[:EXAMPLES]}
    if orphans := _new_orphans(opened):
        slots = [{"request_id": request_id, "attempt": attempt} for request_id, attempt in (link.slot for link in orphans[:EXAMPLES])]
        yield "receipt.orphan", {**about, "count": len(orphans), "examples": slots}
