"""A window ends while requests run, or the clock jumps: each attempt counts in the window in which its tokens were reserved.

The real pipeline and the real accounts on a real SQLite; the day is set by the tests, which also play the engine.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mindgw import metrics
from mindgw.config import Config
from mindgw.control import recount
from mindgw.control.secrets import Secrets
from mindgw.core.quota import Budget
from mindgw.gateway import signals
from mindgw.gateway.pipeline import Pipeline
from mindgw.server.accounting import Accounting
from mindgw.store import quotas, verify
from mindgw.store.database import Database
from mindgw.store.tables import Quota
from mindgw_agent import wire
from tests.e2e.world import PATIENCE
from tests.gateway.world import EVENT, JSON, SERVER, SSE, Box, Client, World, engine

#: The last day of a month, the one before it and the one after it; far from any day on which this runs.
BEFORE, LAST, NEXT = "2099-11-29", "2099-11-30", "2099-12-01"
SECRETS = Secrets(identity=SERVER, ca_pem=b"", ca_key=b"", pepper=b"p" * 32, sealing=b"s" * 32, signing=b"i" * 32)
LIMIT = 100_000


class Till(World):
    """A pipeline whose accounts are those of a real server."""

    def __init__(self, database: Database, directory: Path) -> None:
        super().__init__()
        self.database = database
        config = Config(str(directory), prices={"*": (10_000_000, 20_000_000)})
        self.accounting = Accounting(config, SECRETS, database, metrics.Counters())
        self.pipeline = Pipeline(config, self.auth, self.accounting.accounts, self.clock)
        self.pipeline.day = LAST
        self.scope = f"key:{next(iter(self.keys))}"

    async def limit_to(self, period: str, lim: int = LIMIT, unit: str = "tokens") -> None:
        async with self.database.write() as session:
            wanted = Quota(scope=self.scope, unit=unit, period=period, lim=lim, on_exceed="block")
            await quotas.put(session, wanted, self.pipeline.day)
        await self.accounting.refresh()

    async def until(self, look: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not look():
            assert time.monotonic() < end
            await asyncio.sleep(0.001)  # a poll with a deadline
            self.pump()

    async def sent(self, box: Box, **fields: Any) -> Client:
        """A request that its box has."""
        client = self.ask(**fields)
        await self.until(lambda: client.state not in {signals.State.WAITING, signals.State.FUNDING})
        assert client.state is signals.State.SENT, client.code
        return client

    async def written(self) -> list[dict[str, Any]]:
        """All rows, once all are written."""
        for chore in self.accounting.writing():
            assert await chore.once()
        return await self.read("SELECT * FROM ledger ORDER BY id")

    async def read(self, statement: str) -> list[dict[str, Any]]:
        async with self.database.read() as session:
            return [dict(row) for row in (await (await session.connection()).exec_driver_sql(statement)).mappings()]

    async def budgets(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(unit, window) -> used and reserved."""
        rows = await self.read("SELECT * FROM budgets")
        return {(row["unit"], row["window"]): (row["used"], row["reserved"]) for row in rows}

    async def end(self) -> None:
        """All loans go back, and the books are right."""
        await self.written()
        await self.accounting.end()
        assert {reserved for _, reserved in (await self.budgets()).values()} <= {0}
        async with self.database.read() as session:
            assert [found async for found in verify.broken(session, SECRETS.chain_key)] == []


@pytest.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    database = Database(f"sqlite:///{tmp_path / 'mindgw.db'}")
    await database.migrate()
    made = Till(database, tmp_path)
    await made.accounting.begin()
    yield made
    await made.end()
    await database.close()


def stream(box: Box, events: int = 3) -> None:
    """The rest of a stream, and its end."""
    for _ in range(events):
        box.data(EVENT)
    box.close(usage=wire.Usage(7, events, source="engine"), events=events, finish="stop")


def answer(box: Box, tokens: int, prompt: int = 7) -> None:
    """A whole answer."""
    box.head(200, JSON, b"{}")
    box.close(usage=wire.Usage(prompt, tokens, source="engine"), finish="stop")


async def test_a_stream_over_midnight_counts_on_the_day_that_it_was_reserved_on(till: Till) -> None:
    for period in ("day", "month", "total"):
        await till.limit_to(period)
    await till.limit_to("day", 1_000_000, "usd")
    box = Box(till)
    client = await till.sent(box, stream=True)
    box.head(200, SSE)
    till.pipeline.day = NEXT
    stream(box)
    assert client.end is not None
    (row,) = await till.written()
    assert (row["day"], row["kind"], row["prompt_tokens"], row["completion_tokens"]) == (LAST, "settled", 7, 3)
    found = {window: used for window, (used, _) in (await till.budgets()).items()}
    assert found == {("tokens", LAST): 10, ("tokens", LAST[:7]): 10, ("tokens", "total"): 10, ("usd", LAST): 130}
    await till.sent(box)
    answer(box, 0)
    await till.written()
    found = {window: used for window, (used, _) in (await till.budgets()).items()}
    assert found[("tokens", NEXT)] == found[("tokens", NEXT[:7])] == 7, "the next one counts on the next day"
    assert found[("tokens", LAST)] == found[("tokens", LAST[:7])] == 10
    assert found[("tokens", "total")] == 17


