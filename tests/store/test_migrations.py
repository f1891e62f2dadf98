"""Schema: made from nothing, left alone at head, never half-made, equal to the tables."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import SQLAlchemyError

from mindgw.errors import ConfigError, InternalError
from mindgw.store import migration, schema
from mindgw.store.database import Database, parse_url
from mindgw.store.tables import metadata
from tests.postgres import at


@pytest.fixture
async def fresh(empty):
    database = Database(empty)
    yield database
    await database.close()


async def tables(database):
    async with database.read() as session:
        return set(await (await session.connection()).run_sync(lambda connection: inspect(connection).get_table_names()))


async def execute(database, *statements):
    async with database.write() as session:
        for statement in statements:
            await (await session.connection()).execute(text(statement))


async def test_an_empty_database_is_brought_to_head(fresh):
    assert await fresh.revision() is None
    assert await fresh.migrate() is None
    assert await fresh.at_head()
    assert await tables(fresh) == {*metadata.tables, schema.VERSION_TABLE}


async def test_a_database_at_head_is_left_alone(database):
    await execute(database, "INSERT INTO orgs (id, name, created_at, version) VALUES ('o', 'kept', '2026-01-01 00:00:00+00', 1)")
    assert await database.migrate() is None
    async with database.read() as session:
        assert (await (await session.connection()).execute(text("SELECT name FROM orgs"))).scalar_one() == "kept"


async def test_the_migrations_make_exactly_the_tables_of_the_code(database):
    async with database.write() as session:
        await (await session.connection()).run_sync(migration.check)


async def test_a_table_that_no_migration_makes_is_noticed(database):
    await execute(database, "DROP TABLE audit")
    with pytest.raises(Exception, match="audit"):
        async with database.write() as session:
            await (await session.connection()).run_sync(migration.check)


async def test_all_that_a_migration_makes_it_can_take_back(database):
    async with database.write() as session:
        await (await session.connection()).run_sync(migration.downgrade)
    assert await tables(database) == {schema.VERSION_TABLE}
    await database.migrate()
    assert await database.at_head()


async def test_a_way_down_that_leaves_rows_which_point_nowhere_is_not_gone(sqlite_template, tmp_path):
    file = tmp_path / "mindgw.db"
    file.write_bytes(sqlite_template.read_bytes())
    with sqlite3.connect(file) as plain:  # checks no references, unlike ours
        plain.execute("INSERT INTO teams (id, org_id, name, created_at, version) VALUES ('t', 'nobody', 'n', '2026-01-01 00:00:00', 1)")
    plain.close()
    database = Database(f"sqlite:///{file}")
    with pytest.raises(InternalError, match="1 rows that point nowhere"):
        await database.downgrade(schema.before(schema.head()))
    assert await database.at_head()
    await database.close()


async def test_servers_that_start_together_migrate_once(empty):
    servers = [Database(empty) for _ in range(4)]
    await asyncio.gather(*(server.migrate() for server in servers))
    assert [await server.at_head() for server in servers] == [True] * 4
    await asyncio.gather(*(server.close() for server in servers))


async def test_a_migration_that_fails_leaves_nothing_behind(fresh):
    await execute(fresh, "CREATE TABLE workers (id INTEGER)")
    with pytest.raises(SQLAlchemyError):
        await fresh.migrate()
    assert await tables(fresh) == {"workers"}
    assert await fresh.revision() is None


async def test_the_database_of_a_newer_release_is_refused(database):
    await execute(database, "UPDATE alembic_version SET version_num = '9999'")
    assert not await database.at_head()
    with pytest.raises(ConfigError, match="newer release"):
        await database.migrate()


async def test_an_sqlite_file_is_copied_before_it_is_migrated(tmp_path):
    file = tmp_path / "mindgw.db"
    database = Database(f"sqlite:///{file}", backups=tmp_path / "copies")
    await execute(database, "CREATE TABLE theirs (id INTEGER)", "INSERT INTO theirs VALUES (7)")
    copy = await database.migrate()  # the writer is still open, so part of the file is in its log
    await database.close()
    assert copy is not None
    assert copy.parent == tmp_path / "copies"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT id FROM theirs").fetchall() == [(7,)]
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'orgs'").fetchall() == []
    connection.close()


async def test_a_new_sqlite_file_is_for_its_owner_alone(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/mindgw.db")
    await database.migrate()
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("mindgw.db*")}.items() >= {("mindgw.db", 0o600)}
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.glob("mindgw.db*"))
    await database.close()


def test_a_database_at_head_costs_no_import_of_alembic(sqlite_template):
    script = (
        "import asyncio, sys\nfrom mindgw.store.database import Database\n"
        "async def main():\n    db = Database(sys.argv[1]); await db.migrate(); await db.close()\n"
        "asyncio.run(main()); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, f"sqlite:///{sqlite_template}"], check=True)


def test_revisions_are_in_one_line_and_say_when_they_run():
    names = sorted(file.name for file in Path(migration.__file__).with_name("migrations").glob("versions/[0-9]*.py"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)] == schema.revisions()
    assert all(name[4:].startswith(("_pre_", "_post_")) for name in names)


@pytest.mark.parametrize(
    "address", ["", "sqlite", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d", "nonsense", "postgresql://h:port/x"]
)
def test_an_address_of_no_database_is_refused_without_its_password(address):
    with pytest.raises(ConfigError) as refused:
        parse_url(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_postgres_gets_the_same_driver(scheme):
    url = parse_url(f"{scheme}://u:p@h:5433/d?sslmode=require")
    assert url.drivername == "postgresql+asyncpg"
    assert url.query == {"ssl": "require"}
    assert "p@" not in str(url)


async def test_a_postgres_that_is_not_there_is_told_without_its_password(tmp_path):
    database = Database(f"postgresql://u:secret@/d?host={tmp_path}")
    with pytest.raises(ConfigError, match="cannot open the database") as refused:
        await database.migrate()
    assert "secret" not in str(refused.value)
    await database.close()


async def test_a_database_that_postgres_does_not_know_is_told(postgres):
    database = Database(at(postgres, "nowhere"))
    with pytest.raises(ConfigError, match="nowhere"):
        await database.migrate()
    await database.close()


async def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "mindgw.db").write_bytes(b"not a database at all" * 100)
    database = Database(f"sqlite:///{tmp_path}/mindgw.db")
    with pytest.raises(ConfigError, match="not a database"):
        await database.migrate()
    await database.close()


async def test_who_was_an_admin_is_one_and_nobody_else_becomes_one(database):
    await database.downgrade("0004")
    made = "'2026-01-01 00:00:00+00', 1"
    await execute(
        database,
        f"INSERT INTO orgs (id, name, created_at, version) VALUES ('o', 'o', {made})",
        *(
            f"INSERT INTO users (id, org_id, email, name, admin, created_at, version) VALUES ('{id}', 'o', '{id}@x', '', {admin}, {made})"
            for id, admin in (("boss", "true"), ("ada", "false"))
        ),
        *(
            "INSERT INTO keys (id, name, org_id, user_id, admin, priority, trusted_proxy, digest, pepper_version, last4, created_at, "
            f"version) VALUES ('{id}', 'k', 'o', 'boss', {admin}, '', false, '', 1, '', {made})"
            for id, admin in (("all", "true"), ("little", "false"))
        ),
        *(
            f"INSERT INTO audit (id, at, actor, action, object, detail) VALUES ('{id}', '2026-01-01 00:00:00+00', 'a', 'a', 'o', '{{}}')"
            for id in ("2", "1", "3")
        ),
    )
    await database.migrate()
    assert await pairs(database, "SELECT id, role FROM users") == {"boss": "admin", "ada": "user"}
    assert await pairs(database, "SELECT id, role FROM keys") == {"all": "admin", "little": "user"}
    assert await pairs(database, "SELECT id, seq FROM audit") == {"1": 1, "2": 2, "3": 3}
    await database.downgrade("0004")
    assert await pairs(database, "SELECT id, admin FROM users") == {"boss": True, "ada": False}
    assert await pairs(database, "SELECT id, admin FROM keys") == {"all": True, "little": False}


async def test_who_is_in_two_organisations_goes_back_as_two_people(database):
    made = "'2026-01-01 00:00:00+00', 1"
    await execute(
        database,
        *(f"INSERT INTO orgs (id, name, created_at, version) VALUES ('{id}', '{id}', {made})" for id in ("o", "p")),
        *(
            "INSERT INTO users (id, org_id, email, name, role, state, service, created_at, version) "
            f"VALUES ('{id}', '{org}', 'ada@x', '', 'user', 'active', false, {made})"
            for id, org in (("1", "o"), ("2", "p"))
        ),
    )
    await database.downgrade("0004")
    assert await pairs(database, "SELECT id, email FROM users") == {"1": "ada@x", "2": "2.ada@x"}


async def pairs(database, query):
    async with database.read() as session:
        return {row[0]: row[1] for row in await (await session.connection()).execute(text(query))}
