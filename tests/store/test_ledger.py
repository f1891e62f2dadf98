"""The ledger: each attempt once, each batch whole, budgets and leases with it; what comes late finds its place."""

import asyncio
from datetime import timedelta, timezone
from itertools import permutations

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError

from mindgw.core.quota import Budget
from mindgw.store import faults, ledger, quotas, tables, totals
from mindgw.store.entries import COLUMNS, MOST
from mindgw.store.ledger import Raced
from tests.store.books import MONTH, NOON, TODAY, Books, K, O, entry


@pytest.fixture
async def books(database):
    books = await Books(database).begin()
    yield books
    assert await books.broken() == []


def test_what_is_handed_over_has_the_columns_of_the_table_in_their_order():
    assert ("id", *COLUMNS, "epoch", "seq") == tuple(tables.LedgerRow.__table__.columns.keys())


# -- rows and their chain ----------------------------------------------------------------------------------------------


async def test_an_entry_is_read_as_it_was_written(books):
    wanted = entry("r1", attempt=2, team_id="t", stream=True, ttft_ms=None, completion_tokens=2**40, price_version="p", over=7)
    await books.commit(wanted, entry("r2", user_id=None, ttft_ms=5, started_at=NOON + timedelta(microseconds=1)))
    async with books.database.read() as session:
        (newest, oldest) = await ledger.recent(session)
        assert {name: getattr(oldest, name) for name in COLUMNS} == {name: getattr(wanted, name) for name in COLUMNS}
        assert (newest.request_id, newest.user_id, newest.started_at) == ("r2", None, NOON + timedelta(microseconds=1))
        assert [row.request_id for row in await ledger.recent(session, before=newest.id)] == ["r1"]
        assert [row.request_id for row in (await ledger.of_request(session, "r2"))[0]] == ["r2"]


async def test_an_entry_without_a_day_is_booked_on_that_of_its_start(books):
    east = NOON.astimezone(timezone(timedelta(hours=13)))
    await books.commit(entry("r1", day="", started_at=east))
    assert await books.sql("SELECT day FROM ledger") == [(TODAY,)]


async def test_commits_are_chained(books):
    first = await books.commit(entry("r1"), entry("r2"))
    second = await books.commit(entry("r3"))
    assert (first.seq, second.seq) == (1, 2)
    rows = await books.sql("SELECT seq, prev, hash, entries FROM ledger_commits ORDER BY seq")
    assert [(seq, bytes(prev), bytes(hash), entries) for seq, prev, hash, entries in rows] == [
        (1, ledger.GENESIS, first.head, 2),
        (2, first.head, second.head, 1),
    ]


async def test_nothing_is_a_batch_too(books):
    done = await books.commit()
    assert (done.seq, done.written, done.known) == (0, [], [])


async def test_a_large_batch_is_one_transaction(books):
    done = await books.commit(*(entry(f"r{number}", key_id=f"k{number}") for number in range(3000)))
    assert (done.seq, len(done.written)) == (1, 3000)


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger SET cost = 0", "DELETE FROM ledger", "UPDATE ledger_commits SET entries = 0", "DELETE FROM ledger_commits"]
)
async def test_what_is_written_is_never_changed(books, statement):
    await books.commit(entry("r1"))
    with pytest.raises(DBAPIError, match="never changed"):
        await books.sql(statement)


# -- each attempt once ---------------------------------------------------------------------------------------------------


async def test_an_attempt_counts_once_however_often_it_comes(books):
    await books.limit(K, 1000)
    await books.borrow(K)
    first = await books.commit(entry("r1", draws=[K]), entry("r1", kind="wasted"))
    assert ([one.kind for one in first.written], [one.kind for one in first.known]) == (["settled"], ["wasted"])
    again = await books.commit(
        entry("r1", draws=[K]), entry("r1", kind="estimated"), entry("r1", attempt=2, prompt_tokens=0, completion_tokens=0, cost=0)
    )
    assert ([one.attempt for one in again.written], [one.kind for one in again.known]) == ([2], ["settled", "estimated"])
    assert await books.rows() == [("r1", 1, "settled", 15), ("r1", 2, "settled", 0)]
    assert await books.budget(K) == (15, 85, 0, 0)
    assert await books.lease(K) == 85


async def test_what_a_receipt_took_out_of_a_lease_is_not_taken_again(books):
    """Another process thought that this one was dead, and billed what it was about to settle."""
    await books.limit(K, 1000)
    await books.borrow(K)
    other = await Books(books.database, "there").begin()
    await other.commit(receipt("r1", draws=[K]))
    assert (await books.budget(K), await books.lease(K)) == ((15, 85, 0, 0), 85)
    for lost in (True, False, False):
        done = await books.commit(entry("r1", draws=[K]), lost=lost)
        assert (done.seq, done.written, len(done.known)) == (0, [], 1)
        assert (await books.budget(K), await books.lease(K)) == ((15, 85, 0, 0), 85)


