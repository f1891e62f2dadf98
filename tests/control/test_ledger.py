"""The rows of a request, and the check of the whole ledger with its words on the way."""

import asyncio
import threading

import pytest

from mindgw.control import ledger, search
from mindgw.control.ledger import Checked, Checking, Wrong
from mindgw.errors import NotFound
from mindgw.store import verify
from mindgw.store.verify import Broken
from tests.control.world import Place
from tests.store.books import KEY


@pytest.fixture
async def place(database):
    return await Place(database).open()


async def words(place, key=KEY):
    """All but how far it is, of which a slow machine hears more."""
    return [word async for word in ledger.check(place.database, key) if not isinstance(word, Checking)]


async def test_rows_of_a_request_are_shown_with_names(place):
    await place.use("r", attempt=1, kind="wasted")
    await place.use("r", attempt=2, worker_id="", user_id=None, cost=2_000_000)
    await place.use("other")
    first, second = (await ledger.entries(place.database, "r")).items
    assert (first.attempt, first.kind, first.key, first.team, first.user, first.org) == (
        1,
        "wasted",
        "bot",
        "nlp",
        "ana@example.org",
        "default",
    )
    assert (first.worker, second.worker, second.user, second.cost_usd) == ("w", "", "", "2.00")
    assert (second.seq, second.tokens_in, second.tokens_out) == (2, 10, 5)
    with pytest.raises(NotFound):
        await ledger.entries(place.database, "nothing")


async def test_books_that_are_right_are_told_so(place):
    await place.use("r1")
    await place.use("r2")
    (last,) = await words(place)
    assert isinstance(last, Checked) and (last.ok, last.broken) == (True, 0)
    assert {"rows": 2, "commits": 2, "requests": 2}.items() <= last.checked.items()
    assert last.heads == [ledger.HeadView(place.books.epoch, 2, place.books.writer.head.hex())]


async def test_every_thing_that_is_wrong_is_told(place):
    await place.use("r1")
    await place.books.unlock()
    await place.books.sql("UPDATE ledger SET prompt_tokens = 99")
    *told, last = await words(place)
    assert [(word.invariant, word.where) for word in told] == [("I5", f"commit {place.books.epoch}.1")]
    assert all(word.what for word in told)
    assert (last.ok, last.broken) == (False, 1)


async def test_another_key_fits_no_chain(place):
    await place.use("r1")
    found = await words(place, b"x" * 32)
    assert found[-1].ok is False and found[0].invariant == "I5"


def played(monkeypatch, *steps):
    """A FAKE of the store's check: yields what is broken, calls what can be called."""

    async def broken(session, key, checked):
        for step in steps:
            checked["rows"] += 1
            if callable(step):
                await step()
            else:
                yield step

    monkeypatch.setattr(verify, "broken", broken)


async def test_a_long_check_says_how_far_it_is(place, monkeypatch):
    monkeypatch.setattr(search, "PERIOD", 0.01)
    go = threading.Event()
    played(monkeypatch, lambda: asyncio.to_thread(go.wait), Broken("I1", "x", "y"))
    seen = []
    async for word in ledger.check(place.database, KEY):
        seen.append(word)
        if seen[-3:] == [Checking(checked={"rows": 1})] * 3:
            go.set()
    first, last = (word for word in seen if not isinstance(word, Checking))
    assert isinstance(first, Wrong) and last == Checked(ok=False, broken=1, checked={"rows": 2})


async def test_what_is_wrong_is_told_up_to_a_number_and_counted_beyond_it(place, monkeypatch):
    monkeypatch.setattr(ledger, "MOST", 3)
    played(monkeypatch, *[Broken("I4", str(number), "twice") for number in range(10)])
    *wrong, last = await words(place)
    assert [word.where for word in wrong] == ["0", "1", "2"] and last.broken == 10


async def test_a_check_that_cannot_go_on_raises(place, monkeypatch):
    async def fail():
        raise OSError("no disk")

    played(monkeypatch, Broken("I1", "x", "y"), fail)
    check = ledger.check(place.database, KEY)
    assert (await anext(check)).where == "x"
    with pytest.raises(OSError, match="no disk"):
        await anext(check)


async def test_whoever_stops_listening_ends_the_check(place, monkeypatch):
    began, ended = threading.Event(), threading.Event()

    async def wait():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    played(monkeypatch, Broken("I1", "x", "y"), wait)
    check = ledger.check(place.database, KEY)
    assert isinstance(await anext(check), Wrong)
    await asyncio.to_thread(began.wait)
    await check.aclose()
    assert ended.is_set()
