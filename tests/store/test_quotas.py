"""Limits, what is used of them, and loans: never more than there is, whoever asks for it and whatever people change meanwhile."""

import pytest
from sqlalchemy.exc import IntegrityError

from mindgw.core.quota import Budget
from mindgw.errors import NotFound, PreconditionFailed
from mindgw.store import epochs, quotas
from tests.store.books import MONTH, NOON, TODAY, Books, K, O, entry

DAY = Budget("key:k", "tokens", TODAY)


@pytest.fixture
async def books(database):
    books = await Books(database).begin()
    yield books
    assert await books.broken() == []


async def standings(books, **which):
    async with books.database.read() as session:
        return await quotas.standings(session, TODAY, **which)


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_limit_counts_what_was_used_before_it(books):
    await books.commit(entry("r1"), entry("r2", kind="wasted"), entry("r3", day="2026-11-20"))
    for budget in (K, DAY, O, Budget("key:k", "tokens", "total")):
        await books.limit(budget, 20)
    assert await books.budget(K) == (30, 0, 10, 0)
    assert await books.budget(DAY) == (15, 0, 0, 0)
    assert await books.budget(O) == (6, 0, 0, 0)
    assert await books.budget(Budget("key:k", "tokens", "total")) == (30, 0, 10, 0)


async def test_a_limit_is_changed_from_now_on(books):
    await books.limit(K, 100)
    await books.commit(entry("r0", day="2026-10-31"), entry("r1", completion_tokens=80))
    changed = await books.limit(K, 40, mode="soft")
    assert (changed.lim, changed.on_exceed, changed.version) == (40, "soft", 2)
    assert await books.budget(K) == (90, 0, 50, 0)
    assert await books.sql('SELECT "window", lim FROM budgets ORDER BY 1') == [("2026-10", 100), (MONTH, 40)]
    await books.limit(K, 200, version=2)
    assert (await books.budget(K))[2] == 50, "that it was exceeded stays true"
    with pytest.raises(PreconditionFailed):
        await books.limit(K, 300, version=2)
    assert [one.limit for one in await standings(books)] == [200]


async def test_limits_are_listed_with_their_windows_of_a_day(books):
    await books.limit(K, 100)
    await books.limit(DAY, 50, day="2026-11-20")
    await books.limit(O, 7)
    await books.borrow(K, want=30)
    await books.commit(entry("r0", day="2026-11-20"), entry("r1", cost=9, draws=[K]))
    found = [(one.scope, one.period, one.window, one.limit, one.used, one.reserved, one.over) for one in await standings(books)]
    assert found == [
        ("key:k", "day", TODAY, 50, 15, 0, 0),
        ("key:k", "month", MONTH, 100, 30, 15, 0),
        ("org:o", "total", "total", 7, 12, 0, 5),
    ]
    assert [one.period for one in await standings(books, scope="key:k")] == ["day", "month"]
    assert [one.scope for one in await standings(books, unit="usd")] == ["org:o"]
    assert await standings(books, scope="key:k", unit="usd") == []
    async with books.database.read() as session:
        (rolled,) = await quotas.standings(session, "2026-12-01", scope="org:o")
        assert rolled.used == 12, "a total has one window"
        later = await quotas.standings(session, "2026-12-01", scope="key:k")
        assert [(one.window, one.used, one.limit) for one in later] == [("2026-12-01", 0, 50), ("2026-12", 0, 100)]
        assert [(row.scope, row.period) for row in await quotas.load(session)] == [("key:k", "day"), ("key:k", "month"), ("org:o", "total")]


async def test_a_reset_forgives_what_was_used_and_leaves_what_is_reserved(books):
    await books.limit(K, 100)
    await books.borrow(K, want=60)
    await books.commit(entry("r1", draws=[K]), entry("r2", completion_tokens=80))
    assert await books.budget(K) == (105, 45, 50, 0)
    standing = await books.run(quotas.reset, K.scope, K.unit, "month", TODAY)
    assert (standing.used, standing.reserved, standing.forgiven, standing.over) == (0, 45, 105, 0)
    await books.commit(entry("r3", draws=[K]))
    assert await books.budget(K) == (15, 30, 0, 105)
    await books.run(quotas.reset, K.scope, K.unit, "month", "2026-12-01")
    assert await books.budget(Budget("key:k", "tokens", "2026-12")) == (0, 0, 0, 0)


