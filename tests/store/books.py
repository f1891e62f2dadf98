"""A small world of the ledger for its tests: one process's run, entries, and what verification says."""

from collections import Counter
from datetime import UTC, datetime

from sqlalchemy import text

from mindgw.core.quota import Budget, Draw
from mindgw.store import epochs, ledger, quotas, verify
from mindgw.store.ledger import Entry
from mindgw.store.tables import Quota

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
TODAY, MONTH = "2026-11-21", "2026-11"
KEY = b"k" * 32
#: A budget that most tests have a limit for.
K = Budget("key:k", "tokens", MONTH)
O = Budget("org:o", "usd", "total")  # noqa: E741 - the organisation called o
PERIODS = {10: "day", 7: "month", 5: "total"}
#: The triggers that keep the ledger as it is, to be dropped by who wants to tamper with it.
TRIGGERS = [(table, verb) for table in ("ledger", "ledger_commits") for verb in ("update", "delete")]


def entry(request_id, *, draws=(), lent=None, **facts):
    """`draws`: budgets that 15 tokens (or 3 micro-dollars) leave the lease of, or pairs of a budget and how much."""
    base = {
        "key_id": "k", "user_id": "u", "org_id": "o", "model": "m:1", "endpoint": "/v1/chat/completions", "status": 200, "outcome": "done",
        "prompt_tokens": 10, "completion_tokens": 5, "cost": 3, "day": TODAY, "started_at": NOON, "worker_id": "w", "source": "engine",
    }  # fmt: skip
    taken = tuple(Draw(each, {"tokens": 15, "usd": 3}[each.unit]) if isinstance(each, Budget) else Draw(*each) for each in draws)
    return Entry(request_id=request_id, draws=taken, **(base | facts))


class Books:
    """One process: its epoch and the end of its chain."""

    def __init__(self, database, instance="here"):
        self.database = database
        self.instance = instance
        self.writer = None
        self.returns = 0

    async def begin(self, now=NOON):
        async with self.database.write() as session:
            begun = await epochs.begin(session, self.instance, now)
        self.writer = ledger.Writer(begun.id, KEY, 0, begun.genesis)
        return self

    @property
    def epoch(self):
        return self.writer.epoch

    async def commit(self, *entries, lost=False):
        """`lost`: it is written, but the answer does not arrive."""
        async with self.database.write() as session:
            done = await ledger.commit(session, self.writer, entries)
        if not lost:
            self.writer.advance(done)
        return done

    async def limit(self, budget, lim, mode="block", day=TODAY, **more):
        row = Quota(scope=budget.scope, unit=budget.unit, period=PERIODS[len(budget.window)], lim=lim, on_exceed=mode)
        async with self.database.write() as session:
            return await quotas.put(session, row, day, **more)

    async def borrow(self, *budgets, least=1, want=100):
        wants = [quotas.Want(budget, PERIODS[len(budget.window)], least, want) for budget in budgets]
        async with self.database.write() as session:
            return await quotas.borrow(session, self.epoch, wants)

    async def give_back(self, amounts, number=None):
        """Under the next number, or that one."""
        self.returns = number or self.returns + 1
        async with self.database.write() as session:
            await quotas.give_back(session, self.epoch, self.returns, amounts)

    async def run(self, function, *values, **more):
        async with self.database.write() as session:
            return await function(session, *values, **more)

    async def sql(self, statement, **values):
        async with self.database.write() as session:
            result = await (await session.connection()).execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else None

    async def budget(self, budget):
        """used, reserved, over, forgiven."""
        where = 'WHERE scope = :scope AND unit = :unit AND "window" = :window'
        rows = await self.sql(f'SELECT used, reserved, "over", forgiven FROM budgets {where}', **budget._asdict())
        return rows[0] if rows else None

    async def lease(self, budget, epoch=None):
        where = 'WHERE epoch = :epoch AND scope = :scope AND unit = :unit AND "window" = :window'
        rows = await self.sql(f"SELECT amount FROM leases {where}", epoch=epoch or self.epoch, **budget._asdict())
        return rows[0][0] if rows else None

    async def rows(self):
        """request, attempt, kind and tokens, as they were written."""
        return await self.sql("SELECT request_id, attempt, kind, prompt_tokens + completion_tokens FROM ledger ORDER BY id")

    async def broken(self, counts=None):
        async with self.database.read() as session:
            return [found async for found in verify.broken(session, KEY, Counter() if counts is None else counts)]

    async def unlock(self):
        """Lets rows of the ledger be changed."""
        on = {"sqlite": "", "postgresql": " ON {0}"}[self.database.kind]
        for table, verb in TRIGGERS:
            await self.sql(f"DROP TRIGGER {table}_no_{verb}" + on.format(table))
