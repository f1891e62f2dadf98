"""Runs of processes: what a dead one had on loan waits for its workers, goes back, or is charged; its chain is gone on with."""

from datetime import timedelta

import pytest

from mindgw.core.quota import Budget
from mindgw.store import epochs, ledger, quotas, totals
from tests.store.books import NOON, TODAY, Books, K, O, entry

LATER = NOON + timedelta(hours=25)
DAY = Budget("key:k", "tokens", TODAY)


@pytest.fixture
async def books(database):
    books = await Books(database).begin()
    await books.limit(K, 1000)
    await books.borrow(K)
    yield books
    assert await books.broken() == []


async def test_a_chain_goes_on_from_the_last_of_its_own_directory(books):
    there = Books(books.database, "there")
    assert (await there.begin()).writer.head == ledger.GENESIS
    first, second = await books.commit(entry("r1")), await there.commit(entry("r2"))
    assert (await Books(books.database).begin()).writer.head == first.head
    assert (await Books(books.database).begin()).writer.head == first.head, "one that wrote nothing is passed over"
    assert (await Books(books.database, "there").begin()).writer.head == second.head
    assert (await Books(books.database, "new").begin()).writer.head == second.head


async def test_who_ends_well_gives_everything_back(books):
    await books.commit(entry("r1", draws=[K]))
    await books.run(epochs.end, books.epoch, NOON)
    await books.run(epochs.end, books.epoch, NOON)
    assert (await books.budget(K), await books.lease(K)) == ((15, 0, 0, 0), None)
    with pytest.raises(epochs.Over):
        await books.run(epochs.beat, books.epoch, NOON)


async def test_a_lease_waits_for_every_worker_of_its_epoch(books):
    for worker in ("a", "b"):
        await books.run(epochs.linked, books.epoch, worker)
    after = await Books(books.database).begin()
    await after.run(epochs.linked, after.epoch, "a")
    await after.run(epochs.cleared, "a", after.epoch, NOON)
    assert await after.run(epochs.recover, after.epoch, NOON) == []
    await after.run(epochs.linked, books.epoch, "a")  # linked again, so it may have new ones
    await after.run(epochs.cleared, "b", after.epoch, NOON)
    assert await after.run(epochs.recover, after.epoch, NOON) == []
    await after.run(epochs.cleared, "a", after.epoch, NOON)
    assert await after.run(epochs.recover, after.epoch, NOON) == [books.epoch]
    assert (await books.budget(K), await books.lease(K, books.epoch)) == ((0, 0, 0, 0), None)
    assert await after.run(epochs.recover, after.epoch, NOON) == []


async def test_only_the_dead_are_recovered(books):
    """An older run of the same directory is dead; another directory's when it was silent for a minute."""
    there = await Books(books.database, "there").begin()
    assert await there.run(epochs.recover, there.epoch, NOON + timedelta(seconds=60)) == []
    await there.run(epochs.beat, there.epoch, NOON + timedelta(seconds=60))
    await books.run(epochs.beat, books.epoch, NOON + timedelta(seconds=1))
    assert await there.run(epochs.recover, there.epoch, NOON + timedelta(seconds=61)) == []
    assert await there.run(epochs.recover, there.epoch, NOON + timedelta(seconds=62)) == [books.epoch]
    assert await there.run(epochs.recover, there.epoch, LATER) == [], "whoever asks lives"


async def test_a_lease_that_nobody_tells_of_is_charged_after_a_day(books):
    await books.limit(O, 1000)
    await books.limit(DAY, 1000)
    await books.borrow(O, DAY, want=40)
    await books.run(epochs.linked, books.epoch, "a")
    after = await Books(books.database).begin(LATER)
    assert await after.run(epochs.expire, after.epoch, NOON + timedelta(hours=24)) == []
    charged = await after.run(epochs.expire, after.epoch, LATER)
    assert [one.request_id.split(":", 2)[2] for one in charged] == ["key:k:tokens:2026-11", "key:k:tokens:2026-11-21", "org:o:usd:total"]
    assert (await after.commit(*charged)).written == charged
    assert (await after.commit(*charged)).known == charged
    assert [await books.budget(budget) for budget in (K, DAY, O)] == [(100, 0, 0, 0), (40, 0, 0, 0), (40, 0, 0, 0)]
    assert await after.run(epochs.expire, after.epoch, LATER) == []
    assert await after.run(epochs.recover, after.epoch, LATER) == [books.epoch]
    async with books.database.read() as session:
        assert await totals.totals(session, "key", "2026-01-01", "2026-12-31") == []


async def test_a_receipt_that_comes_after_that_is_taken_off_the_charge(books):
    await books.run(epochs.linked, books.epoch, "a")
    after = await Books(books.database).begin(LATER)
    await after.commit(*await after.run(epochs.expire, after.epoch, LATER))
    late = [entry(f"r{i}", draws=[(K, 40)], completion_tokens=30, recovered=True, lease_epoch=books.epoch) for i in range(3)]
    done = await after.commit(*late[:2])
    assert [(one.attempt, one.completion_tokens) for one in done.adjusted] == [(1, -80)]
    assert await books.budget(K) == (100, 0, 0, 0)
    done = await after.commit(late[2])
    assert [(one.attempt, one.completion_tokens) for one in done.adjusted] == [(2, -20)], "no more than was charged"
    assert await books.budget(K) == (120, 0, 0, 0)
    assert (await after.commit(late[2])).known == [late[2]]


async def test_a_lease_is_charged_for_what_is_left_of_it_when_that_is_written(books):
    await books.run(epochs.linked, books.epoch, "a")
    after = await Books(books.database).begin(LATER)
    charged = await after.run(epochs.expire, after.epoch, LATER)
    receipt = entry("r1", draws=[K], recovered=True, lease_epoch=books.epoch)
    done = await after.commit(*charged, receipt)
    assert [one.completion_tokens for one in done.written] == [85, 5]
    assert await books.budget(K) == (100, 0, 0, 0)


async def test_a_lease_whose_limit_was_cleared_is_not_charged(books):
    await books.run(epochs.linked, books.epoch, "a")
    after = await Books(books.database).begin(LATER)
    charged = await after.run(epochs.expire, after.epoch, LATER)
    await after.run(quotas.clear, K.scope, K.unit, "month")
    done = await after.commit(*charged)
    assert (done.seq, done.written, done.known) == (0, [], charged)


async def test_now_is_a_moment_with_its_zone(books):
    assert (await books.run(epochs.now)).utcoffset() == timedelta(0)