async def test_a_limit_that_is_cleared_leaves_nothing_behind(books):
    await books.limit(K, 100)
    await books.limit(DAY, 100)
    await books.borrow(K, DAY, want=60)
    await books.run(quotas.clear, K.scope, K.unit, "month")
    assert (await books.budget(K), await books.lease(K), await books.lease(DAY)) == (None, None, 60)
    await books.commit(entry("r1", draws=[K, DAY]))
    await books.give_back({K: 45})
    assert await books.borrow(K) == []
    await books.limit(K, 100)
    assert await books.budget(K) == (15, 0, 0, 0)


@pytest.mark.parametrize("change", [quotas.reset, quotas.clear])
async def test_a_limit_that_is_not_there_cannot_be_changed(books, change):
    with pytest.raises(NotFound):
        await books.run(change, "key:k", "tokens", "day", *([TODAY] if change is quotas.reset else []))


# -- loans ---------------------------------------------------------------------------------------------------------------


async def test_where_there_is_plenty_more_is_lent_than_is_wanted(books):
    await books.limit(K, 6400)
    (lent,) = await books.borrow(K, want=10)
    assert lent == quotas.Lent(K, 100, 0, 100, 6400)
    (lent,) = await books.borrow(K, want=500)
    assert (lent.amount, await books.lease(K)) == (500, 600)


async def test_the_last_is_lent_to_whom_it_is_enough(books):
    await books.limit(K, 100)
    assert [one.amount for one in await books.borrow(K, want=97)] == [97]
    assert [one.amount for one in await books.borrow(K, least=4, want=9)] == [0]
    assert [one.amount for one in await books.borrow(K, least=3, want=9)] == [3]
    (none,) = await books.borrow(K)
    assert none == quotas.Lent(K, 0, 0, 100, 100), "the row says why"
    assert await books.budget(K) == (0, 100, 0, 0)


async def test_loans_are_made_in_order_each_by_itself_and_make_their_windows(books):
    await books.limit(K, 100)
    await books.limit(O, 5)
    await books.limit(DAY, 100)
    tomorrow = Budget("key:k", "tokens", "2026-11-22")
    lent = await books.borrow(O, tomorrow, K, Budget("key:none", "usd", MONTH), least=20, want=50)
    assert [(one.budget, one.amount) for one in lent] == [(K, 50), (tomorrow, 50), (O, 0)]
    assert await books.borrow() == []


async def test_loans_go_back_as_far_as_they_are_there(books):
    await books.limit(K, 100)
    await books.borrow(K, want=60)
    await books.give_back({K: 20, O: 3})
    assert (await books.budget(K), await books.lease(K)) == ((0, 40, 0, 0), 40)
    await books.give_back({K: 1000})
    assert (await books.budget(K), await books.lease(K)) == ((0, 0, 0, 0), 0)


async def test_what_is_given_back_twice_under_one_number_goes_back_once(books):
    """The answer was lost."""
    await books.limit(K, 100)
    await books.borrow(K, want=60)
    for number in (1, 1, 3, 2, 3):
        await books.give_back({K: 20}, number)
    assert (await books.budget(K), await books.lease(K)) == ((0, 20, 0, 0), 20)


async def test_who_gives_back_what_another_transaction_just_took_must_undo_it(books):
    await books.run(epochs.returned, books.epoch, 4)
    for number in (4, 3):
        with pytest.raises(epochs.Repeated):
            await books.run(epochs.returned, books.epoch, number)


async def test_a_loan_of_a_budget_that_is_not_there_is_left_alone(books):
    await books.limit(K, 100)
    await books.borrow(K, want=60)
    await books.sql("DELETE FROM budgets")
    await books.give_back({K: 20})
    assert await books.lease(K) == 60
    await books.sql("DELETE FROM leases")


async def test_who_is_over_gets_no_loan(books):
    await books.limit(K, 100)
    await books.run(epochs.end, books.epoch, NOON)
    for epoch in (books.epoch, 99):
        books.writer.epoch = epoch
        with pytest.raises(epochs.Over):
            await books.borrow(K)


async def test_a_negative_row_cannot_be_written(books):
    await books.limit(K, 100)
    with pytest.raises(IntegrityError):
        await books.sql("UPDATE budgets SET used = -1")
