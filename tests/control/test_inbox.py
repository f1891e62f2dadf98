"""Receipts come in: each is billed once, whatever dies on the way; none is acknowledged before it is in the ledger; nobody is believed more
than he can show."""

import asyncio
import contextlib
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw import clock
from mindgw.control import inbox as rooms
from mindgw.control import recount
from mindgw.core.quota import Budget
from mindgw.gateway.bill import UNSEEN
from mindgw.store import epochs
from mindgw.store.entries import MOST, Entry, check
from mindgw.store.tables import Epoch
from mindgw_agent import wire
from mindgw_agent.delivery import Delivery
from mindgw_agent.wire import Receipt
from tests.control.receiving import NOON, PRICE, STARTED, TODAY, TOKENS, USD, Agent, Site, tag


@pytest.fixture
async def site(database, tmp_path):
    made = Site(database, tmp_path)
    await made.limits()
    return made


def sealed(server, agent, *requests, **facts):
    """Tags of this server for this agent."""
    return [server.seal.seal(tag(request, server.books.epoch, **facts), agent.id) for request in requests]


async def died(site, agent, *requests, **facts):
    """A server that gave the agent these requests and is gone; and the one that comes after it."""
    old = await site.server()
    await old.borrow(TOKENS, USD)
    await old.books.linked(agent.id)
    tags = sealed(old, agent, *requests, **facts)
    return tags, await site.server()


# -- a server that is gone ---------------------------------------------------------------------------------------------


