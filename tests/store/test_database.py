"""Transactions: what is committed stays, what fails is gone, readers see one moment and write nothing."""

import asyncio
import contextlib
import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlmodel import func, select

from mindgw.errors import ConfigError, Draining
from mindgw.store import audit, fleet, people
from mindgw.store import database as store
from mindgw.store.database import READERS, Database
from mindgw.store.tables import JoinToken, Org, Team
from tests.store.audited import entries

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def count(database, table=Org):
    async with database.read() as session:
        return (await session.exec(select(func.count()).select_from(table))).one()


def token(**facts):
    return JoinToken(**{"id": "0" * 16, "public_key": bytes(32), "expires_at": NOON + timedelta(hours=1), **facts})


async def test_what_was_written_is_there_after_a_restart(url):
    first = Database(url)
    async with first.write() as session:
        await people.get_or_create_org(session, "kept")
    await first.close()
    second = Database(url)
    assert await count(second) == 1
    await second.close()


async def test_a_block_that_raises_leaves_nothing(database):
    with pytest.raises(ZeroDivisionError):
        async with database.write() as session:
            await people.get_or_create_org(session, "lost")
            raise ZeroDivisionError
    assert await count(database) == 0


async def test_a_writer_that_is_cancelled_leaves_nothing_and_lets_the_next_one_in(database):
    inside = asyncio.Event()

    async def stay():
        async with database.write() as session:
            await people.get_or_create_org(session, "lost")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stay())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as session:
        await people.get_or_create_org(session, "kept")
    assert await count(database) == 1


async def test_a_reader_sees_one_moment(database):
    async with database.read() as session:
        before = (await session.exec(select(func.count()).select_from(Org))).one()
        async with database.write() as other:
            await people.get_or_create_org(other, "new")
        assert (await session.exec(select(func.count()).select_from(Org))).one() == before == 0
    assert await count(database) == 1


async def test_a_reader_does_not_see_what_is_not_committed(database):
    async with database.write() as session:
        await people.get_or_create_org(session, "soon")
        assert await count(database) == 0
    assert await count(database) == 1


async def test_a_reader_cannot_write(database):
    with pytest.raises(DBAPIError, match=r"readonly|read-only"):
        async with database.read() as session:
            await people.get_or_create_org(session, "never")
    assert await count(database) == 0


async def test_a_connection_that_has_read_can_write_again(database):
    """On Postgres both come from one pool."""
    for number in range(12):
        assert await count(database) == number
        async with database.write() as session:
            await people.get_or_create_org(session, f"org {number}")


async def test_many_writers_and_readers_at_once_get_their_turn(database):
    async def write(number):
        async with database.write() as session:
            org = await people.get_or_create_org(session, "shared")
            await people.get_or_create_team(session, org.id, f"team {number % 10}")

    async def read():
        return await count(database, Team)

    work = [write(number) for number in range(40)] + [read() for _ in range(4 * READERS)]
    await asyncio.gather(*work)
    assert (await count(database), await count(database, Team)) == (1, 10)


async def test_a_token_is_used_as_often_as_it_may_be_and_not_once_more(database):
    async with database.write() as session:
        await fleet.add_join_token(session, token(max_uses=5))

    async def use():
        async with database.write() as session:
            await fleet.use_join_token(session, "0" * 16, NOON)

    results = await asyncio.gather(*(use() for _ in range(20)), return_exceptions=True)
    assert [getattr(result, "code", result) for result in results if result is not None] == ["join_token_used"] * 15


async def test_two_processes_write_into_one_sqlite_file(sqlite_template, tmp_path):
    """The second one waits for the first instead of failing."""
    file = tmp_path / "mindgw.db"
    file.write_bytes(sqlite_template.read_bytes())
    one, two = Database(f"sqlite:///{file}"), Database(f"sqlite:///{file}")

    async def write(database, number):
        async with database.write() as session:
            org = await people.get_or_create_org(session, "shared")
            await people.get_or_create_team(session, org.id, f"team {number}")

    await asyncio.gather(*(write(database, number) for number in range(20) for database in (one, two)))
    assert await count(one, Team) == 20
    await asyncio.gather(one.close(), two.close())


async def test_a_row_that_points_nowhere_is_refused(database):
    with pytest.raises(IntegrityError):
        async with database.write() as session:
            session.add(Team(org_id="nobody", name="lost"))
    assert await count(database, Team) == 0


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))])
async def test_moments_come_back_in_utc_whatever_zone_they_went_in_with(database, zone):
    said = NOON.astimezone(zone) + timedelta(microseconds=123456)
    async with database.write() as session:
        await fleet.add_join_token(session, token(expires_at=said))
    async with database.read() as session:
        found = (await session.exec(select(JoinToken))).one()
    assert found.expires_at == said
    assert found.expires_at.tzinfo is UTC


