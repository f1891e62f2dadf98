"""A small world of receipts: a database, runs of a server with its books and its inbox, and agents with real outboxes. Nothing is faked but
the links between them, and faults of the database where a test wants some."""

from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from msgspec.structs import replace
from sqlalchemy import text

from mindgw.control.books import Books
from mindgw.control.inbox import Inbox
from mindgw.core.quota import Budget, Draw
from mindgw.gateway.tag import Seal, Tag
from mindgw.store import fleet, quotas, verify
from mindgw.store.entries import Entry
from mindgw.store.quotas import Want
from mindgw.store.tables import Quota
from mindgw_agent import identity, wire
from mindgw_agent.outbox import Outbox
from mindgw_agent.wire import Receipt
from tests.store.audited import entries

CHAIN, SEALING = b"c" * 32, b"s" * 32
TODAY, MONTH = "2026-11-21", "2026-11"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
STARTED = round(NOON.timestamp() * 1000)
#: What the tests' requests fall under.
TOKENS, USD = Budget("key:k", "tokens", MONTH), Budget("org:o", "usd", "total")
#: A dollar for a million tokens of the prompt, three of the answer.
PRICE = (1_000_000, 3_000_000)


def tag(request_id, epoch, **facts):
    base = Tag(
        request_id, 1, "k", "u", "", "o", "m:1", "/v1/chat/completions", True, TODAY, "p1", PRICE, 100, epoch, STARTED, 20, (TOKENS, USD)
    )  # fmt: skip
    return replace(base, **facts)


class Flaky:
    """A database that fails in one write from now on: 1 is the next. `late`: what it wrote is there all the same."""

    def __init__(self, database):
        self.database = database
        self.writes, self.fails, self.late = 0, 0, False
        #: What it raises; a write that is away is no fault of what was given to it.
        self.error = OSError("away")

    @asynccontextmanager
    async def read(self):
        async with self.database.read() as session:
            yield session

    @asynccontextmanager
    async def write(self):
        self.writes += 1
        if self.writes == self.fails and not self.late:
            raise self.error
        async with self.database.write() as session:
            yield session
        if self.writes == self.fails:
            raise self.error


class Server:
    """One run of a server process."""

    def __init__(self, site, instance):
        self.site = site
        self.database = Flaky(site.database)
        self.books = Books(self.database, instance, CHAIN)
        self.seal = Seal(SEALING)
        self.inbox = Inbox(self.database, self.books, self.seal.open, site.public_key)

    async def begin(self):
        await self.books.begin()
        self.seal.restart(self.books.epoch)
        return self

    async def borrow(self, *budgets, want=100):
        """Loans of budgets, as for a request that is about to be sent."""
        await self.books.borrow([Want(budget, "month" if budget == TOKENS else "total", 1, want) for budget in sorted(budgets)])

    async def settle(self, request_id, prompt=10, completion=5, **facts):
        """The row that the server itself writes, with what it draws."""
        base = {
            "key_id": "k", "user_id": "u", "org_id": "o", "model": "m:1", "endpoint": "/v1/chat/completions", "status": 200,
            "outcome": "done", "cost": prompt + 3 * completion, "day": TODAY, "started_at": NOON, "worker_id": "w", "source": "engine",
        }  # fmt: skip
        draws = (Draw(TOKENS, prompt + completion), Draw(USD, prompt + 3 * completion)) if facts.pop("draws", False) else ()
        await self.books.append(
            [Entry(request_id=request_id, prompt_tokens=prompt, completion_tokens=completion, draws=draws, **(base | facts))]
        )