async def test_what_a_dead_server_never_wrote_is_billed_by_its_receipt_and_its_loans_come_back(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2")
    agent.wrote(*tags)
    assert (await site.budget())[1] > 30
    agent.send(server)
    assert agent.received == []
    await server.inbox.work()
    assert agent.received == [2]
    assert agent.outbox.waiting == 0
    assert await site.rows() == [("r1", 1, "settled", 10, 5), ("r2", 1, "settled", 10, 5)]
    assert await site.budget() == (30, 0)
    assert await site.budget(USD) == (50, 0)
    assert await site.kept() == [(1, "r1", 1), (2, "r2", 1)]
    assert (server.inbox.recovered, server.inbox.booked, server.inbox.forged, server.inbox.mismatches) == (2, 2, 0, 0)
    assert await site.told() == []
    assert await site.broken() == []
    ended = await site.sql("SELECT id FROM epochs WHERE ended_at IS NOT NULL")
    assert len(ended) == 1


async def test_a_receipt_takes_out_of_the_lease_what_it_used_and_leaves_the_rest_to_receipts_to_come(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1")
    before = (await site.budget())[1]
    agent.wrote(*tags)
    agent.send(server, *(agent.signed(replace(batch, clear=False)) for batch in agent.batches()))
    await server.inbox.work()
    assert await site.budget() == (15, before - 15)
    assert await site.broken() == []
    agent.send(server)
    await server.inbox.work()
    assert await site.budget() == (15, 0)
    assert await site.broken() == []


async def test_a_row_of_a_receipt_says_all_that_the_tag_and_the_agent_know(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", estimate=12)
    agent.wrote(*tags, outcome="cancelled", cached=4)
    agent.send(server)
    await server.inbox.work()
    names = "key_id, user_id, team_id, org_id, model, endpoint, status, outcome, error_code, cached_tokens, source"
    (row,) = await site.sql(f"SELECT {names} FROM ledger")
    assert row == ("k", "u", None, "o", "m:1", "/v1/chat/completions", 499, "cancelled", "server_lost", 4, "engine")
    names = 'queued_ms, ttft_ms, total_ms, bytes_out, cost, price_version, "over", day, worker_id'
    (row,) = await site.sql(f"SELECT {names} FROM ledger")
    assert row == (20, None, 900, 50, 25, "p1", 3, TODAY, agent.id)


async def test_attempts_that_used_nothing_are_not_billed(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1")
    agent.wrote(*tags, outcome="failed", prompt=0, completion=0, bytes=0)
    agent.send(server)
    await server.inbox.work()
    assert await site.rows() == [("r1", 1, "wasted", 0, 0)]
    assert await site.sql("SELECT status FROM ledger") == [(502,)]
    assert await site.budget() == (0, 0)
    assert await site.broken() == []


async def test_what_the_dead_server_wrote_itself_is_not_written_again(site):
    agent = await site.agent()
    old = await site.server()
    await old.borrow(TOKENS, USD)
    await old.books.linked(agent.id)
    agent.wrote(*sealed(old, agent, "r1", "r2"))
    await old.settle("r1", draws=True)
    server = await site.server()
    agent.send(server)
    await server.inbox.work()
    assert await site.rows() == [("r1", 1, "settled", 10, 5), ("r2", 1, "settled", 10, 5)]
    assert await site.budget() == (30, 0)
    assert server.inbox.recovered == 1
    assert await site.broken() == []


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_attempts_the_later_is_billed_whichever_agent_comes_first(site, first):
    """The second attempt was given to another worker; the server died before it wrote down that the first had failed."""
    agents = [await site.agent("one"), await site.agent("two")]
    old = await site.server()
    await old.borrow(TOKENS, USD)
    for attempt, agent in enumerate(agents, 1):
        await old.books.linked(agent.id)
        agent.wrote(*sealed(old, agent, "r1", attempt=attempt), outcome="failed" if attempt == 1 else "done")
    server = await site.server()
    for agent in (agents[first], agents[1 - first]):
        agent.send(server)
        await server.inbox.work()
        assert await site.broken() == []
    sums = dict(await site.sql("SELECT attempt, SUM(prompt_tokens) FROM ledger WHERE kind <> 'wasted' GROUP BY attempt"))
    assert {attempt: tokens for attempt, tokens in sums.items() if tokens} == {2: 10}
    assert await site.budget() == (15, 0)


#: What two agents wrote of attempts that ran at once: outcome, bytes and tokens of the one that the client had, and of the other.
PAIRS = {
    "one was whole": (("done", 50, 5), ("cancelled", 900, 90)),
    "one had more": (("cancelled", 50, 5), ("cancelled", 40, 4)),
    "one failed with more": (("failed", 50, 5), ("cancelled", 40, 4)),
    "one said nothing": (("cancelled", 50, 5), ("done", 40, 0)),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("served", [1, 2])
@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_attempts_at_once_the_one_that_its_client_had_is_billed(site, pair, served, first):
    """The server died before it wrote down that the other one was outrun: both have the same budgets in their tags."""
    agents = [await site.agent("one"), await site.agent("two")]
    old = await site.server()
    await old.borrow(TOKENS, USD)
    for agent, attempt, (outcome, size, tokens) in zip(agents, (served, 3 - served), PAIRS[pair], strict=True):
        await old.books.linked(agent.id)
        agent.wrote(*sealed(old, agent, "r1", attempt=attempt), outcome=outcome, bytes=size, completion=tokens)
    server = await site.server()
    for agent in (agents[first], agents[1 - first]):
        agent.send(server)
        await server.inbox.work()
        assert await site.broken() == []
    sums = dict(
        await site.sql("SELECT attempt, SUM(prompt_tokens + completion_tokens) FROM ledger WHERE kind <> 'wasted' GROUP BY attempt")
    )
    assert {attempt: tokens for attempt, tokens in sums.items() if tokens} == {served: 15}
    assert (await site.budget(), await site.budget(USD)) == ((15, 0), (25, 0))


async def test_leases_wait_until_every_worker_of_the_dead_server_has_told_all(site):
    one, two = await site.agent("one"), await site.agent("two")
    old = await site.server()
    await old.borrow(TOKENS)
    for agent in (one, two):
        await old.books.linked(agent.id)
        agent.wrote(*sealed(old, agent, f"r-{agent.id}", budgets=(TOKENS,)))
    lent = (await site.budget())[1]
    server = await site.server()
    one.send(server)
    await server.inbox.work()
    assert await site.budget() == (15, lent - 15)
    two.send(server)
    await server.inbox.work()
    assert await site.budget() == (30, 0)


async def test_a_worker_without_receipts_says_so_too(site):
    agent = await site.agent()
    _, server = await died(site, agent)
    agent.send(server)
    await server.inbox.work()
    assert agent.received == [0]
    assert await site.budget() == (0, 0)
    assert await site.kept() == []


async def test_a_link_clears_once(site):
    agent = await site.agent()
    server = await site.server()
    agent.send(server)
    await server.inbox.work()
    writes = server.database.writes
    agent.send(server)
    await server.inbox.work()
    assert server.database.writes == writes
    server.inbox.forget(agent.id)
    agent.send(server)
    await server.inbox.work()
    assert server.database.writes == writes + 1


# -- a server that lives -----------------------------------------------------------------------------------------------


async def test_what_this_server_settles_itself_waits_for_its_row(site):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, "r1", "r2"))
    agent.send(server)
    await server.inbox.work()
    await server.settle("r1")
    await server.inbox.work()
    assert agent.received == []
    assert await site.kept() == []
    await server.settle("r2")
    await server.inbox.work()
    assert agent.received == [2]
    assert await site.rows() == [("r1", 1, "settled", 10, 5), ("r2", 1, "settled", 10, 5)]
    assert (server.inbox.booked, server.inbox.recovered, server.inbox.waiting) == (2, 0, 0)


async def test_a_batch_that_waits_bills_what_is_old_at_once_and_once(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "old")
    agent.wrote(*tags, *sealed(server, agent, "new"))
    agent.send(server)
    for _ in range(3):
        await server.inbox.work()
        assert await site.rows() == [("old", 1, "settled", 10, 5)]
    await server.settle("new")
    await server.inbox.work()
    assert agent.received == [2]
    assert server.inbox.recovered == 1
    assert await site.broken() == []


@pytest.fixture
def at(monkeypatch):
    """Moves the clock to so many seconds from now."""
    start = now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now)

    def move(seconds):
        nonlocal now
        now = start + seconds

    return move


async def test_a_row_that_waits_for_long_is_told(site, at, caplog):
    agent = await site.agent()
    server = await site.server()
    server.inbox.runs = lambda request_id: request_id == "r1"
    agent.wrote(*sealed(server, agent, "r1"))
    agent.send(server)
    await server.inbox.work()
    at(rooms.LONG + 1)
    await server.inbox.work()
    await server.inbox.work()
    assert [record.message for record in caplog.records if "wait for" in record.message] == [
        f"worker {agent.id}: 1 receipts wait for 61 s for requests that are not settled here"
    ]
    assert agent.received == []


async def test_a_row_that_can_never_be_written_does_not_hold_up_its_worker(site, at):
    """It was set aside; the receipt is kept, and somebody is told."""
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, "lost", "r2"))
    agent.send(server)
    await server.settle("r2")
    await server.inbox.work()
    at(rooms.LONG - 1)
    await server.inbox.work()
    assert (agent.received, await site.kept()) == ([], [])
    at(rooms.LONG + 1)
    await server.inbox.work()
    assert agent.received == [2]
    assert await site.kept() == [(1, "lost", 1), (2, "r2", 1)]
    assert await site.rows() == [("r2", 1, "settled", 10, 5)]
    examples = [{"request_id": "lost", "attempt": 1}]
    assert await site.told() == [("receipt.orphan", {"after": 0, "last": 2, "count": 1, "examples": examples})]
    agent.wrote(*sealed(server, agent, "r3"))
    agent.send(server)
    await server.inbox.work()
    assert agent.received == [2]  # the next one has its own minute
    await server.settle("r3")
    await server.inbox.work()
    assert agent.received == [2, 3]


