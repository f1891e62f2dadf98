"""Whoever changes the books behind the ledger's back is found out."""

from collections import Counter

import pytest

from mindgw.store import receipts, verify
from tests.store.books import KEY, NOON, Books, K, O, entry


@pytest.fixture
async def books(database):
    """Two commits of a first run, one of a second; triggers dropped."""
    books = await Books(database).begin()
    await books.limit(K, 1000)
    await books.limit(O, 1000)
    await books.borrow(K)
    await books.commit(entry("r1", draws=[K]), entry("r2", kind="wasted"), entry("r3", key_id="other"))
    await books.commit(entry("r4"), entry("r5", kind="refused", attempt=0))
    await (await Books(database).begin()).commit(entry("r6"))
    await books.unlock()
    return books


async def found(books):
    return {(one.invariant, one.where) for one in await books.broken()}


async def test_what_is_right_is_counted(books):
    counts = Counter()
    assert await books.broken(counts) == []
    assert +counts == {"budgets": 2, "leases": 1, "requests": 6, "rows": 6, "commits": 3, "epochs": 2}


async def test_nothing_is_right_too(database):
    assert await Books(database).broken() == []


async def test_large_books_are_read_in_pieces(database, monkeypatch):
    monkeypatch.setattr(verify, "PAGE", 3)
    monkeypatch.setattr(verify, "ROWS", 5)
    for run in range(5):
        books = await Books(database).begin()
        for number in range(7):
            await books.commit(*(entry(f"r{run}-{number}-{i}") for i in range(number)))
    counts = Counter()
    assert await books.broken(counts) == []
    assert (counts["rows"], counts["commits"], counts["epochs"], counts["requests"]) == (105, 30, 5, 105)
    await books.unlock()
    await books.sql("UPDATE ledger SET status = 201 WHERE request_id = 'r3-6-5'")
    assert await found(books) == {("I5", "commit 4.6")}


@pytest.mark.parametrize(
    "change",
    [
        "cost = 2",
        "key_id = 'x'",
        "model = ''",
        "stream = (1 = 1)",
        "ttft_ms = 0",
        "user_id = NULL",
        "started_at = '2026-11-21 12:00:00.000001+00'",
    ],
)
async def test_a_row_that_was_changed(books, change, kind):
    await books.sql(f"UPDATE ledger SET {change} WHERE request_id = 'r2'")
    assert await found(books) == {("I5", "commit 1.1")}


async def test_a_row_that_was_deleted(books):
    await books.sql("DELETE FROM ledger WHERE request_id = 'r1'")
    assert await found(books) == {("I5", "commit 1.1"), ("I1", "key:k tokens 2026-11"), ("I1", "org:o usd total")}


async def test_a_row_that_was_added(books):
    facts = ", ".join(entry("r").__struct_fields__[2:-3])
    for attempt, commit in ((7, "epoch, seq"), (8, "9, 9")):
        copied = f"SELECT 'r9', {attempt}, {facts}, {commit} FROM ledger WHERE request_id = 'r2'"
        await books.sql(f"INSERT INTO ledger (request_id, attempt, {facts}, epoch, seq) {copied}")
    assert await found(books) == {("I5", "commit 1.1"), ("I5", "commit 9.9")}


async def test_a_row_that_was_moved_to_another_commit(books):
    await books.sql("UPDATE ledger SET seq = 2 WHERE request_id = 'r2'")
    assert await found(books) == {("I5", "commit 1.1"), ("I5", "commit 1.2")}


async def test_a_commit_that_is_missing_in_the_middle(books):
    await books.sql("DELETE FROM ledger WHERE epoch = 1 AND seq = 1 AND kind = 'wasted'")
    await books.sql("DELETE FROM ledger_commits WHERE epoch = 1 AND seq = 1")
    assert await found(books) == {("I5", "commit 1.2"), ("I5", "commit 1.1")}


async def test_the_last_commit_when_it_is_missing(books):
    await books.sql("DELETE FROM ledger WHERE epoch = 2")
    await books.sql("DELETE FROM ledger_commits WHERE epoch = 2")
    await books.sql("UPDATE budgets SET used = 30 WHERE scope = 'key:k'")
    await books.sql("UPDATE budgets SET used = 9 WHERE scope = 'org:o'")
    assert await found(books) == {("I5", "epoch 2")}


async def test_the_last_commit_of_an_older_run_even_when_its_head_was_put_right(books):
    """The next run has begun after it."""
    await books.sql("DELETE FROM ledger WHERE epoch = 1 AND seq = 2")
    await books.sql("DELETE FROM ledger_commits WHERE epoch = 1 AND seq = 2")
    await books.sql("UPDATE budgets SET used = 30 WHERE scope = 'key:k'")
    await books.sql("UPDATE budgets SET used = 9 WHERE scope = 'org:o'")
    await books.sql("UPDATE epochs SET head_seq = 1, head = (SELECT hash FROM ledger_commits WHERE epoch = 1 AND seq = 1) WHERE id = 1")
    assert await found(books) == {("I5", "epoch 2")}


async def test_links_that_were_made_anew_without_the_key(books):
    await books.sql("UPDATE ledger_commits SET hash = prev WHERE epoch = 2")
    await books.sql("UPDATE epochs SET head = genesis WHERE id = 2")
    assert await found(books) == {("I5", "commit 2.1")}


