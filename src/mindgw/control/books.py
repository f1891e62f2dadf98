"""This process's books: the chain that it writes into the ledger, what it has on loan of budgets, and what agents' receipts bring.

One run of one server process is an *epoch*. What a dead one had on loan stays reserved until its workers have nothing more to tell.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.quota import Budget
from mindgw.gateway.quota import Policy
from mindgw.store import epochs, ledger, quotas
from mindgw.store.database import Database
from mindgw.store.ledger import Entry, Writer
from mindgw.store.quotas import Lent, Want
from mindgw.store.tables import Quota
from mindgw_agent import private_files

log = logging.getLogger("mindgw.books")

T = TypeVar("T")
Job = Callable[[AsyncSession], Awaitable[T]]


class Books:
    """Open from `begin` to `end`; only then may anything else be asked of it."""

    def __init__(self, database: Database, instance: str, key: bytes) -> None:
        """`instance` names the data directory, `key` is that of the ledger's chain."""
        self._database = database
        self._instance = instance
        self._key = key
        #: Workers that had a link since this process began.
        # bounded: by the workers
        self._workers: set[str] = set()
        #: One batch at a time.
        self._turn = asyncio.Lock()
        #: The end of this epoch's chain; None before `begin`.
        self._writer: Writer | None = None
        #: Told of the new epoch whenever there is one; what was on loan before is lost then.
        self.on_epoch: Callable[[int], None] = lambda epoch: None
        #: Told of what stands in the ledger now.
        self.on_written: Callable[[Sequence[Entry]], None] = lambda entries: None

    @property
    def writer(self) -> Writer:
        assert self._writer is not None, "the books are closed"
        return self._writer

    @property
    def epoch(self) -> int:
        """This run; 0 before `begin`."""
        return self._writer.epoch if self._writer is not None else 0

    async def begin(self) -> None:
        """Opens an epoch."""
        begun = await self._write(self._begin)
        self._writer = Writer(begun.id, self._key, 0, begun.genesis)
        self.on_epoch(begun.id)

    async def _begin(self, session: AsyncSession) -> epochs.Begun:
        return await epochs.begin(session, self._instance, await epochs.now(session))

    async def end(self) -> None:
        """Gives back all loans; everything was written before."""
        await self._write(self._end)

    async def _end(self, session: AsyncSession) -> None:
        await epochs.end(session, self.epoch, await epochs.now(session))

    async def _write(self, job: Job[T]) -> T:
        async with self._database.write() as session:
            return await job(session)

    # -- the ledger -----------------------------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry]) -> None:
        """Writes a batch, all or nothing; raises what the database raises, and may be called with the same entries again."""
        async with self._turn:
            writer = self.writer
            try:
                done = await self._write(lambda session: ledger.commit(session, writer, entries))
            except ledger.Raced:  # another process wrote the same receipt just now
                done = await self._write(lambda session: ledger.commit(session, writer, entries))
            writer.advance(done)
        self.on_written(entries)

    # -- loans ----------------------------------------------------------------------------------------------------

    async def borrow(self, wants: Sequence[Want]) -> Sequence[Lent]:
        """See `gateway.loans.Bank`."""
        epoch = self.epoch
        try:
            lent = await self._write(lambda session: quotas.borrow(session, epoch, wants))
        except epochs.Over:
            await self._renew(epoch)
            return await self.borrow(wants)
        # what was lent to a run that is over is settled with it: to spend it in this one would be to spend it twice
        return lent if epoch == self.epoch else await self.borrow(wants)

    async def give_back(self, number: int, amounts: Mapping[Budget, int]) -> None:
        """See `gateway.loans.Bank`."""
        epoch = self.epoch
        with contextlib.suppress(epochs.Repeated):
            await self._write(lambda session: quotas.give_back(session, epoch, number, amounts))

    async def policies(self) -> list[Policy]:
        """All limits, as the database has them now."""
        async with self._database.read() as session:
            return [_policy(row) for row in await quotas.load(session)]

    # -- life and death -------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Says that this process lives; to be called a few times a minute."""
        epoch = self.epoch
        try:
            await self._write(lambda session: self._beat(session, epoch))
        except epochs.Over:
            await self._renew(epoch)

    async def _beat(self, session: AsyncSession, epoch: int) -> None:
        await epochs.beat(session, epoch, await epochs.now(session))

    async def _renew(self, over: int) -> None:
        """Begins another epoch after that one."""
        async with self._turn:
            if self.epoch != over:
                return  # somebody else was told at the same moment
            log.error("this server was silent for so long that others took it for dead: it begins a new epoch after %d", over)
            await self.begin()
            for worker_id in self._workers:
                await self.linked(worker_id)

    async def linked(self, worker_id: str) -> None:
        """A worker has a link: it may have receipts of this epoch from now on."""
        await self._write(lambda session: epochs.linked(session, self.epoch, worker_id))
        self._workers.add(worker_id)

    async def cleared(self, worker_id: str) -> None:
        """A worker has nothing more to tell of older epochs."""
        await self._write(lambda session: self._cleared(session, worker_id))

    async def _cleared(self, session: AsyncSession, worker_id: str) -> None:
        now = await epochs.now(session)
        await epochs.cleared(session, worker_id, self.epoch, now)
        for epoch in await epochs.recover(session, self.epoch, now):
            log.info("epoch %d is settled: its workers have told everything", epoch)

    async def recover(self) -> None:
        """Settles dead epochs: those without open questions now, those of a day ago by charging what they had on loan."""
        await self._write(self._recover)
        async with self._database.read() as session:
            entries = await epochs.expire(session, self.epoch, await epochs.now(session))
        if entries:
            log.warning("%d leases of dead servers are charged: nobody told within a day what was used of them", len(entries))
            await self.append(entries)

    async def _recover(self, session: AsyncSession) -> None:
        await epochs.recover(session, self.epoch, await epochs.now(session))


def _policy(row: Quota) -> Policy:
    return Policy(row.scope, row.unit, row.period, row.lim, row.on_exceed, (row.created_at.isoformat(), row.version))


def instance(directory: Path) -> str:
    """The name of a data directory, made when it has none: of two servers on one Postgres each needs its own."""
    file = directory / "instance"
    if not file.exists():
        private_files.create(file, os.urandom(16).hex().encode())
    return private_files.read(file).decode()