async def test_a_request_that_runs_for_long_is_waited_for_until_its_row_is_there(site, at):
    """The minute begins when it is over: what it did is written soon after that, not before."""
    agent = await site.agent()
    server = await site.server()
    running = {"r1"}
    server.inbox.runs = running.__contains__
    agent.wrote(*sealed(server, agent, "r1"))
    agent.send(server)
    for minutes in range(11):
        at(minutes * 60)
        await server.inbox.work()
    running.clear()
    at(599 + rooms.LONG)
    await server.inbox.work()
    assert agent.received == []
    await server.settle("r1")
    await server.inbox.work()
    assert agent.received == [1]
    assert await site.told() == []


@pytest.mark.parametrize("late", [False, True])
async def test_what_is_never_settled_passes_when_the_database_is_back(site, at, late):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, "lost"))
    agent.send(server)
    await server.inbox.work()
    at(rooms.LONG + 1)
    server.database.writes, server.database.fails, server.database.late = 0, 1, late
    with contextlib.suppress(OSError):
        await server.inbox.work()
    assert agent.received == []
    await server.inbox.work()
    assert agent.received == [1]
    assert [action for action, _ in await site.told()] == ["receipt.orphan"]


async def test_a_broken_batch_about_a_lost_row_passes_too(site, at):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, "r1", "r2", "r3"))
    agent.send(server, doctored(agent, "doctored"))
    await server.inbox.work()
    at(rooms.LONG + 1)
    await server.inbox.work()
    assert agent.received == [3]
    assert sorted(action for action, _ in await site.told()) == ["receipt.broken", "receipt.orphan"]


# -- another server that lives -----------------------------------------------------------------------------------------


async def beats(site, epoch, seconds):
    """Its last sign of life was so many seconds ago."""
    async with site.database.write() as session:
        (await session.get(Epoch, epoch)).beat_at = await epochs.now(session) - timedelta(seconds=seconds)


async def test_what_another_server_is_about_to_settle_waits_for_it(site):
    agent = await site.agent()
    there = await site.server("there")
    await there.borrow(TOKENS, USD)
    server = await site.server()
    agent.wrote(*sealed(there, agent, "r1", "r2"))
    agent.send(server)
    await server.inbox.work()
    assert (agent.received, await site.rows()) == ([], [])
    lent = (await site.budget())[1]
    for name in ("r1", "r2"):
        await there.settle(name, draws=True)
    await server.inbox.work()
    assert agent.received == [2]
    assert await site.budget() == (30, lent - 30)
    assert server.inbox.recovered == 0
    assert await site.broken() == []


async def test_it_is_waited_for_however_long_it_takes(site, at):
    agent = await site.agent()
    there, server = await site.server("there"), await site.server()
    agent.wrote(*sealed(there, agent, "r1"))
    agent.send(server)
    for minutes in range(5):
        at(minutes * (rooms.LONG + 1))
        await server.inbox.work()
    assert (agent.received, await site.rows(), await site.told()) == ([], [], [])


@pytest.mark.parametrize("how", ["silent", "ended"])
async def test_when_the_other_server_is_gone_its_receipts_are_booked(site, how):
    agent = await site.agent()
    there, server = await site.server("there"), await site.server()
    await there.borrow(TOKENS, USD)
    agent.wrote(*sealed(there, agent, "r1"))
    agent.send(server)
    await server.inbox.work()
    assert agent.received == []
    if how == "ended":
        await there.books.end()
    else:
        await beats(site, there.books.epoch, 61)
    await server.inbox.work()
    assert agent.received == [1]
    assert await site.rows() == [("r1", 1, "settled", 10, 5)]
    assert server.inbox.recovered == 1
    assert await site.broken() == []


async def test_what_is_old_is_billed_while_another_server_is_waited_for(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "old")
    there = await site.server("there")
    agent.wrote(*tags, *sealed(there, agent, "new"))
    agent.send(server)
    await server.inbox.work()
    assert (agent.received, await site.rows()) == ([], [("old", 1, "settled", 10, 5)])


