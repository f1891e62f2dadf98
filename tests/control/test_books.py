"""A process's books, on both databases: a chain without holes, loans that nobody loses, and runs that end, well or not."""

import asyncio
import stat
from datetime import UTC, datetime

import msgspec
import pytest

from mindgw.control import books as rooms
from mindgw.control.books import Books
from mindgw.core.quota import Draw
from mindgw.gateway.quota import Policy
from mindgw.store import epochs
from mindgw.store.quotas import Want
from tests.control.receiving import CHAIN, TOKENS, USD, Flaky, Site
from tests.store.books import entry

#: Moments that are long ago for whoever asks the database what time it is.
AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Run:
    """One run of a process: its books, what it was told, and a database that may fail."""

    def __init__(self, site, instance="here"):
        self.site = site
        self.database = Flaky(site.database)
        self.books = Books(self.database, instance, CHAIN)
        self.epochs = []
        self.written = []
        self.books.on_epoch = self.epochs.append
        self.books.on_written = lambda entries: self.written.extend(one.request_id for one in entries)

    async def begin(self):
        await self.books.begin()
        return self

    async def borrow(self, *budgets, want=100):
        wants = [Want(budget, "month" if budget == TOKENS else "total", 1, want) for budget in sorted(budgets)]
        return {one.budget: one.amount for one in await self.books.borrow(wants)}

    async def lease(self, budget=TOKENS):
        rows = await self.site.sql(
            'SELECT amount FROM leases WHERE epoch = :epoch AND scope = :scope AND unit = :unit AND "window" = :window',
            epoch=self.books.epoch, **budget._asdict(),
        )  # fmt: skip
        return rows[0][0] if rows else None

    async def taken_for_dead(self, other):
        """It was silent for long, and another process gave its leases away."""
        await self.silent()
        await other.books.recover()
        assert await self.site.sql("SELECT id FROM epochs WHERE id = :id AND ended_at IS NOT NULL", id=self.books.epoch)

    async def silent(self):
        async with self.site.database.write() as session:
            await epochs.beat(session, self.books.epoch, AGO)


@pytest.fixture
async def site(database, tmp_path):
    made = Site(database, tmp_path)
    await made.limits()
    return made


@pytest.fixture
async def run(site):
    return await Run(site).begin()


# -- the ledger --------------------------------------------------------------------------------------------------------


async def test_books_that_are_closed_have_no_epoch(site):
    books = Run(site).books
    assert books.epoch == 0
    with pytest.raises(AssertionError, match="closed"):
        _ = books.writer


async def test_batches_are_links_of_one_chain(site, run):
    assert run.epochs == [run.books.epoch]
    for batch in (["r1"], ["r2", "r3"], []):
        await run.books.append([entry(id) for id in batch])
    assert run.books.writer.seq == 2
    assert run.written == ["r1", "r2", "r3"]
    assert [row[0] for row in await site.rows()] == ["r1", "r2", "r3"]
    assert await site.broken() == []
    after = await Run(site).begin()
    await after.books.append([entry("r4")])
    assert await site.broken() == []


async def test_batches_that_come_at_once_are_written_one_by_one(site, run):
    await asyncio.gather(*(run.books.append([entry(f"r{n}")]) for n in range(10)))
    assert run.books.writer.seq == 10
    assert await site.broken() == []


async def test_a_batch_that_was_not_written_may_come_again(site, run):
    run.database.fails = run.database.writes + 1
    with pytest.raises(OSError, match="away"):
        await run.books.append([entry("r1")])
    assert (run.written, await site.rows()) == ([], [])
    await run.books.append([entry("r1"), entry("r2")])
    assert [row[0] for row in await site.rows()] == ["r1", "r2"]
    assert await site.broken() == []


async def test_a_batch_whose_answer_was_lost_is_written_once_and_drawn_once(site, run):
    await run.borrow(TOKENS)
    before = await run.lease()
    run.database.fails, run.database.late = run.database.writes + 1, True
    batch = [entry("r1", draws=[TOKENS])]
    with pytest.raises(OSError, match="away"):
        await run.books.append(batch)
    await run.books.append([*batch, entry("r2")])
    assert [row[:3] for row in await site.rows()] == [("r1", 1, "settled"), ("r2", 1, "settled")]
    assert await run.lease() == before - 15
    assert run.books.writer.seq == 2
    assert await site.broken() == []


async def test_a_batch_with_a_bad_entry_is_not_written_at_all(site, run):
    with pytest.raises(ValueError, match="prompt_tokens"):
        await run.books.append([entry("r1"), entry("r2", prompt_tokens=-1)])
    assert (await site.rows(), run.written) == ([], [])