class Agent:
    """An agent's outbox and key; what it sends goes through the wire's own forms."""

    def __init__(self, worker_id, key, path):
        self.id = worker_id
        self.key = key
        self.path = path
        self.outbox = Outbox(path, worker_id, fresh=True, now=lambda: STARTED)
        self.outbox.open()
        #: What the server has acknowledged.
        self.received = []

    def acknowledge(self, seq):
        self.received.append(seq)
        self.outbox.acknowledged(seq)

    def wrote(self, *tags, **facts):
        """Receipts of answers that were carried: of 10 and 5 tokens in 50 bytes."""
        base = {"outcome": "done", "prompt": 10, "completion": 5, "source": "engine", "events": 5, "bytes": 50, "at": STARTED + 900}
        for each in tags:
            self.outbox.append(Receipt(tag=each, **(base | facts)))
        self.outbox.sync_done(self.outbox.chain, self.outbox.last, None)

    def signed(self, batch, **changes):
        """As it comes out of the link."""
        signature = identity.sign(self.key, wire.transcript_receipts(self.id, batch.last, batch.head))
        frame = wire.frame(replace(replace(batch, signature=signature), **changes))
        return wire.parse(wire.Receipts, frame.payload)

    def batches(self, size=wire.MAX_BATCH):
        """All that waits; the last batch says that nothing from before is left."""
        outbox, made = self.outbox, []
        after, prev = outbox.acked, outbox.acked_hash
        while (batch := outbox.batch(after, prev)) is not None:
            if len(batch.receipts) > size:
                batch = _cut(batch, size)
            made.append(batch)
            after, prev = batch.last, batch.head
        made = made or [outbox.blank(after, prev)]
        made[-1] = replace(made[-1], clear=True)
        return [self.signed(batch) for batch in made]

    def send(self, server, *batches, size=wire.MAX_BATCH):
        for batch in batches or self.batches(size):
            server.inbox.take(self.id, batch, self.acknowledge)


def _cut(batch, size):
    head, receipts = batch.prev, batch.receipts[:size]
    for one in receipts:
        head = wire.chained(head, one)
    return replace(batch, receipts=receipts, head=head)


class Site:
    """A database with limits for a key's tokens and an organisation's dollars."""

    def __init__(self, database, path):
        self.database = database
        self.path = path

    async def public_key(self, worker_id):
        async with self.database.read() as session:
            worker = await fleet.worker(session, worker_id)
        return worker.public_key if worker is not None else b""

    async def limits(self, tokens=10_000, usd=10_000):
        async with self.database.write() as session:
            for budget, period, lim in ((TOKENS, "month", tokens), (USD, "total", usd)):
                await quotas.put(session, Quota(scope=budget.scope, unit=budget.unit, period=period, lim=lim), TODAY)

    async def server(self, instance="here"):
        """The next run of the server with that directory."""
        return await Server(self, instance).begin()

    async def agent(self, name="box"):
        key = identity.new_key()
        async with self.database.write() as session:
            worker = await fleet.add_worker(session, name, identity.public_half(key))
        return Agent(worker.id, key, self.path / f"outbox-{name}")

    async def sql(self, statement, **values):
        async with self.database.read() as session:
            return [tuple(row) for row in await (await session.connection()).execute(text(statement), values)]

    async def rows(self):
        """request, attempt, kind, prompt and completion, as they were written."""
        return await self.sql("SELECT request_id, attempt, kind, prompt_tokens, completion_tokens FROM ledger ORDER BY id")

    async def budget(self, budget=TOKENS):
        """used, reserved."""
        where = 'WHERE scope = :scope AND unit = :unit AND "window" = :window'
        return (await self.sql(f"SELECT used, reserved FROM budgets {where}", **budget._asdict()))[0]

    async def kept(self):
        """Number, request and attempt of the receipts that are kept."""
        return await self.sql("SELECT seq, request_id, attempt FROM receipts ORDER BY worker_id, seq")

    async def told(self):
        """Action and details of the audit log, oldest first."""
        async with self.database.read() as session:
            return [(row.action, row.detail) for row in await entries(session)]

    async def broken(self):
        async with self.database.read() as session:
            return [found async for found in verify.broken(session, CHAIN, Counter())]