async def test_a_server_that_was_only_silent_does_not_lose_its_lease_twice(site):
    agent = await site.agent()
    there, server = await site.server("there"), await site.server()
    await there.borrow(TOKENS, USD)
    lent = (await site.budget())[1]
    agent.wrote(*sealed(there, agent, "r1"))
    await beats(site, there.books.epoch, 61)
    agent.send(server, *(agent.signed(replace(batch, clear=False)) for batch in agent.batches()))
    await server.inbox.work()
    assert await site.budget() == (15, lent - 15)
    await there.settle("r1", draws=True)
    assert await site.budget() == (15, lent - 15)
    assert await site.broken() == []


async def test_a_server_that_was_taken_for_dead_still_settles_its_own(site):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, "r1"))
    agent.send(server)
    await server.inbox.work()
    async with site.database.write() as session:
        (await session.get(Epoch, server.books.epoch)).ended_at = NOON
    await server.books.beat()
    server.seal.restart(server.books.epoch)
    agent.wrote(*sealed(server, agent, "r2"))
    agent.send(server)
    await server.inbox.work()
    assert agent.received == []
    await server.settle("r1")
    await server.settle("r2")
    await server.inbox.work()
    assert agent.received == [2]
    assert server.inbox.recovered == 0


@pytest.mark.parametrize(
    ("row", "said", "apart"),
    [
        ({"completion": 100}, {"completion": 100}, False),
        ({"completion": 100}, {"completion": 116}, False),
        ({"completion": 100}, {"completion": 117}, True),
        ({"completion": 1000}, {"completion": 950}, False),
        ({"completion": 1000}, {"completion": 949}, True),
        ({"prompt": 100}, {"prompt": 200}, True),
        ({"prompt": 100, "source": "counted"}, {"prompt": 200}, False),
        ({"prompt": 100}, {"prompt": 200, "source": "counted"}, False),
        ({"completion": 1, "source": "counted"}, {"completion": 100, "source": "counted"}, True),
        ({"completion": 1, "source": "estimated"}, {"completion": 100}, False),
        ({"completion": 1}, {"completion": 100, "source": "estimated"}, False),
        ({"completion": 1, "outcome": "cancelled"}, {"completion": 100}, False),
        ({"completion": 1}, {"completion": 100, "outcome": "cancelled"}, False),
        ({"completion": 1, "kind": "wasted"}, {"completion": 100}, False),
    ],
)
def test_server_and_agent_count_alike_or_it_is_told(row, said, apart):
    base = {"request_id": "r", "key_id": "k", "org_id": "o", "model": "m", "endpoint": "/", "status": 200, "started_at": NOON}
    facts = {"kind": "settled", "outcome": "done", "source": "engine", "prompt_tokens": 10}
    counts = {f"{name}_tokens" if name in ("prompt", "completion") else name: value for name, value in row.items()}
    claim = Receipt(**({"tag": b"", "outcome": "done", "source": "engine", "prompt": 10, "bytes": 10_000} | said))
    assert recount.differs(Entry(**(base | facts | counts)), claim) == apart


async def test_many_mismatches_are_one_event_with_a_few_examples(site):
    agent = await site.agent()
    server = await site.server()
    names = [f"r{n}" for n in range(30)]
    for name in names:
        await server.settle(name)
    agent.wrote(*sealed(server, agent, *names), completion=500, bytes=9000)
    agent.send(server)
    await server.inbox.work()
    ((action, detail),) = await site.told()
    assert action == "metering.mismatch"
    assert detail["count"] == server.inbox.mismatches == 30
    assert len(detail["examples"]) == rooms.EXAMPLES
    assert detail["examples"][0] == {"request_id": "r0", "attempt": 1, "ledger": [10, 5], "receipt": [10, 500]}


# -- what comes again --------------------------------------------------------------------------------------------------