async def test_two_processes_that_write_the_same_at_once_write_it_once(site, run):
    other = await Run(site, "there").begin()
    same = [entry(f"r{n}") for n in range(20)]
    for one in same:
        await asyncio.gather(run.books.append([one]), other.books.append([one]))
    assert sorted(row[0] for row in await site.rows()) == sorted(one.request_id for one in same)
    assert run.written == other.written
    assert await site.broken() == []


# -- loans -------------------------------------------------------------------------------------------------------------


async def test_what_is_lent_is_reserved_and_what_is_given_back_is_not(site, run):
    lent = await run.borrow(TOKENS, USD)
    assert lent == {TOKENS: 156, USD: 156}
    assert await site.budget() == (0, 156)
    await run.books.give_back(1, {TOKENS: 100, USD: 156})
    assert (await run.lease(), await run.lease(USD)) == (56, 0)
    assert (await site.budget(), await site.budget(USD)) == ((0, 56), (0, 0))
    assert await site.broken() == []


async def test_a_limit_that_is_gone_is_left_out(site, run):
    async with site.database.write() as session:
        await rooms.quotas.clear(session, TOKENS.scope, TOKENS.unit, "month")
    assert await run.borrow(TOKENS, USD) == {USD: 156}
    await run.books.give_back(1, {TOKENS: 5})


async def test_the_limits_are_those_of_the_database(run):
    found = await run.books.policies()
    assert [msgspec.structs.replace(policy, version=("", 0)) for policy in found] == [
        Policy("key:k", "tokens", "month", 10_000, "block"), Policy("org:o", "usd", "total", 10_000, "block")
    ]  # fmt: skip
    assert all(made and number == 1 for made, number in (policy.version for policy in found))


async def test_a_bank_that_fails_lends_nothing(site, run):
    run.database.fails = run.database.writes + 1
    with pytest.raises(OSError, match="away"):
        await run.borrow(TOKENS)
    await run.borrow(TOKENS)
    run.database.fails = run.database.writes + 1
    with pytest.raises(OSError, match="away"):
        await run.books.give_back(1, {TOKENS: 1})
    assert await site.budget() == (0, 156)


async def test_what_is_given_back_and_nobody_hears_of_it_goes_back_once(site, run):
    await run.borrow(TOKENS)
    run.database.fails, run.database.late = run.database.writes + 1, True
    with pytest.raises(OSError, match="away"):
        await run.books.give_back(1, {TOKENS: 100})
    await run.books.give_back(1, {TOKENS: 100})
    assert (await run.lease(), await site.budget()) == (56, (0, 56))


async def test_two_transactions_that_give_back_the_same_at_once_do_so_once(site, run):
    await run.borrow(TOKENS)
    await asyncio.gather(*(run.books.give_back(1, {TOKENS: 100}) for _ in range(4)))
    assert (await run.lease(), await site.budget()) == (56, (0, 56))


# -- the end of a run --------------------------------------------------------------------------------------------------


async def test_a_run_that_ends_well_leaves_nothing_reserved(site, run):
    await run.borrow(TOKENS, USD)
    await run.books.append([entry("r1", draws=[TOKENS])])
    await run.books.end()
    assert (await site.budget(), await site.budget(USD)) == ((15, 0), (3, 0))
    assert await site.sql("SELECT count(*) FROM epochs WHERE ended_at IS NULL") == [(0,)]
    assert await site.broken() == []


async def test_a_run_that_was_killed_is_settled_by_the_next_one_of_its_directory(site, run):
    await run.borrow(TOKENS)
    stranger = await Run(site, "there").begin()
    await stranger.books.recover()
    assert await site.budget() == (0, 156)  # it may well live
    after = await Run(site).begin()
    await after.books.recover()
    assert await site.budget() == (0, 0)


async def test_loans_wait_for_workers_that_have_not_told_everything(site, run):
    agents = [await site.agent(name) for name in ("a", "b")]
    await run.borrow(TOKENS)
    for agent in agents:
        await run.books.linked(agent.id)
        await run.books.linked(agent.id)
    after = await Run(site).begin()
    await after.books.linked(agents[0].id)
    await after.books.recover()
    await after.books.cleared(agents[0].id)
    assert await site.budget() == (0, 156)
    await after.books.cleared(agents[1].id)
    assert await site.budget() == (0, 0)
    assert await site.broken() == []


