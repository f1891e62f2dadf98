"""Whichever statement of an operation fails, its COMMIT included, the database is as it was before, and doing it again works."""

from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from mindgw.core.quota import Budget
from mindgw.store import epochs, quotas, receipts, tables
from tests.store.books import NOON, TODAY, Books, K, O, entry

LATER = NOON + timedelta(hours=25)
#: A window that has no row yet.
NEW = Budget("key:k", "tokens", "2026-12")
#: More than any operation has.
MOST = 60


@pytest.fixture
async def books(database):
    """A dead run that had leases, one of them charged, receipts to come, and one that lives."""
    dead = await Books(database).begin()
    for worker in "ab":
        await dead.run(epochs.linked, dead.epoch, worker)
    for budget in (K, O):
        await dead.limit(budget, 1000)
    await dead.borrow(K, O)
    await dead.commit(entry("r1", draws=[K, O]), entry("r2", draws=[K]))
    books = await Books(database).begin(LATER)
    charged = await books.run(epochs.expire, books.epoch, LATER)
    await books.commit(*[one for one in charged if one.draws[0].budget == O])
    await books.borrow(K)
    yield books
    assert await books.broken() == []


@contextmanager
def failing(database, number):
    """The statement of that number fails; 0: COMMIT does. Yields a list that has an item when it did."""
    engine, seen, failed = database._writer.sync_engine, [], []

    def fail():
        failed.append(True)
        raise OperationalError("the disk is full", {}, OSError("disk"))

    def statement(*_):
        seen.append(True)
        if len(seen) == number:
            fail()

    def commit(_):
        if number == 0:
            fail()

    event.listen(engine, "before_cursor_execute", statement)
    event.listen(engine, "commit", commit)
    try:
        yield failed
    finally:
        event.remove(engine, "before_cursor_execute", statement)
        event.remove(engine, "commit", commit)


async def picture(books):
    """All rows of all tables."""
    quote = '"{}"'.format
    return {
        name: sorted(map(repr, await books.sql(f"SELECT {', '.join(map(quote, table.columns.keys()))} FROM {name}")))
        for name, table in tables.metadata.tables.items()
    }


def live(books):
    one = entry("n1", draws=[K, O], attempt=2)
    return books.commit(
        one, entry("n2", day="2026-12-01", draws=[K]), entry("n3", kind="wasted"), entry("r2", draws=[K]), entry("n4", model="x")
    )


def late(books):
    facts = {"recovered": True, "lease_epoch": 1}
    return books.commit(
        entry("r1", attempt=2, draws=[K, O], **facts), entry("r1", **facts), entry("r2", attempt=3, completion_tokens=99, **facts)
    )


async def charged(books):
    return await books.commit(*await books.run(epochs.expire, books.epoch, LATER))


async def recovered(books):
    async with books.database.write() as session:
        for worker in "ab":
            await epochs.cleared(session, worker, books.epoch, LATER)
        return await epochs.recover(session, books.epoch, LATER)


def kept(books):
    facts = {"attempt": 1, "outcome": "done", "prompt": 1, "completion": 1, "source": "engine", "prev": b"0", "hash": b"1", "at": NOON}
    return books.run(receipts.append, "a", [receipts.NewReceipt(seq=1, request_id="r1", **facts)], b"s", NOON)


OPERATIONS = {
    "commit": live,
    "commit of receipts": late,
    "borrow": lambda books: books.borrow(K, NEW, O, want=20),
    "give back": lambda books: books.give_back({K: 5, O: 5}),
    "put a new limit": lambda books: books.limit(Budget("model:m:1", "tokens", TODAY), 100),
    "put another limit": lambda books: books.limit(K, 10),
    "reset": lambda books: books.run(quotas.reset, K.scope, K.unit, "month", "2026-12-01"),
    "clear": lambda books: books.run(quotas.clear, K.scope, K.unit, "month"),
    "begin": lambda books: Books(books.database, "there").begin(),
    "beat": lambda books: books.run(epochs.beat, books.epoch, LATER + timedelta(seconds=1)),
    "end": lambda books: books.run(epochs.end, books.epoch, LATER),
    "link": lambda books: books.run(epochs.linked, books.epoch, "c"),
    "recover": recovered,
    "expire": charged,
    "keep receipts": kept,
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_what_fails_leaves_everything_as_it_was_and_can_be_done_again(books, operation):
    before = await picture(books)
    for number in range(MOST):
        with failing(books.database, number) as failed:
            succeeded = await succeeds(operation(books))
        assert succeeded != bool(failed)
        if succeeded:
            break
        assert await picture(books) == before
    assert 2 <= number < MOST
    assert await picture(books) != before


async def succeeds(work):
    try:
        await work
    except OperationalError:
        return False
    return True