async def test_what_comes_again_is_acknowledged_again_and_nothing_else(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2", "r3")
    agent.wrote(*tags, completion=500 + UNSEEN)
    again = agent.batches(size=2)
    for batches in (again, again, again[:1], again):
        server.inbox.forget(agent.id)
        agent.send(server, *batches)
        await server.inbox.work()
    assert agent.received == [2, 3, 2, 3, 2, 2, 3]
    assert await site.rows() == [(f"r{n}", 1, "settled", 10, 50 + UNSEEN) for n in (1, 2, 3)]
    assert [(action, detail["count"]) for action, detail in await site.told()] == [("metering.mismatch", 2)]
    assert (server.inbox.recovered, server.inbox.booked, server.inbox.mismatches) == (3, 3, 3)
    assert await site.broken() == []


async def test_a_batch_that_is_sent_again_takes_the_place_of_what_waits(site):
    agent = await site.agent()
    server = await site.server()
    tags = sealed(server, agent, "r1", "r2", "r3", "r4")
    agent.wrote(*tags[:3])
    agent.send(server, size=2)
    agent.send(server, *(replace(batch, clear=False) for batch in agent.batches(size=1)))
    assert server.inbox.waiting == 3
    await server.inbox.work()
    agent.wrote(tags[3])
    agent.send(server, replace(agent.batches()[0], clear=False))
    assert server.inbox.waiting == 1
    for n in (1, 2, 3, 4):
        await server.settle(f"r{n}")
    await server.inbox.work()
    assert agent.received == [4]
    assert [seq for seq, _, _ in await site.kept()] == [1, 2, 3, 4]


async def test_that_a_worker_has_nothing_more_is_not_forgotten_when_it_sends_on(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1")
    blank = agent.batches()[0]
    agent.wrote(*tags)
    agent.send(server, blank, replace(agent.batches()[0], clear=False))
    assert server.inbox.waiting == 1
    await server.inbox.work()
    assert await site.budget() == (15, 0)


async def test_it_may_come_while_it_is_being_booked(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1")
    agent.wrote(*tags)
    (batch,), (again,) = agent.batches(), agent.batches()
    reached, go = asyncio.Event(), asyncio.Event()

    async def slow(worker_id):
        reached.set()
        await go.wait()
        return await site.public_key(worker_id)

    server.inbox._public_key = slow
    agent.send(server, batch)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.inbox.work())
        await reached.wait()
        agent.send(server, again)
        go.set()
    assert agent.received == [1, 1]
    assert await site.rows() == [("r1", 1, "settled", 10, 5)]
    assert server.inbox.waiting == 0


async def test_a_link_that_is_gone_hears_nothing_and_the_next_one_hears_all(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2")
    agent.wrote(*tags)
    (batch,) = agent.batches()
    heard = []

    async def gone(worker_id):
        server.inbox.forget(agent.id)
        server.inbox._public_key = site.public_key
        return await site.public_key(worker_id)

    server.inbox._public_key = gone
    server.inbox.take(agent.id, batch, heard.append)
    await server.inbox.work()
    assert heard == []
    assert len(await site.rows()) == 2
    agent.send(server)
    server.inbox.forget(agent.id, heard.append)  # the end of the old link is noticed late
    assert server.inbox.waiting == 1
    await server.inbox.work()
    assert agent.received == [2]
    assert len(await site.rows()) == 2
    server.inbox.forget(agent.id, agent.acknowledge)
    server.inbox.forget("nobody")
    assert server.inbox.waiting == 0


async def test_a_new_link_of_a_worker_begins_with_nothing(site):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, "r1"))
    server.inbox.take(agent.id, agent.batches()[0], [].append)
    agent.send(server)
    assert server.inbox.waiting == 1


async def test_an_agent_that_does_not_wait_for_an_answer_is_told(site):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(*sealed(server, agent, *(f"r{n}" for n in range(rooms.WAITING + 1))))
    batches = agent.batches(size=1)
    agent.send(server, *batches[:-1])
    with pytest.raises(wire.ProtocolError, match="50 batches"):
        agent.send(server, batches[-1])
    assert server.inbox.waiting == rooms.WAITING


# -- who is not believed -----------------------------------------------------------------------------------------------


async def test_tags_of_others_are_counted_and_not_billed(site):
    agent, other = await site.agent(), await site.agent("other")
    tags, server = await died(site, agent, "r1", "r2")
    (stolen,) = sealed(server, other, "r3")
    agent.wrote(tags[0], stolen, b"", b"x" * 200, bytes([tags[1][0] ^ 1]) + tags[1][1:])
    agent.send(server)
    await server.inbox.work()
    assert agent.received == [5]
    assert await site.rows() == [("r1", 1, "settled", 10, 5)]
    assert await site.told() == [("receipt.forged", {"after": 0, "last": 5, "count": 4})]
    assert (server.inbox.forged, server.inbox.booked) == (4, 1)
    assert await site.kept() == [(1, "r1", 1), *((n, "", 0) for n in (2, 3, 4, 5))]
    agent.send(server)
    await server.inbox.work()
    assert len(await site.told()) == 1


async def test_a_tag_that_is_used_again_bills_nothing(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1")
    agent.wrote(*tags, *tags)
    agent.wrote(*tags, completion=100, bytes=1000)
    agent.send(server, size=2)
    await server.inbox.work()
    assert await site.rows() == [("r1", 1, "settled", 10, 5)]
    assert [action for action, _ in await site.told()] == ["metering.mismatch"]
    assert agent.received == [2, 3]
    assert await site.broken() == []


def doctored(agent, how):
    """A batch of three receipts, changed on the way or by the agent; its signature fits unless it is about that."""
    (batch,) = agent.batches()
    one, two, three = batch.receipts
    changes = {
        "reordered": {"receipts": [two, one, three]},
        "truncated": {"receipts": [one, two]},
        "thinned": {"receipts": [one, three]},
        "doctored": {"receipts": [one, replace(two, completion=1), three]},
        "another head": {"head": bytes(32)},
        "another beginning": {"prev": bytes(32)},
        "no new chain": {"gap": "the disk was lost"},
    }
    return agent.signed(replace(batch, **changes[how])) if how in changes else agent.signed(batch, signature=b"x" * 64)


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("reordered", "order"),
        ("truncated", "head"),
        ("thinned", "order"),
        ("doctored", "head"),
        ("another head", "head"),
        ("another beginning", "head"),
        ("no new chain", "gap"),
        ("unsigned", "signature"),
    ],
)
async def test_a_broken_batch_is_told_and_not_kept_and_what_it_names_is_billed_once(site, how, fault, caplog):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2", "r3")
    agent.wrote(*tags)
    whole = agent.batches()
    bad = doctored(agent, how)
    server.inbox.take(agent.id, bad, agent.acknowledge)
    await server.inbox.work()
    assert agent.received == [bad.last]
    assert await site.kept() == []
    ((action, detail),) = await site.told()
    assert action == "receipt.broken"
    assert detail["fault"] == fault
    assert detail["why"] in caplog.text
    assert {row[0] for row in await site.rows()} == {tags_of.request_id for tags_of in map(opened(server, agent), bad.receipts)}
    agent.send(server, *whole)
    await server.inbox.work()
    assert sorted(row[0] for row in await site.rows()) == ["r1", "r2", "r3"]
    assert [seq for seq, _, _ in await site.kept()] == [1, 2, 3]
    assert await site.broken() == []


