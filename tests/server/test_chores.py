"""Work beside the requests, against a real database: what fails stops nothing else, what cannot be written is told of in full."""

import asyncio
import logging
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError
from sqlmodel import select

from mindgw import config
from mindgw.control import keys, secrets
from mindgw.errors import Draining, Unauthenticated
from mindgw.gateway import auth
from mindgw.gateway.auth import Auth
from mindgw.server import app as assembly
from mindgw.server.app import build
from mindgw.server.chores import Chore, all_but_the_bad
from mindgw.store import epochs, faults, ledger
from mindgw.store.database import Database
from mindgw.store.ledger import Entry
from mindgw.store.tables import Key
from tests.initialised import initialised


def row(id: int | str, **fields) -> Entry:
    facts = {"key_id": "k", "org_id": "o", "model": "m", "endpoint": "/v1/chat/completions", "status": 200, "outcome": "done"}
    return Entry(request_id=str(id), started_at=datetime.now(UTC), **(facts | fields))


@pytest.fixture
async def database(tmp_path):
    made = Database(f"sqlite:///{tmp_path}/test.db")
    await made.migrate()
    yield made
    await made.close()


def appending(database):
    chains = []

    async def append(rows):
        async with database.write() as session:
            begun = None if chains else await epochs.begin(session, "here", await epochs.now(session))
            chain = chains[0] if chains else ledger.Writer(begun.id, b"k" * 32, 0, begun.genesis)
            done = await ledger.commit(session, chain, rows)
        chain.advance(done)
        chains[:] = [chain]

    return all_but_the_bad(append)


async def written(database) -> set[str]:
    async with database.read() as session:
        return {found.request_id for found in await ledger.recent(session, limit=1000)}


# -- chores ------------------------------------------------------------------------------------------------------------


async def test_a_trouble_is_told_when_it_begins_changes_and_ends(caplog):
    caplog.set_level(logging.INFO)
    troubles = iter([OSError("a"), OSError("a"), OSError("b"), None, None, OSError("b")])

    async def work():
        if trouble := next(troubles):
            raise trouble

    chore = Chore("digging", 0.0, work)
    said = []
    for _ in range(6):
        caplog.clear()
        await chore.once()
        said.append([(record.levelname, record.getMessage()) for record in caplog.records])
    failed = ("ERROR", "digging failed; it is tried again")
    assert said == [[failed], [], [failed], [("INFO", "digging works again")], [], [failed]]


async def test_a_chore_is_done_until_it_is_cancelled():
    times, enough = [], asyncio.Event()

    async def work():
        times.append(1)
        if len(times) == 3:
            enough.set()
        raise OSError("never mind")

    task = asyncio.create_task(Chore("digging", 0.0, work).forever())
    async with asyncio.timeout(5):
        await enough.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_under_way_is_finished_when_it_is_stopped():
    """Cut off in the middle of opening a connection, it would leave that behind."""
    began, gate, done = asyncio.Event(), asyncio.Event(), []

    async def work():
        began.set()
        await gate.wait()
        done.append(1)

    chore = Chore("digging", 0.0, work)
    task = asyncio.create_task(chore.forever())
    async with asyncio.timeout(5):
        await began.wait()
        chore.stop()
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        await task
    assert done == [1]


async def test_one_that_rests_ends_at_once_when_it_is_stopped():
    chore = Chore("digging", 3600.0, asyncio.Event().wait)
    task = asyncio.create_task(chore.forever())
    await asyncio.sleep(0)
    chore.stop()
    async with asyncio.timeout(5):
        await task


async def test_work_that_is_stuck_does_not_hold_up_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "FLUSH", 0.01)
    monkeypatch.setattr(assembly, "STUCK", 0.05)
    await initialised(tmp_path / "data")
    known = config.load(None, tmp_path / "data")
    database = Database(known.database_url)
    server = build(known, secrets.load(tmp_path / "data"), database)
    began = asyncio.Event()

    async def stuck(rows):
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()

    server.pipeline.accounts.meter._append = stuck
    server.pipeline.accounts.meter.settle(row(1))
    async with asyncio.timeout(20):
        async with server.app.lifespan():
            await began.wait()
    await database.close()
    assert server.pipeline.accounts.meter.unwritten == 0


async def test_one_that_fails_stops_no_other(tmp_path, caplog, monkeypatch):
    """Usage cannot be written; all the same it is written down when keys were used, and at the end it is said what is lost."""
    monkeypatch.setattr(assembly, "FLUSH", 0.01)
    made = await initialised(tmp_path / "data")
    known = config.load(None, tmp_path / "data")
    database = Database(known.database_url)
    server = build(known, secrets.load(tmp_path / "data"), database)

    async def refuse(rows):
        raise OSError("the ledger is away")

    server.pipeline.accounts.meter._append = refuse
    server.pipeline.accounts.meter.settle(row(1))
    async with server.app.lifespan():
        await server.pipeline.identify([(b"authorization", f"Bearer {made.api_key}".encode())])
        async with asyncio.timeout(5):
            while not await used(database):
                await asyncio.sleep(0.01)
    await database.close()
    assert caplog.text.count("writing usage failed") == 1
    assert "1 ledger rows that the database did not take" in caplog.text