async def test_a_day_that_is_used_up_is_over_at_midnight(till: Till) -> None:
    await till.limit_to("day", 60)
    box = Box(till)
    await till.sent(box, max_tokens=30)
    answer(box, 30, prompt=20)
    refused = till.ask(max_tokens=30)
    await till.until(lambda: refused.end is not None)
    assert refused.code == "insufficient_quota"
    till.pipeline.day = NEXT
    await till.sent(box, max_tokens=30)
    answer(box, 5)
    assert [row["day"] for row in await till.written()] == [LAST, LAST, NEXT]


async def test_a_request_that_waited_over_midnight_counts_on_the_day_of_its_slot(till: Till) -> None:
    await till.limit_to("day")
    box = Box(till)
    await till.sent(box)
    second = till.ask()
    assert second.state is signals.State.WAITING
    till.pipeline.day = NEXT
    answer(box, 1)
    await till.until(lambda: second.state is signals.State.SENT)
    answer(box, 2)
    assert [(row["day"], row["completion_tokens"]) for row in await till.written()] == [(LAST, 1), (NEXT, 2)]
    assert {window: used for (_, window), (used, _) in (await till.budgets()).items()} == {LAST: 8, NEXT: 9}


async def test_a_second_attempt_after_midnight_is_reserved_anew(till: Till) -> None:
    await till.limit_to("day")
    first = Box(till, "first")
    client = await till.sent(first)
    other = Box(till, "other", engine("m"))
    till.pipeline.day = NEXT
    first.cut()
    await till.until(lambda: other.requests)
    answer(other, 2)
    assert client.end is not None
    assert [(row["attempt"], row["kind"], row["day"]) for row in await till.written()] == [(1, "wasted", LAST), (2, "settled", NEXT)]
    assert {window: used for (_, window), (used, _) in (await till.budgets()).items()} == {LAST: 0, NEXT: 9}


async def test_what_is_on_loan_of_yesterday_goes_back_but_for_what_runs(till: Till) -> None:
    await till.limit_to("day")
    box = Box(till)
    await till.sent(box, stream=True, max_tokens=10)
    desk, (budget,) = till.accounting.quotas.desk, [Budget(till.scope, "tokens", LAST)]
    free = desk.leases.free(budget)
    assert free > 0
    held = (await till.budgets())["tokens", LAST][1] - free
    till.pipeline.day = NEXT
    await desk.return_all(till.clock(), NEXT)
    assert (await till.budgets())["tokens", LAST] == (0, held)
    box.head(200, SSE)
    stream(box)
    await till.written()
    await desk.return_all(till.clock(), NEXT)
    assert (await till.budgets())["tokens", LAST] == (10, 0)


async def test_a_receipt_that_comes_a_day_late_counts_in_its_own_window(till: Till) -> None:
    """The server is gone when the answer ends: the tag still says when."""
    await till.limit_to("day")
    box = Box(till)
    await till.sent(box, stream=True)
    (request,) = box.requests.values()
    tag = till.accounting.seal.open(request.meta.tag, box.name)
    till.pipeline.day = NEXT
    receipt = wire.Receipt(seq=1, tag=request.meta.tag, outcome="done", prompt=7, completion=3, source="engine", bytes=100)
    entry = recount.recovered(box.name, tag, receipt)
    assert entry.day == LAST
    assert {(draw.budget.unit, draw.budget.window, draw.amount) for draw in entry.draws} == {("tokens", LAST, 10)}
    box.head(200, SSE)
    stream(box)


@pytest.mark.parametrize("jump", [BEFORE, "1999-01-01", "2199-12-31"])
async def test_a_clock_that_jumps_loses_nothing_and_books_nothing_twice(till: Till, jump: str) -> None:
    for period in ("day", "month", "total"):
        await till.limit_to(period)
    box = Box(till, "box", engine("m", slots=2))
    days = [LAST, jump, LAST]
    for day in days:
        till.pipeline.day = day
        await till.sent(box, stream=True)
        box.head(200, SSE)
        till.pipeline.day = jump if day == LAST else LAST
        stream(box)
        await till.accounting.quotas.desk.return_all(till.clock(), till.pipeline.day)
    assert [row["day"] for row in await till.written()] == days
    found = await till.budgets()
    assert found["tokens", "total"][0] == 30
    assert found["tokens", LAST][0] == 20
    assert found["tokens", jump][0] == 10