def opened(server, agent):
    return lambda receipt: server.seal.open(receipt.tag, agent.id)


async def test_an_agent_that_the_server_does_not_know_has_no_key(site):
    agent = Agent("nobody", b"k" * 32, site.path / "outbox")
    tags, server = await died(site, agent, "r1")
    agent.wrote(*tags)
    agent.send(server)
    await server.inbox.work()
    assert [detail["fault"] for _, detail in await site.told()] == ["signature"]
    assert await site.rows() == [("r1", 1, "settled", 10, 5)]


@pytest.mark.parametrize("reread", [False, True])
@pytest.mark.parametrize("before", [1, 2, 3])
async def test_an_agent_that_was_put_back_is_billed_all_the_same_until_its_chain_goes_on(site, before, reread):
    """A copy of its disk was restored, or the agent runs twice: numbers that are kept come again with something else."""
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2", "r3", "r4", "r5", "r6")
    agent.wrote(tags[0])
    agent.send(server)
    await server.inbox.work()
    saved = agent.path.read_bytes()
    agent.wrote(*tags[1:3])
    agent.send(server)
    await server.inbox.work()
    agent.path.write_bytes(saved)
    copy = Agent(agent.id, agent.key, agent.path)
    if reread:
        server.inbox.forget(agent.id)
    copy.wrote(*tags[3 : 3 + before])
    copy.send(server)
    await server.inbox.work()
    assert copy.received == [1 + before]
    assert [seq for seq, _, _ in await site.kept()] == [1, 2, 3]
    told = await site.told()
    assert [(action, detail["fault"]) for action, detail in told] == [("receipt.fork", "fork")]
    more = sealed(server, copy, *(f"s{n}" for n in range(4)))
    for n, each in enumerate(more):
        await server.settle(f"s{n}")
        copy.wrote(each)
        copy.send(server)
        await server.inbox.work()
    assert copy.outbox.waiting == 0
    assert {row[0] for row in await site.rows()} == {*(f"r{n}" for n in range(1, 4 + before)), *(f"s{n}" for n in range(4))}
    assert (await site.kept())[-1][1:] == ("s3", 1)  # beyond what is kept the agent is believed again
    assert await site.broken() == []


async def test_a_server_whose_database_is_older_takes_the_agents_word(site, caplog):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2", "r3")
    agent.wrote(tags[0])
    agent.outbox.acknowledged(1)  # by a database that is no more
    agent.wrote(*tags[1:])
    agent.send(server)
    await server.inbox.work()
    assert agent.received == [3]
    assert await site.kept() == [(2, "r2", 1), (3, "r3", 1)]
    assert await site.told() == []
    assert "its word is taken" in caplog.text


