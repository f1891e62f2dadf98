"""What a database says of itself, and what is found broken in it, on both databases."""

import sqlite3

import pytest
from sqlalchemy import text

from mindgw.store import health, migration, schema
from mindgw.store.database import Database
from mindgw.store.health import Fault
from mindgw.store.tables import metadata


async def execute(database, *statements):
    async with database.write() as session:
        for statement in statements:
            await (await session.connection()).execute(text(statement))


async def faults(database):
    return await database.look(lambda connection: list(health.faults(connection)))


async def differences(database):
    return await database.look(lambda connection: list(migration.differences(connection)))


async def test_it_says_what_it_is_and_how_much_is_in_it(database):
    await execute(database, "INSERT INTO orgs (id, name, created_at, version) VALUES ('o', 'x', '2026-01-01 00:00:00+00', 1)")
    facts = await database.look(health.facts)
    assert facts.version[0].isdigit() and " " not in facts.version
    assert facts.size > 50_000
    assert (facts.journal, facts.synchronous) in {("wal", "full"), ("", "on"), ("", "off")}
    assert facts.rows.keys() == metadata.tables.keys()
    assert (facts.rows["orgs"], facts.rows["keys"], facts.estimated) == (1, 0, [])


async def test_what_is_much_is_estimated_where_the_database_can(database, kind, monkeypatch):
    monkeypatch.setattr(health, "MANY", 3)
    rows = ", ".join(f"('o{number}', 'x{number}', '2026-01-01 00:00:00+00', 1)" for number in range(5))
    await execute(database, f"INSERT INTO orgs (id, name, created_at, version) VALUES {rows}", "ANALYZE")
    facts = await database.look(health.facts)
    assert facts.rows["orgs"] == 5
    assert facts.estimated == (["orgs"] if kind == "postgres" else [])


async def test_a_sound_database_has_no_faults(database):
    assert await faults(database) == []
    assert await differences(database) == []


async def test_an_index_that_was_never_finished_is_found(database, kind):
    if kind == "sqlite":
        pytest.skip("SQLite has no such indexes")
    await execute(database, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_audit_at'::regclass")
    assert [(fault.check, fault.object) for fault in await faults(database)] == [("indexes", "ix_audit_at")]


async def test_a_constraint_that_old_rows_may_break_is_found(database, kind):
    if kind == "sqlite":
        pytest.skip("SQLite checks a constraint at once")
    await execute(database, "ALTER TABLE orgs ADD CONSTRAINT ck_orgs_name CHECK (name <> '') NOT VALID")
    assert [(fault.check, fault.object) for fault in await faults(database)] == [("constraints", "orgs.ck_orgs_name")]


async def test_rows_that_point_nowhere_are_counted(sqlite_template, tmp_path):
    file = tmp_path / "mindgw.db"
    file.write_bytes(sqlite_template.read_bytes())
    with sqlite3.connect(file) as plain:  # checks no references, unlike ours
        rows = [(f"t{number}", "nobody", f"n{number}", "2026-01-01 00:00:00", 1) for number in range(3)]
        plain.executemany("INSERT INTO teams (id, org_id, name, created_at, version) VALUES (?, ?, ?, ?, ?)", rows)
    plain.close()
    database = Database(f"sqlite:///{file}")
    assert await faults(database) == [Fault("references", "teams", "3 rows point to orgs that are not there")]
    await database.close()


async def test_a_damaged_file_is_found_and_never_a_crash(sqlite_template, tmp_path):
    with sqlite3.connect(sqlite_template) as plain:
        roots = [page for (page,) in plain.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name = 'audit'")]
    plain.close()
    data = bytearray(sqlite_template.read_bytes())
    for page in roots:
        data[(page - 1) * 4096 : (page - 1) * 4096 + 512] = bytes(range(256)) * 2
    file = tmp_path / "mindgw.db"
    file.write_bytes(data)
    database = Database(f"sqlite:///{file}")
    found = await faults(database)
    assert {fault.check for fault in found} == {"integrity"}
    await database.close()


@pytest.mark.parametrize(
    ("statement", "name", "problem"),
    [
        ("DROP TABLE flow_counters", "flow_counters", "the table is missing"),
        ("ALTER TABLE orgs ADD COLUMN colour VARCHAR", "orgs.colour", "the column is none of ours"),
        ("ALTER TABLE keys DROP COLUMN last4", "keys.last4", "the column is missing"),
        ("DROP INDEX ix_audit_at", "ix_audit_at", "the index is missing"),
        ("CREATE INDEX ix_mine ON orgs (created_at)", "ix_mine", "the index is none of ours"),
    ],
)
async def test_a_schema_that_was_changed_by_hand_is_found(database, statement, name, problem):
    await execute(database, statement)
    assert (name, problem) in await differences(database)


async def test_a_column_of_another_kind_is_found(database, kind):
    if kind == "sqlite":
        pytest.skip("SQLite changes no column")
    await execute(database, "ALTER TABLE keys ALTER COLUMN name DROP NOT NULL")
    assert await differences(database) == [("keys.name", "its nullable is True, not False")]


async def test_tables_of_others_may_stand_beside_ours(database):
    await execute(database, "CREATE TABLE theirs (id INTEGER)")
    assert await differences(database) == []


async def test_other_connections_are_counted_where_the_database_knows(database, url, kind):
    other = Database(url)
    assert await database.look(health.others) == 0
    async with other.read() as session:
        await session.connection()
        assert await database.look(health.others) == (1 if kind == "postgres" else 0)
    await other.close()


def test_revisions_are_in_a_line():
    first, *later = schema.revisions()
    assert schema.before(first) == ""
    assert [schema.before(revision) for revision in later] == [first, *later][: len(later)]