async def test_a_moment_without_a_zone_is_refused(database):
    with pytest.raises(StatementError, match="without a zone"):
        async with database.write() as session:
            await fleet.add_join_token(session, token(expires_at=datetime(2026, 3, 1, 12)))  # noqa: DTZ001 - that is the point


async def test_documents_come_back_as_they_went_in(database):
    said = {"text": "ü\n", "number": 2**40, "nested": {"list": [1, None, True, -5]}}
    async with database.write() as session:
        await audit.record(session, "local", "key.create", "k1", **said)
    async with database.read() as session:
        assert [entry.detail for entry in await entries(session)] == [said]


async def test_sqlite_is_set_up_for_commits_that_last(sqlite_template, tmp_path):
    file = tmp_path / "mindgw.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    for session_of in (database.read, database.write):
        async with session_of() as session:
            connection = await session.connection()
            found = {
                name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema")
            }
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000, "trusted_schema": 0}
    await database.close()
    with sqlite3.connect(file) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    plain.close()


# -- a database that is away -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def silence():
    """Address of somebody who takes connections and says nothing."""
    ended = asyncio.Event()

    async def hold(_reader, writer):
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield f"postgresql://u:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/d"
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


async def away(database, write=True, work=None):
    """The error of a block, which must say that the database is away, and when to come back."""
    with pytest.raises(Draining) as told:
        async with database.write() if write else database.read() as session:
            if work is not None:
                await work(session)
    assert (told.value.status, told.value.code) == (503, "database_unavailable") and told.value.retry_after
    assert told.value.__cause__ is not None
    return told.value


async def test_a_file_that_another_process_keeps_locked_is_away_for_writers_alone(sqlite_template, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PRAGMAS", ("busy_timeout=50", *store._PRAGMAS[1:]))
    file = tmp_path / "mindgw.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await away(database)
        assert await count(database) == 0
        other.execute("ROLLBACK")
    async with database.write() as session:
        await people.get_or_create_org(session, "kept")
    await database.close()


async def test_a_disk_that_is_full_is_away_and_nothing_of_the_block_is_kept(sqlite_template, tmp_path):
    file = tmp_path / "mindgw.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")

    async def much(session):
        connection = await session.connection()
        await connection.execute(text("PRAGMA max_page_count = 1"))  # no more than there are
        for number in range(500):
            await people.get_or_create_org(session, f"{number:0200}")

    await away(database, work=much)
    assert await count(database) == 0
    await database.close()


async def test_a_file_that_cannot_be_written_is_away_for_writers_and_no_news_to_readers(database, kind):
    if kind == "postgres":
        pytest.skip("a standby is what this is there")

    async def locked_up(session):
        await (await session.connection()).execute(text("PRAGMA query_only=ON"))
        await people.get_or_create_org(session, "never")

    await away(database, work=locked_up)


async def test_a_connection_that_is_cut_in_the_middle_is_away_and_the_next_one_is_not(database, kind):
    if kind == "sqlite":
        pytest.skip("SQLite has no connections to cut")

    async def cut(session):
        await session.exec(select(text("pg_terminate_backend(pg_backend_pid())")))

    await away(database, work=cut)
    await away(database, write=False, work=cut)
    assert await count(database) == 0


@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
async def test_who_loses_the_connection_at_the_end_of_a_block_does_not_know_what_became_of_it(database, kind):
    with pytest.raises(store.Unsure):
        async with database.write() as session:
            await people.get_or_create_org(session, "who knows")
            pid = (await session.exec(select(text("pg_backend_pid()")))).one()
            async with database.write() as other:
                await other.exec(select(text(f"pg_terminate_backend({pid})")))
    assert await count(database) == 0


@pytest.mark.parametrize("write", [True, False])
async def test_a_postgres_that_is_not_there_is_away(tmp_path, write):
    database = Database(f"postgresql://u:secret@/d?host={tmp_path}")
    assert "secret" not in str(await away(database, write))
    assert not await database.at_head()
    await database.close()


async def test_a_postgres_that_says_nothing_is_away_in_time(monkeypatch):
    monkeypatch.setattr(store, "REACH", 0.2)
    async with silence() as address, asyncio.timeout(20):
        database = Database(address)
        for write in (True, False):
            await away(database, write)
        assert not await database.at_head()
        with pytest.raises(ConfigError, match="did not answer in time") as told:
            await database.revision()
        assert "secret" not in str(told.value)
        await database.close()


async def test_what_is_wrong_with_the_statement_is_no_outage(database):
    with pytest.raises(DBAPIError, match="nowhere"):
        async with database.write() as session:
            await (await session.connection()).execute(text("SELECT * FROM nowhere"))