async def test_a_chain_that_begins_anew_is_taken_and_told_once(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2")
    agent.wrote(tags[0])
    agent.send(server)
    await server.inbox.work()
    agent.path.write_bytes(b"rubbish")
    fresh = Agent(agent.id, agent.key, agent.path)
    fresh.send(server)
    await server.inbox.work()
    assert await site.told() == []
    fresh.wrote(tags[1])
    batches = fresh.batches()
    for _ in range(2):
        fresh.send(server, *batches)
        await server.inbox.work()
    ((action, detail),) = await site.told()
    assert action == "receipt.gap"
    assert "damaged" in detail["why"]
    assert [request for _, request, _ in await site.kept()] == ["r1", "r2"]
    assert await site.broken() == []


# -- how much of it is told ---------------------------------------------------------------------------------------------


async def test_an_agent_cannot_flood_the_audit_log(site, at, caplog):
    """Of each worker and each matter there is an event a minute, and it is told what was left out."""
    agent, other = await site.agent(), await site.agent("other")
    server = await site.server()
    for _ in range(20):
        agent.wrote(b"forged")
        agent.send(server, doctored_head(agent))
        await server.inbox.work()
        server.inbox.forget(agent.id)  # a new link is no new beginning
    other.wrote(b"forged")
    other.send(server)
    await server.inbox.work()
    told = await site.told()
    assert sorted(action for action, _ in told) == ["receipt.broken", "receipt.forged", "receipt.forged"]
    assert [record.levelname for record in caplog.records if "up to" in record.message] == ["ERROR"] * 3
    assert (agent.received, server.inbox.forged) == ([*range(1, 21)], 21)
    for seconds in (61, 122):
        at(seconds)
        agent.wrote(b"forged")
        agent.send(server)
        await server.inbox.work()
    more = [(action, detail["left_out"]) for action, detail in (await site.told())[3:]]
    assert sorted(more) == [("receipt.broken", 19), ("receipt.forged", 1), ("receipt.forged", 19)]


def doctored_head(agent):
    (batch,) = agent.batches()
    return agent.signed(replace(batch, head=bytes(32)))


async def test_what_was_left_out_is_told_although_nothing_follows(site, at):
    agent = await site.agent()
    server = await site.server()
    for _ in range(3):
        agent.wrote(b"forged")
        agent.send(server)
        await server.inbox.work()
    at(59)
    await server.inbox.work()
    assert [detail["count"] for _, detail in await site.told()] == [1]
    at(61)
    writes = server.database.writes
    for _ in range(3):
        await server.inbox.work()
    assert server.database.writes == writes + 1
    assert (await site.told())[1:] == [("receipt.forged", {"left_out": 2})]
    at(122)
    agent.wrote(b"forged")
    agent.send(server)
    await server.inbox.work()
    assert len(await site.told()) == 3
    assert "left_out" not in (await site.told())[-1][1]


async def test_an_event_that_was_not_written_is_not_the_last_one(site, at):
    agent = await site.agent()
    server = await site.server()
    agent.wrote(b"forged")
    agent.send(server)
    server.database.writes, server.database.fails = 0, 1
    with contextlib.suppress(OSError):
        await server.inbox.work()
    await server.inbox.work()
    assert [detail for _, detail in await site.told()] == [{"after": 0, "last": 1, "count": 1}]


# -- counts that cannot be ---------------------------------------------------------------------------------------------

COUNT = st.integers(0, 2**53) | st.sampled_from([0, 1, 2**31, 2**40, 2**40 + 1, 2**48, 2**53])


@given(
    st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT),
    st.sampled_from(["done", "cancelled", "failed"]),
    st.sampled_from(["engine", "counted", "estimated"]),
    st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)),
    st.integers(0, 2**26),
)
def test_whatever_an_agent_claims_is_booked_within_bounds(counts, outcome, source, price, body):
    prompt, completion, cached, size, at = counts
    claim = Receipt(tag=b"", outcome=outcome, source=source, prompt=prompt, completion=completion, cached=cached, bytes=size, at=at)
    its = tag("r", 3, price=price, size=body)
    made = recount.recovered("w", its, claim)
    check(made)
    assert made.prompt_tokens <= min(prompt, body + UNSEEN)
    assert made.completion_tokens <= min(completion, min(size, recount.MADE) + UNSEEN)
    assert made.cached_tokens <= made.prompt_tokens
    assert made.bytes_out <= MOST
    assert 0 <= made.total_ms <= recount.LONGEST
    pays = recount.has_reached(claim, its) and made.prompt_tokens + made.completion_tokens > 0
    assert made.kind == ("settled" if pays else "wasted")
    amounts = {unit: made.amount(unit) for unit in ("tokens", "usd") if pays and made.amount(unit)}
    assert {draw.budget.unit: draw.amount for draw in made.draws} == amounts
    same = (made.prompt_tokens, made.completion_tokens, made.cached_tokens) == (prompt, completion, cached)
    assert recount.is_absurd(claim, its) == (not same)
    assert recount.kept(recount.Link(claim, b"p", b"h", None, True)).at.tzinfo is not None


