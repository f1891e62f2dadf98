"""The accounts of a running server put together: limits and their loans, the meter, the ledger's books, the agents' receipts."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from mindgw import metrics
from mindgw.clock import monotonic, utcnow
from mindgw.config import Config
from mindgw.control import books
from mindgw.control.books import Books
from mindgw.control.inbox import Inbox
from mindgw.control.secrets import Secrets
from mindgw.core.price import Price, Prices
from mindgw.gateway.accounts import Accounts
from mindgw.gateway.admission import Rate
from mindgw.gateway.meter import Meter
from mindgw.gateway.quota import Quotas
from mindgw.gateway.rates import Rates
from mindgw.gateway.tag import Seal
from mindgw.server.chores import Chore, all_but_the_bad
from mindgw.store import fleet, rates
from mindgw.store.database import Database
from mindgw.store.ledger import Entry

log = logging.getLogger("mindgw.server")

#: Seconds between commits, between looks at the limits, at what others need more, at servers that died, and between signs of life.
COMMIT, LOOK, SHARE, RECOVER, BEAT = 0.2, 2.0, 5.0, 60.0, 15.0


class Accounting:
    """Open from `begin` to `end`."""

    def __init__(self, config: Config, secrets: Secrets, database: Database, counters: metrics.Counters) -> None:
        self._database = database
        self._reading = asyncio.Lock()
        self.books = Books(database, books.instance(config.directory), secrets.chain_key)
        self.books.on_epoch = self._begun
        self.books.on_written = self._written
        #: Told of rows that are in the ledger.
        self.on_written: Callable[[Sequence[Entry]], None] = lambda entries: None
        self.seal = Seal(secrets.sealing)
        prices = Prices((pattern, Price(*price)) for pattern, price in config.prices.items())
        self.quotas = Quotas(self.books, prices, config.quotas.output, counters)
        self.rates = Rates(counters, config.limits.failures_address)
        self.meter = Meter(all_but_the_bad(self.books.append), counters)
        self.inbox = Inbox(database, self.books, self.seal.open, self._public_key)

    @property
    def accounts(self) -> Accounts:
        """What the request path needs of it."""
        return Accounts(self.meter, self.quotas, self.seal, self.rates)

    def receipts(self) -> dict[str, int]:
        """What the metrics tell of receipts, as `collector.RECEIPTS` has it."""
        inbox = self.inbox
        return {
            "booked": inbox.booked, "recovered": inbox.recovered, "forged": inbox.forged, "mismatches": inbox.mismatches,
            "orphans": inbox.orphans,
        }  # fmt: skip

    async def begin(self) -> None:
        """Opens the books of this run and reads the limits."""
        await self.books.begin()
        await self.books.recover()
        await self.refresh()

    async def refresh(self) -> None:
        """The limits as the database has them now. One at a time: what was read first must not be believed last."""
        async with self._reading:
            self.quotas.adopt(await self.books.policies())
            async with self._database.read() as session:
                found = await rates.load(session)
            self.rates.adopt({row.scope: Rate(row.rpm or 0, row.tpm or 0, row.concurrency or 0) for row in found}, monotonic())

    def writing(self) -> list[Chore]:
        """What must be done once more at the end."""
        return [Chore("writing usage", COMMIT, self._commit), Chore("taking receipts", COMMIT, self.inbox.work)]

    def others(self) -> list[Chore]:
        """What must not."""
        return [
            Chore("reading limits", LOOK, self.refresh),
            Chore("giving back loans", SHARE, self._share),
            Chore("settling servers that died", RECOVER, self.books.recover),
            Chore("a sign of life", BEAT, self.books.beat),
        ]

    async def end(self) -> None:
        """Gives back what is on loan, once everything is written. What could not be written stays reserved until agents have told of it."""
        if self.meter.unwritten:
            log.critical("the server ends with %d ledger rows that the database did not take", self.meter.unwritten)
            return
        await self.books.end()

    async def _commit(self) -> None:
        """Writes what was used, then gives back what others wait for."""
        await self.meter.flush()
        await self.quotas.desk.return_spare(monotonic(), _today())

    async def _share(self) -> None:
        await self.quotas.desk.return_all(monotonic(), _today())

    def _begun(self, epoch: int) -> None:
        self.seal.restart(epoch)
        self.quotas.desk.start_over()

    def _written(self, entries: Sequence[Entry]) -> None:
        own = (0, self.books.epoch)
        self.quotas.desk.leases.written([draw for entry in entries if entry.lease_epoch in own for draw in entry.draws])
        self.on_written(entries)

    async def _public_key(self, worker_id: str) -> bytes:
        async with self._database.read() as session:
            record = await fleet.worker(session, worker_id)
        return record.public_key if record is not None else b""


def _today() -> str:
    return utcnow().date().isoformat()