@pytest.mark.parametrize(("end", "tokens", "rest"), [("settled", 12, 3), ("settled", 20, 0), ("wasted", 15, 15)])
async def test_what_a_receipt_left_in_the_lease_goes_with_the_entry_and_once(books, end, tokens, rest):
    """The process has counted it as gone; so it must be taken only once, however often the answer is lost."""
    await books.limit(K, 1000)
    await books.borrow(K)
    other = await Books(books.database, "there").begin()
    taken = [(K, tokens)] if end == "settled" else []
    await other.commit(receipt("r1", kind=end, prompt_tokens=tokens, completion_tokens=0, draws=taken))
    used, lent = (tokens, 100 - tokens) if end == "settled" else (0, 100)
    assert (await books.budget(K), await books.lease(K)) == ((used, lent, 0, 0), lent)
    for lost in (True, False):
        done = await books.commit(entry("r1", draws=[K]), lost=lost)
        assert (done.seq, done.written, len(done.known)) == (min(rest, 1), [], 1)
        assert (await books.budget(K), await books.lease(K)) == ((used, lent - rest, 0, 0), lent - rest)


async def test_money_that_a_receipt_took_is_not_taken_again_either(books):
    await books.limit(O, 1000)
    await books.borrow(O)
    other = await Books(books.database, "there").begin()
    await other.commit(receipt("r1", draws=[(O, 2)], cost=2))
    await books.commit(entry("r1", draws=[O]))
    assert (await books.budget(O), await books.lease(O)) == ((2, 97, 0, 0), 97)


async def test_refusals_and_corrections_stand_beside_the_end_of_an_attempt(books):
    refused = entry("r1", attempt=0, kind="refused", prompt_tokens=0, completion_tokens=0, cost=0)
    correction = entry("r1", kind="adjust", prompt_tokens=-10, completion_tokens=-5, cost=-3)
    await books.limit(K, 1000)
    done = await books.commit(refused, entry("r1"), correction, refused)
    assert (len(done.written), len(done.known)) == (3, 1)
    assert await books.budget(K) == (0, 0, 0, 0)


async def test_a_batch_whose_answer_was_lost_is_written_once(books):
    await books.limit(K, 1000)
    await books.borrow(K)
    batch = [entry("r1", draws=[K]), entry("r2", draws=[K])]
    lost = await books.commit(*batch, lost=True)
    again = await books.commit(*batch)
    assert (again.seq, again.head, again.written, again.known) == (lost.seq, lost.head, batch, [])
    assert await books.budget(K) == (30, 70, 0, 0)
    assert (await books.commit(entry("r3"))).seq == 2


async def test_a_lost_batch_may_come_again_cut_otherwise_and_with_others(books):
    await books.limit(K, 1000)
    await books.borrow(K)
    batch = [entry(f"r{number}", draws=[K]) for number in range(4)]
    await books.commit(*batch, lost=True)
    await books.commit(entry("r4", draws=[K]), *batch[:2], lost=True)
    assert [one.request_id for one in (await books.commit(*batch[2:], entry("r5"))).written] == ["r2", "r3", "r5"]
    done = await books.commit(*batch, entry("r4", draws=[K]))
    assert done.written == []
    assert await books.budget(K) == (15 * 6, 100 - 15 * 5, 0, 0)


async def test_a_race_for_one_attempt_is_told_as_such(books, kind):
    if kind == "sqlite":
        pytest.skip("SQLite has one writer")
    other = await Books(books.database, "there").begin()
    entered = asyncio.Event()

    async def first():
        async with books.database.write() as session:
            done = await ledger.commit(session, books.writer, [entry("r1")])
            entered.set()
            await asyncio.sleep(0.2)
        books.writer.advance(done)

    async def second():
        await entered.wait()
        with pytest.raises(Raced):
            await other.commit(entry("r1"))

    await asyncio.gather(first(), second())
    assert [one.request_id for one in (await other.commit(entry("r1"))).known] == ["r1"]


# -- what must not be booked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt_tokens": -1}, {"completion_tokens": float("nan")}, {"cost": MOST + 1}, {"over": True}, {"cached_tokens": None},
        {"bytes_out": 2**70}, {"started_at": NOON.replace(tzinfo=None)}, {"request_id": "r\udc00"}, {"model": "m\udc00"},
        {"kind": "adjust", "cost": -MOST - 1},
    ],
)  # fmt: skip
async def test_what_must_never_be_booked_is_refused_with_its_batch(books, bad):
    with pytest.raises(faults.FAULTS) as wrong:
        await books.commit(entry("r0"), entry(**({"request_id": "r1"} | bad)))
    assert faults.in_the_data(wrong.value)
    assert await books.rows() == []