async def test_absurd_claims_are_bounded_stored_and_told(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1", "r2", "r3", price=(10**12, 10**12), size=1000)
    huge, most, least = 2**53, recount.MADE + UNSEEN, 50 + UNSEEN
    agent.wrote(tags[0], prompt=huge, completion=huge, cached=huge, bytes=huge, events=huge, at=huge)
    agent.wrote(tags[1], completion=least + 1, cached=11, outcome="cancelled")
    agent.wrote(tags[2], completion=least, at=0)
    agent.send(server)
    await server.inbox.work()
    assert agent.received == [3]
    assert await site.rows() == [
        ("r1", 1, "settled", 1000 + UNSEEN, most),
        ("r2", 1, "settled", 10, least),
        ("r3", 1, "settled", 10, least),
    ]
    costs = [min(tokens * 10**6, MOST) for tokens in (1000 + UNSEEN + most, 10 + least, 10 + least)]
    cached = (1000 + UNSEEN, 10, 0)
    assert await site.sql("SELECT cached_tokens, cost FROM ledger ORDER BY id") == list(zip(cached, costs, strict=True))
    ((action, detail),) = await site.told()
    assert (action, detail["count"]) == ("metering.mismatch", 2)
    assert await site.broken() == []


@pytest.mark.parametrize("field", ["prompt", "completion", "cached", "bytes", "events", "at"])
@pytest.mark.parametrize("value", ["-1", "1.5", "NaN", "1e400", str(2**53 + 1), '"1"', "null"])
def test_what_is_no_count_does_not_even_come_through_the_wire(field, value):
    said = f'{{"receipts":[{{"tag":"","outcome":"done","{field}":{value}}}],"after":0,"prev":"{"A" * 43}=","head":"{"A" * 43}="}}'
    with pytest.raises(wire.ProtocolError):
        wire.parse(wire.Receipts, said.encode())


# -- a database that fails ---------------------------------------------------------------------------------------------


async def scene(site):
    """Two agents with receipts of a dead server, of this one, and some that are not right; and the server, which has settled its own."""
    one, two = await site.agent("one"), await site.agent("two")
    old = await site.server()
    await old.borrow(TOKENS, USD)
    for agent in (one, two):
        await old.books.linked(agent.id)
    one.wrote(*sealed(old, one, "r1", "r2"), b"forged")
    two.wrote(*sealed(old, two, "r1", attempt=2), completion=500 + UNSEEN)
    server = await site.server()
    one.wrote(*sealed(server, one, "s1"), completion=500, bytes=9000)
    await server.settle("s1")
    return server, one, two


#: Writes of one round of that scene.
WRITES = 6


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("nth", range(1, WRITES + 2))
async def test_whichever_write_fails_nothing_is_lost_or_doubled(site, nth, late):
    server, *agents = await scene(site)
    database = server.database
    database.writes, database.fails, database.late = 0, nth, late
    for agent in agents:
        agent.send(server)
    with contextlib.suppress(OSError):
        await server.inbox.work()
    assert database.writes == min(nth, WRITES)
    for agent in agents:
        kept = await site.sql("SELECT seq FROM receipts WHERE worker_id = :id", id=agent.id)
        assert all(seq <= len(kept) for seq in agent.received)
    await server.inbox.work()
    sums = "SELECT request_id, SUM(prompt_tokens), SUM(completion_tokens) FROM ledger WHERE kind <> 'wasted' GROUP BY request_id"
    assert sorted(await site.sql(sums)) == [("r1", 10, 50 + UNSEEN), ("r2", 10, 5), ("s1", 10, 5)]
    assert [agent.received[-1] for agent in agents] == [4, 1]
    assert [agent.outbox.waiting for agent in agents] == [0, 0]
    assert await site.broken() == []
    told = sorted((action, detail["count"]) for action, detail in await site.told())
    assert told == [("metering.mismatch", 1), ("metering.mismatch", 1), ("receipt.forged", 1)]
    assert await site.budget() == (10 + 50 + UNSEEN + 15 + 15, 0)


async def test_one_workers_poison_is_not_the_others_trouble(site):
    server, one, two = await scene(site)
    database = server.database
    database.error, database.writes, database.fails = ValueError("cannot be stored"), 0, 1
    one.send(server)
    two.send(server)
    with pytest.raises(ValueError, match="cannot be stored") as failed:
        await server.inbox.work()
    assert one.id in failed.value.__notes__[0]
    assert (one.received, two.received) == ([], [1])
    await server.inbox.work()
    assert one.received == [4]


async def test_a_chain_is_kept_however_it_is_cut_and_the_server_restarted(site):
    agent = await site.agent()
    edges = [0, 1, 4, 5, 9]
    for n, (start, stop) in enumerate(pairwise(edges)):
        tags, server = await died(site, agent, *(f"r{i}" for i in range(start, stop)))
        agent.wrote(*tags)
        agent.send(server, size=n + 1)
        await server.inbox.work()
    assert [request for _, request, _ in await site.kept()] == [f"r{i}" for i in range(9)]
    assert await site.budget() == (9 * 15, 0)
    assert await site.told() == []
    assert await site.broken() == []


# -- the whole way -----------------------------------------------------------------------------------------------------


async def test_an_agents_own_delivery_empties_its_outbox(site):
    """The agent's real sender on one side, this room on the other: what waited from a dead server, and what comes meanwhile."""
    agent = await site.agent()
    tags, server = await died(site, agent, *(f"r{n}" for n in range(5)))
    agent.wrote(*tags)
    delivery = Delivery(agent.outbox, (), lambda batch: server.inbox.take(agent.id, agent.signed(batch), delivery.received))
    running = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(20):
            while agent.outbox.waiting or (await site.budget())[1]:
                await server.inbox.work()
                await asyncio.sleep(0)
            await server.settle("s1")
            agent.wrote(*sealed(server, agent, "s1"))
            while agent.outbox.waiting:
                await server.inbox.work()
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(await site.rows()) == 6
    assert await site.budget() == (6 * 15, 0)
    assert await site.told() == []
    assert await site.broken() == []


async def test_a_receipt_that_comes_after_the_lease_was_charged_is_taken_off_that(site):
    agent = await site.agent()
    tags, server = await died(site, agent, "r1")
    async with site.database.write() as session:
        for epoch in [row[0] for row in await site.sql("SELECT id FROM epochs")][:1]:
            row = await session.get(Epoch, epoch)
            row.beat_at -= epochs.PATIENCE + timedelta(hours=1)
    await server.books.recover()
    charged = (await site.budget())[0]
    assert charged >= 100
    assert (await site.budget())[1] == 0
    agent.wrote(*tags)
    agent.send(server)
    await server.inbox.work()
    assert await site.budget() == (charged, 0)
    assert ("r1", 1, "settled", 10, 5) in await site.rows()
    assert await site.broken() == []


def test_a_price_is_that_of_the_moment_of_sending():
    receipt = Receipt(tag=b"", outcome="done", prompt=1, completion=1, bytes=1, at=STARTED - 5)
    made = recount.recovered("w", tag("r", 3, budgets=(Budget("key:k", "usd", "total"),)), receipt)
    assert (made.cost, made.price_version, made.over, made.total_ms) == (4, "p1", 0, 0)
    assert PRICE == (1_000_000, 3_000_000)