async def test_what_nobody_told_within_a_day_is_charged(site, run):
    agent = await site.agent()
    await run.borrow(TOKENS)
    await run.books.append([entry("r1", draws=[TOKENS])])
    await run.books.linked(agent.id)
    await run.silent()
    after = await Run(site).begin()
    await after.books.recover()
    assert await site.budget() == (156, 0)
    kinds = await site.sql("SELECT kind, completion_tokens FROM ledger WHERE outcome = 'lease'")
    assert kinds == [("estimated", 141)]
    await after.books.recover()
    assert len(await site.rows()) == 2
    assert await site.broken() == []


# -- a run that others took for dead -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["borrow", "beat"])
async def test_a_run_that_was_taken_for_dead_begins_another(site, run, how):
    agent = await site.agent()
    await run.books.linked(agent.id)
    async with site.database.write() as session:
        await epochs.cleared(session, agent.id, run.books.epoch + 1, AGO)
    first = run.books.epoch
    await run.borrow(TOKENS)
    await run.taken_for_dead(await Run(site, "there").begin())
    assert await (run.borrow(TOKENS) if how == "borrow" else run.books.beat()) in ({TOKENS: 156}, None)
    assert run.books.epoch > first
    assert run.epochs == [first, run.books.epoch]
    assert await site.budget() == (0, 156 if how == "borrow" else 0)
    linked = await site.sql("SELECT worker_id, cleared_at FROM epoch_workers WHERE epoch = :epoch", epoch=run.books.epoch)
    assert linked == [(agent.id, None)]
    await run.books.append([entry("r1")])
    assert await site.broken() == []


async def test_a_loan_whose_answer_comes_after_the_run_was_taken_for_dead_is_asked_for_again(site, run, monkeypatch):
    there, first, write = await Run(site, "there").begin(), run.books.epoch, run.books._write

    async def slow(job):
        monkeypatch.setattr(run.books, "_write", write)
        answer = await write(job)
        await run.taken_for_dead(there)
        await run.books.beat()
        return answer

    monkeypatch.setattr(run.books, "_write", slow)
    assert await run.borrow(TOKENS) == {TOKENS: 156}
    assert run.epochs == [first, run.books.epoch]
    assert (await run.lease(), await site.budget()) == (156, (0, 156))
    assert await site.broken() == []


async def test_many_who_are_told_at_once_begin_one_run(site, run):
    await run.taken_for_dead(await Run(site, "there").begin())
    found = await asyncio.gather(run.borrow(TOKENS), run.borrow(USD), run.books.beat(), run.borrow(TOKENS))
    assert len(run.epochs) == 2
    assert {len(one) for one in found if one is not None} == {1}
    assert await site.broken() == []


async def test_what_was_drawn_in_the_run_that_was_taken_for_dead_leaves_the_leases_of_the_next_alone(site, run):
    await run.borrow(TOKENS)
    first = run.books.epoch
    unwritten = entry("r1", draws=[TOKENS], lease_epoch=first)
    await run.taken_for_dead(await Run(site, "there").begin())
    await run.borrow(TOKENS)
    await run.books.append([unwritten])
    assert await run.lease() == 156
    assert await site.budget() == (15, 156)
    assert await site.broken() == []


async def test_what_a_run_draws_by_its_own_name_leaves_its_lease(site, run):
    """Once, also when another process had made the row of a receipt by then."""
    await run.borrow(TOKENS)
    other = await Run(site, "there").begin()
    await other.books.append([entry("r1", draws=[TOKENS], lease_epoch=run.books.epoch, recovered=True)])
    draw = (Draw(TOKENS, 15),)
    assert draw == entry("r1", draws=[TOKENS]).draws
    await run.books.append([entry("r1", draws=[TOKENS], lease_epoch=run.books.epoch)])
    await run.books.append([entry("r2", draws=[TOKENS], lease_epoch=run.books.epoch)])
    assert await run.lease() == 156 - 30
    assert await site.broken() == []


async def test_a_new_run_that_cannot_begin_is_begun_the_next_time(site, run):
    await run.taken_for_dead(await Run(site, "there").begin())
    run.database.fails = run.database.writes + 2
    with pytest.raises(OSError, match="away"):
        await run.books.beat()
    assert len(run.epochs) == 1
    await run.books.beat()
    assert len(run.epochs) == 2


# -- the name of a directory -------------------------------------------------------------------------------------------


def test_a_directory_has_one_name_for_ever(tmp_path):
    name = rooms.instance(tmp_path)
    assert len(bytes.fromhex(name)) == 16
    assert rooms.instance(tmp_path) == name
    assert stat.S_IMODE((tmp_path / "instance").stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert rooms.instance(tmp_path / "other") != name