async def used(database):
    async with database.read() as session:
        return (await session.exec(select(Key.last_used_at))).one()


async def test_when_a_key_was_used_is_written_once_the_database_is_back(tmp_path):
    earlier = datetime(2026, 1, 1, tzinfo=UTC)
    door = Auth(lambda id: None, lambda since: None, {}, lambda: earlier)
    door.keep({"id": earlier})
    away = Database(f"sqlite:///{tmp_path}/nothing/here.db")
    with pytest.raises(Draining):
        await assembly._touch(door, away)()
    await away.close()
    assert door.used() == {"id": earlier}


async def test_a_key_that_is_revoked_by_another_process_is_soon_refused(tmp_path, monkeypatch):
    """Though it is never looked up for its age."""
    monkeypatch.setattr(assembly, "CHECK", 0.01)
    monkeypatch.setattr(auth, "TTL", 1e9)
    made = await initialised(tmp_path / "data")
    known = config.load(None, tmp_path / "data")
    database, other = Database(known.database_url), Database(known.database_url)
    server = build(known, secrets.load(tmp_path / "data"), database)
    headers = [(b"authorization", f"Bearer {made.api_key}".encode())]
    async with server.app.lifespan():
        caller = await server.pipeline.identify(headers)
        await keys.revoke(other, "test", caller.key_id, lambda key_id: None)
        async with asyncio.timeout(10):
            with pytest.raises(Unauthenticated, match="revoked"):
                while await server.pipeline.identify(headers):
                    await asyncio.sleep(0.01)
    await database.close()
    await other.close()


# -- rows that cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"model": "m\udc00"}, {"status": None}, {"bytes_out": 2**70}])
async def test_a_bad_row_is_set_aside_in_full_and_the_others_are_written(database, caplog, bad):
    rows = [row(i) for i in range(50)]
    rows.insert(17, row("bad", **bad))
    await appending(database)(rows)
    assert await written(database) == {str(i) for i in range(50)}
    (record,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    said = record.getMessage()
    assert said.isascii() and all(ascii(value) in said for value in msgspec.structs.asdict(rows[17]).values())


async def test_a_database_that_is_away_is_no_fault_of_the_rows(tmp_path, caplog):
    away = Database(f"sqlite:///{tmp_path}/nothing/here.db")
    with pytest.raises(Draining):
        await appending(away)([row(i) for i in range(5)])
    await away.close()
    assert "set aside" not in caplog.text


async def test_a_batch_without_trouble_is_written_at_once():
    batches = []

    async def append(rows):
        batches.append(len(rows))

    await all_but_the_bad(append)([row(i) for i in range(50)])
    assert batches == [50]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_every_good_row_is_written_once_whatever_stands_beside_it(bad):
    rows = [row(i, model="bad" if it_is else "m") for i, it_is in enumerate(bad)]
    kept = []

    async def append(batch):
        if any(one.model == "bad" for one in batch):
            raise IntegrityError("insert", {}, ValueError("no"))
        kept.extend(batch)

    asyncio.run(all_but_the_bad(append)(rows))
    assert kept == [one for one in rows if one.model != "bad"]


class Asyncpg(Exception):
    """A FAKE of the driver's error: what is wrong is its SQLSTATE, or its cause."""

    def __init__(self, sqlstate=None, cause=None):
        self.sqlstate = sqlstate
        self.__cause__ = cause


@pytest.mark.parametrize(
    ("wrong", "theirs"),
    [
        (DBAPIError("insert", {}, Asyncpg("22021")), True),
        (DBAPIError("insert", {}, Asyncpg("23502")), True),
        (DBAPIError("insert", {}, Asyncpg(None, ValueError("out of range"))), True),
        (DBAPIError("insert", {}, Asyncpg("57P01")), False),
        (DBAPIError("insert", {}, Asyncpg("53100")), False),
        (DBAPIError("insert", {}, Asyncpg()), False),
        (StatementError("no zone", "insert", {}, ValueError("naive")), True),
        (StatementError("gone", "insert", {}, OSError("gone")), False),
        (OperationalError("insert", {}, OSError("disk")), False),
        (OverflowError("large"), True),
        (OSError("network"), False),
    ],
)
def test_a_fault_is_the_datas_or_the_databases(wrong, theirs):
    assert faults.in_the_data(wrong) is theirs
