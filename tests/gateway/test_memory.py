"""What the order knows outlives the server: written when it changed, read back, forgotten in time."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from mindgw import errors
from mindgw.core.fair import LEAD, Fair, Ticket
from mindgw.gateway import memory
from mindgw.gateway.memory import KEPT, Memory
from mindgw.store import flows
from mindgw.store.database import Database

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path):
    made = Database(f"sqlite:///{tmp_path}/test.db")
    await made.migrate()
    yield made
    await made.close()


def remember(database, order, today=NOON) -> Memory:
    return Memory(order, database, lambda: today)


def uneven(*names: str, units: float = 1000.0) -> Fair:
    """An order in which each of these was served that much more than `light`, which waited beside it."""
    order = Fair(2)
    light = Ticket("light", 1.0)
    order.join(light, ("o", "light"), "line", 2)
    for name in names:
        heavy = Ticket(name, 1.0)
        order.join(heavy, ("o", name), "line", 2)
        order.take(heavy)
        order.charge(heavy, units)
        order.finish(heavy)
    return order


async def stored(database) -> dict:
    async with database.read() as session:
        return await flows.load(session, datetime(2000, 1, 1, tzinfo=UTC), 10_000)


async def test_what_one_server_knew_the_next_one_knows(database):
    old = uneven("heavy")
    assert await remember(database, old).flush() == 2
    new = Fair(2)
    await remember(database, new).recall()
    assert dict(new.counters()) == {("o",): 0.0, ("o", "heavy"): 1000.0}
    for name in ("heavy", "light"):
        new.join(Ticket(name, 1.0), ("o", name), "line", 2)
    assert new.best().item == "heavy"  # it came first, and nobody waited: it is not punished for long


async def test_who_was_ahead_stands_behind_those_who_wait(database):
    await remember(database, uneven("heavy")).flush()
    orders = {"forgetful": Fair(2), "recalled": Fair(2)}
    await remember(database, orders["recalled"]).recall()
    turns = {}
    for name, order in orders.items():
        for number in range(3):
            order.join(Ticket(f"light{number}", 100.0), ("o", "light"), "line", 2)
        order.join(Ticket("heavy", 100.0), ("o", "heavy"), "line", 2)
        turns[name] = []
        while (ticket := order.best()) is not None:
            turns[name].append(ticket.item)
            order.take(ticket)
            order.charge(ticket, 100.0)
            order.finish(ticket)
    assert turns == {"forgetful": ["light0", "heavy", "light1", "light2"], "recalled": ["light0", "light1", "light2", "heavy"]}


async def test_only_what_changed_is_written(database):
    order = uneven("one", "two")
    kept = remember(database, order)
    assert await kept.flush() == 3
    assert await kept.flush() == 0
    order.restore([(("o", "fresh"), 5.0)])
    assert await kept.flush() == 1
    order.restore([(("o", "fresh"), 0.2)])  # less than a unit is nothing
    assert await kept.flush() == 1
    assert ("o", "fresh") not in await stored(database)


async def test_a_server_that_changed_nothing_writes_nothing(database):
    await remember(database, uneven("heavy")).flush()
    order = Fair(2)
    kept = remember(database, order)
    await kept.recall()
    assert await kept.flush() == 0


async def test_more_rows_than_a_batch_are_written_and_dropped(database, monkeypatch):
    monkeypatch.setattr(memory, "BATCH", 3)
    monkeypatch.setattr(memory, "_STEP", 2)
    order = uneven(*(f"f{number}" for number in range(10)))
    kept = remember(database, order)
    assert await kept.flush() == 11
    order.restore((path, 0.0) for path, _ in list(order.counters()))
    for flow in order._root.children["o"].children.values():
        flow.home = None
        flow.counter = 0.0
    assert await kept.flush() == 11
    assert await stored(database) == {}


async def test_flows_that_are_looked_at_have_a_bound(database, monkeypatch):
    monkeypatch.setattr(memory, "MOST", 5)
    order = uneven(*(f"f{number}" for number in range(10)))
    await remember(database, order).flush()
    found = await stored(database)
    assert len(found) <= 5 and ("o",) in found


async def test_others_have_the_loop_while_many_flows_are_looked_at(database, monkeypatch):
    monkeypatch.setattr(memory, "_STEP", 1)
    kept, turns = remember(database, uneven("a", "b", "c")), []

    async def count():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await kept._look()
    counting.cancel()
    assert len(turns) >= 4


async def test_what_did_not_change_for_long_is_forgotten(database):
    await remember(database, uneven("heavy")).flush()
    order = Fair(2)
    await remember(database, order, NOON + KEPT - timedelta(hours=1)).recall()
    assert list(order.counters())
    order = Fair(2)
    await remember(database, order, NOON + KEPT).recall()
    assert list(order.counters()) == [] and await stored(database) == {}


async def test_rows_that_make_no_sense_harm_nobody(database):
    async with database.write() as session:
        await flows.keep(session, {("o",): 0.0, ("o", "heavy"): 1e300, ("o", "deep", "er"): 5.0, ("orphan", "x"): 5.0}, NOON)
    order = Fair(2)
    await remember(database, order).recall()
    assert dict(order.counters()) == {("o",): 0.0, ("o", "heavy"): LEAD}


async def test_what_could_not_be_written_is_written_the_next_time(database, tmp_path):
    away = Database(f"sqlite:///{tmp_path}/nothing/here.db")
    kept = remember(away, uneven("heavy"))
    with pytest.raises(errors.Draining):
        await kept.flush()
    await away.close()
    kept._database = database
    assert await kept.flush() == 2