async def test_links_that_do_not_hang_together(books):
    await books.sql("UPDATE ledger_commits SET prev = hash WHERE seq = 2")
    assert [one.what for one in await books.broken()] == [
        "it does not go on from the one before",
        "its rows are not those that were written",
    ]


async def test_an_epoch_that_was_made_to_begin_elsewhere_or_is_gone(books):
    await books.sql("UPDATE epochs SET after_seq = 1 WHERE id = 2")
    assert await found(books) == {("I5", "epoch 2")}
    await books.sql("DELETE FROM epochs WHERE id = 2")
    assert [one.what for one in await books.broken()] == ["it has 1 commits, and nobody knows of it"]


async def test_another_key(books):
    async with books.database.read() as session:
        assert {one.where async for one in verify.broken(session, KEY[:-1])} == {"commit 1.1", "commit 1.2", "commit 2.1"}


async def test_an_attempt_that_ended_twice(books):
    books = await Books(books.database).begin()
    await books.commit(entry("r7"))
    await books.commit(entry("r8", kind="wasted"))
    await books.sql("UPDATE ledger SET request_id = 'r7' WHERE request_id = 'r8'")
    assert await found(books) == {("I4", "r7"), ("I5", "commit 3.2")}


async def test_two_attempts_that_are_billed(books):
    await books.commit(entry("r7"), entry("r7", attempt=2), entry("r7", attempt=3))
    assert [(one.invariant, one.where) for one in await books.broken()] == [("I4", "r7")]
    await books.commit(*(entry("r7", attempt=i, kind="adjust", prompt_tokens=-10, completion_tokens=-5, cost=-3) for i in (1, 2)))
    assert await books.broken() == []


async def test_a_budget_that_drifts(books):
    await books.sql("UPDATE budgets SET used = used + 1 WHERE scope = 'key:k'")
    assert await found(books) == {("I1", "key:k tokens 2026-11")}
    await books.sql("UPDATE budgets SET used = used - 1, forgiven = forgiven + 1 WHERE scope = 'key:k'")
    assert await found(books) == {("I1", "key:k tokens 2026-11")}


async def test_leases_that_drift(books):
    await books.sql("UPDATE leases SET amount = amount - 1")
    assert await found(books) == {("I2", "key:k tokens 2026-11")}
    await books.sql("UPDATE budgets SET reserved = reserved - 1 WHERE scope = 'key:k'")
    assert await found(books) == set()
    await books.sql("UPDATE leases SET scope = 'key:gone'")
    assert await found(books) == {("I2", "key:k tokens 2026-11"), ("I2", "key:gone tokens 2026-11")}


async def test_more_than_the_limit(books):
    await books.sql("UPDATE budgets SET lim = 50 WHERE scope = 'key:k'")
    assert await found(books) == {("I3", "key:k tokens 2026-11")}


async def test_a_receipt_whose_row_is_gone(books):
    """One with a tag that nobody can read is about no request; and of an attempt that a worker turned down there is no row."""
    facts = {"outcome": "done", "prompt": 1, "completion": 1, "source": "engine", "prev": b"0", "hash": b"1", "at": NOON}
    told = [("r1", 1), ("", 0), ("r2", 1), ("r1", 2), ("r5", 0), ("r99", 1)]
    kept = [receipts.NewReceipt(seq=seq, request_id=id, attempt=attempt, **facts) for seq, (id, attempt) in enumerate(told, 1)]
    await books.run(receipts.append, "w", kept, b"s", NOON)
    counts = Counter()
    assert {(one.invariant, one.where) for one in await books.broken(counts)} == {("I6", "r99.1")}
    assert counts["receipts"] == 5


async def test_a_row_that_belongs_to_nobody(books):
    await books.commit(
        entry("r7", key_id=""), entry("r8", org_id=""), entry("r9", outcome="lease", draws=[(K, 0)], prompt_tokens=0, completion_tokens=0)
    )
    assert await found(books) == {("I7", "r7.1 settled"), ("I7", "r8.1 settled"), ("I7", "r9.1 settled")}


async def test_heads_are_the_ends_that_no_later_chain_goes_on_from(books):
    (head,) = await books.run(verify.heads)
    assert (head.epoch, head.seq) == (2, 1), "the first run ends where the second begins"
    elsewhere = await Books(books.database, "elsewhere").begin()
    assert await books.run(verify.heads) == [head], "nothing stands on it yet"
    await elsewhere.commit(entry("r7"))
    assert await books.run(verify.heads) == [verify.Head(3, 1, elsewhere.writer.head)]
    here = await Books(books.database).begin()
    await here.commit(entry("r8"))
    assert [(head.epoch, head.seq) for head in await books.run(verify.heads)] == [(3, 1), (4, 1)]


async def test_a_tail_that_was_cut_off_is_missed_by_whoever_noted_the_head(books):
    """Nothing in the database itself can tell: the limit of the promise."""
    (noted,) = await books.run(verify.heads)
    await books.sql("DELETE FROM ledger WHERE epoch = 2")
    await books.sql("DELETE FROM ledger_commits WHERE epoch = 2")
    await books.sql("UPDATE epochs SET head = genesis, head_seq = 0 WHERE id = 2")
    await books.sql("UPDATE budgets SET used = 30 WHERE scope = 'key:k'")
    await books.sql("UPDATE budgets SET used = 9 WHERE scope = 'org:o'")
    assert await books.broken() == []
    assert noted not in await books.run(verify.heads)
