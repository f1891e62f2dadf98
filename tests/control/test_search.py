"""Searches beside the loop that serves; what they find and how they end is tested with the checks of ledger and audit log."""

import asyncio
import threading

from mindgw.control import search


async def test_a_search_may_be_given_up_before_it_began(database):
    async def look(session):
        raise AssertionError
        yield

    one = search.Search(database, look, asyncio.Queue(1))
    one.stop()
    await asyncio.to_thread(one.run)
    one.stop()


async def test_it_works_in_a_thread_of_its_own_and_waits_for_whoever_takes_what_it_finds(database, monkeypatch):
    monkeypatch.setattr(search, "AHEAD", 2)
    made = []

    async def look(session):
        for number in range(1, 10):
            made.append((number, threading.get_ident()))
            yield number

    async for found in search.follow(database, look):
        assert len(made) <= found + 2 + 1 + 1  # what waits, what is handed over, what is being made
    assert found == 9
    assert threading.get_ident() not in {thread for _, thread in made}