async def test_a_row_that_lacks_something_is_the_datas_fault(books):
    with pytest.raises(IntegrityError):
        await books.commit(entry("r1", status=None))


# -- budgets and leases ----------------------------------------------------------------------------------------------------


async def test_billed_entries_count_in_every_budget_of_theirs_and_no_other(books):
    day = Budget("model:m:1", "tokens", TODAY)
    for budget in (K, O, day, Budget("key:other", "tokens", MONTH), Budget("team:t", "tokens", "total")):
        await books.limit(budget, 1000)
    kinds = [entry("r1"), entry("r2", kind="estimated"), entry("r3", kind="wasted"), entry("r6", kind="refused", attempt=0)]
    await books.commit(*kinds, entry("r4", day="2026-11-30"), entry("r5", day="2026-12-01"), entry("r7", team_id="t", user_id=None))
    assert await books.budget(K) == (60, 0, 0, 0)
    assert await books.budget(O) == (15, 0, 0, 0)
    assert await books.budget(day) == (45, 0, 0, 0)
    assert await books.budget(Budget("model:m:1", "tokens", "2026-12-01")) == (15, 0, 0, 0)
    assert await books.budget(Budget("model:m:1", "tokens", "2026-11-30")) == (15, 0, 0, 0)
    assert await books.budget(Budget("team:t", "tokens", "total")) == (15, 0, 0, 0)
    assert await books.budget(Budget("key:other", "tokens", MONTH)) == (0, 0, 0, 0)


async def test_the_budget_of_an_older_window_begins_with_what_the_ledger_has(books):
    await books.commit(entry("r1", day="2026-10-03"))
    await books.limit(K, 1000)
    await books.commit(entry("r2", day="2026-10-31"))
    assert await books.budget(Budget("key:k", "tokens", "2026-10")) == (30, 0, 0, 0)
    assert await books.budget(K) == (0, 0, 0, 0)


async def test_what_was_not_reserved_is_noted_as_far_as_it_is_beyond_the_limit(books):
    await books.limit(K, 110)
    (lent,) = await books.borrow(K, want=20)
    assert (lent.amount, lent.reserved, lent.limit) == (20, 20, 110)
    await books.commit(entry("r1", draws=[(K, 15)], completion_tokens=5))
    assert await books.budget(K) == (15, 5, 0, 0)
    await books.commit(entry("r2", draws=[(K, 5)], completion_tokens=115))
    assert await books.budget(K) == (140, 0, 30, 0)


async def test_a_lease_gives_no_more_than_is_in_it(books):
    await books.limit(K, 1000)
    (lent,) = await books.borrow(K, want=10)
    await books.commit(entry("r1", draws=[K, O]))
    left = max(0, lent.amount - 15)
    assert (await books.budget(K), await books.lease(K)) == ((15, left, 0, 0), left)


async def test_what_is_taken_back_after_a_reset_was_forgiven(books):
    await books.limit(K, 1000)
    await books.commit(entry("r1"))
    await books.run(quotas.reset, K.scope, K.unit, "month", TODAY)
    await books.commit(entry("r1", kind="adjust", prompt_tokens=-10, completion_tokens=-5, cost=-3))
    assert await books.budget(K) == (0, 0, 0, 0)


# -- what comes late -------------------------------------------------------------------------------------------------------


def receipt(request_id, attempt=1, epoch=1, **facts):
    return entry(request_id, attempt=attempt, recovered=True, lease_epoch=epoch, **facts)


@pytest.fixture
async def after(books):
    """The next run; the one before died with 100 tokens on loan."""
    await books.limit(K, 1000)
    await books.borrow(K)
    return await Books(books.database).begin()


async def test_a_receipt_draws_from_the_lease_of_its_epoch_once(books, after):
    assert len((await after.commit(receipt("r1", draws=[K]))).written) == 1
    assert len((await after.commit(receipt("r1", draws=[K]), receipt("r1", draws=[K]))).known) == 2
    assert await books.budget(K) == (15, 85, 0, 0)
    assert await books.lease(K, 1) == 85


async def test_a_receipt_of_an_earlier_attempt_than_the_billed_is_wasted(books, after):
    await books.commit(entry("r1", attempt=2, draws=[K]))
    done = await after.commit(receipt("r1", 1, draws=[K]))
    assert [one.kind for one in done.written] == ["wasted"]
    assert await books.budget(K) == (15, 85, 0, 0)


async def test_a_receipt_of_a_later_attempt_takes_back_the_earlier(books, after):
    await books.commit(entry("r1", day="2026-11-20"))
    done = await after.commit(receipt("r1", 2, completion_tokens=7), receipt("r1", 3, completion_tokens=8), receipt("r1", 2))
    assert [(one.attempt, one.kind) for one in done.written] == [(2, "settled"), (3, "settled")]
    assert [(one.attempt, one.completion_tokens, one.day) for one in done.adjusted] == [(1, -5, "2026-11-20"), (2, -7, TODAY)]
    assert await books.budget(K) == (18, 100, 0, 0)


#: What came of attempts of which one is to be billed.
ATTEMPTS = {
    1: {"outcome": "cancelled", "bytes_out": 40, "completion_tokens": 4},
    2: {"outcome": "done", "bytes_out": 10, "completion_tokens": 5},
    3: {"outcome": "cancelled", "bytes_out": 90, "completion_tokens": 9},
    4: {"outcome": "done", "bytes_out": 95, "completion_tokens": 0},
}


@pytest.mark.parametrize(("of", "billed"), [((1, 2, 3), 2), ((1, 3), 3), ((2, 3, 4), 2), ((1, 3, 4), 4)])
async def test_the_attempt_of_which_most_came_is_billed_in_whatever_order_they_come(books, after, of, billed):
    for order in permutations(of):
        name = "".join(map(str, order))
        made = [{number: receipt(f"{way}{name}", number, stream=True, **ATTEMPTS[number]) for number in order} for way in "abc"]
        for one in made[0].values():
            await after.commit(one)
        await after.commit(*made[1].values())
        first, *others = made[2].values()
        await after.commit(first)
        await after.commit(*others)
    query = "SELECT request_id, attempt, SUM(prompt_tokens) FROM ledger WHERE kind <> 'wasted' GROUP BY request_id, attempt"
    paid = [(request, attempt) for request, attempt, tokens in await books.sql(query) if tokens]
    assert sorted(paid) == sorted((f"{way}{''.join(map(str, order))}", billed) for order in permutations(of) for way in "abc")
    used, reserved, *_ = await books.budget(K)
    assert (used, reserved) == ((10 + ATTEMPTS[billed]["completion_tokens"]) * len(paid), 100)


async def test_what_is_taken_back_in_the_batch_that_brought_it_leaves_the_lease_once(books, after):
    done = await after.commit(receipt("r1", 1, draws=[K]), receipt("r1", 2, draws=[K]))
    assert [(one.attempt, one.kind, one.draws) for one in done.adjusted] == [(1, "adjust", ())]
    assert await books.budget(K) == (15, 70, 0, 0)
    assert await books.lease(K, 1) == 70


async def test_an_attempt_that_delivered_nothing_is_no_reason_to_take_anything_back(books, after):
    await books.commit(entry("r1", attempt=1, prompt_tokens=0, completion_tokens=0, cost=0))
    done = await after.commit(entry("r1", attempt=2, kind="wasted"), receipt("r1", 3), receipt("r2", kind="wasted"))
    assert (len(done.written), done.adjusted) == (3, [])


async def test_an_attempt_that_was_corrected_already_stays_as_it_is(books, after):
    await books.commit(entry("r1"), entry("r1", kind="adjust", prompt_tokens=-1, completion_tokens=0, cost=0))
    assert [one.kind for one in (await after.commit(receipt("r1", 2))).written] == ["wasted"]


async def test_a_live_entry_in_the_same_batch_counts_as_written(books, after):
    done = await after.commit(receipt("r1", 1), entry("r1", attempt=2))
    assert [(one.attempt, one.kind) for one in done.written] == [(1, "wasted"), (2, "settled")]


# -- totals ----------------------------------------------------------------------------------------------------------------


async def test_totals_are_those_of_billed_rows(books):
    await books.commit(
        entry("r1", cached_tokens=4), entry("r2", key_id="other", user_id=None), entry("r3", kind="wasted"), entry("r4", day="2026-11-22"),
        entry("r1", kind="adjust", prompt_tokens=-2, completion_tokens=0, cost=-1), entry("r5", kind="refused"),
    )  # fmt: skip

    async def of(by, since=TODAY, until=TODAY, **filters):
        async with books.database.read() as session:
            found = await totals.totals(session, by, since, until, filters)
        return [(one.name, one.tokens_in, one.tokens_out, one.cached, one.requests, one.cost) for one in found]

    assert await of("key") == [("k", 8, 5, 4, 1, 2), ("other", 10, 5, 0, 1, 3)]
    assert await of("user") == [("", 10, 5, 0, 1, 3), ("u", 8, 5, 4, 1, 2)]
    assert await of("day", until="2026-11-30") == [("2026-11-21", 18, 10, 4, 2, 5), ("2026-11-22", 10, 5, 0, 1, 3)]
    assert await of("day", until="2026-11-30", key="k", model="m:1") == [("2026-11-21", 8, 5, 4, 1, 2), ("2026-11-22", 10, 5, 0, 1, 3)]
    assert [name for name, *_ in await of("worker")] == ["w"]
    assert await of("org", since="2027-01-01", until="2027-01-01") == []
