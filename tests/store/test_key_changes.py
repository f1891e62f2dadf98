"""What the database notes of changes, on both: every one, in an order that nobody can miss one of, and no more than a thousand."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from mindgw.store import keys, people, schema
from mindgw.store.database import Database
from mindgw.store.tables import Key

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEPPER = b"p" * 32


@pytest.fixture
async def key(database):
    """The id of a key with a team and a user."""
    async with database.write() as session:
        org = await people.get_or_create_org(session)
        team = await people.get_or_create_team(session, org.id)
        user = await people.get_or_create_user(session, org.id, "ada@example.org")
        wanted = keys.NewKey(name="k", org_id=org.id, team_id=team.id, user_id=user.id)
        return (await keys.create(session, wanted, PEPPER))[0]


async def news(database, since=None):
    async with database.read() as session:
        return await keys.changes(session, since)


async def newest(database):
    (change,) = await news(database)
    return change


async def execute(database, *statements):
    async with database.write() as session:
        for statement in statements:
            await (await session.connection()).execute(text(statement))


async def since(database, last):
    """(noun, id) of what was changed since, and that nothing before it is missing."""
    first, *rest = await news(database, last)
    assert first == last
    return [(change.noun, change.row_id) for change in rest]


async def test_there_is_always_a_newest_change(database):
    change = await newest(database)
    assert (change.noun, change.row_id) == ("", "")
    assert change.at.tzinfo is not None
    assert await since(database, change) == []


async def test_a_key_that_is_made_or_used_is_no_change(database, key):
    last = await newest(database)
    assert last.noun == ""
    async with database.write() as session:
        await keys.touch(session, {key.id: NOON})
    assert await newest(database) == last


#: What never changes, and what a key is good for without.
OTHERS = {"id", "created_at", "provider", "version", "last4", "last_used_at"}


@pytest.mark.parametrize("column", sorted({*Key.model_fields} - OTHERS))
async def test_whatever_a_key_is_good_for_is_a_change_when_it_changes(database, key, column):
    """A column that comes with a later release must be watched by its migration, or be named above."""
    last = await newest(database)
    await execute(database, f"UPDATE keys SET {column} = {column}")
    assert await since(database, last) == [("keys", key.id)]


async def test_a_key_that_is_revoked_through_its_table_is_a_change(database, key):
    last = await newest(database)
    async with database.write() as session:
        await keys.revoke(session, key.id, NOON)
    assert await since(database, last) == [("keys", key.id)]
    assert (await newest(database)).at > last.at - timedelta(seconds=1)


async def test_the_names_that_go_with_a_key_are_watched_and_so_is_its_end(database, key):
    last = await newest(database)
    await execute(database, "UPDATE teams SET name = 'x'", "UPDATE users SET email = 'b@x.org'", "DELETE FROM keys", "DELETE FROM teams")
    assert await since(database, last) == [
        ("teams", key.team_id),
        ("users", key.user_id),
        ("keys", key.id),
        ("teams", key.team_id),
    ]


async def test_whatever_says_what_a_holder_may_do_is_a_change_of_all_that_is_theirs(database, key):
    last = await newest(database)
    user, org = key.user_id, key.org_id
    rule = "INSERT INTO access_rules (id, org_id, subject, effect, pattern, created_at) VALUES"
    role = "INSERT INTO roles (id, org_id, name, permissions, rank, created_at, version) VALUES"
    await execute(
        database,
        "UPDATE users SET role = 'viewer'", "UPDATE users SET state = 'disabled'", "UPDATE orgs SET state = 'disabled'",
        f"INSERT INTO role_bindings (id, user_id, role, created_at) VALUES ('b', '{user}', 'x', '2026-01-01 00:00:00+00')",
        "UPDATE role_bindings SET role = 'y'", "DELETE FROM role_bindings",
        f"{rule} ('a', '{org}', 'role:user', 'deny', '*', '2026-01-01 00:00:00+00')", "DELETE FROM access_rules",
        f"{role} ('r', '{org}', 'x', '[]', 1, '2026-01-01 00:00:00+00', 1)", "UPDATE roles SET rank = 2", "DELETE FROM roles",
    )  # fmt: skip
    noted = [("users", user)] * 2 + [("orgs", org)] + [("users", user)] * 3 + [("orgs", org)] * 5
    assert await since(database, last) == noted


async def test_who_is_seen_and_who_is_called_otherwise_is_no_change(database, key):
    last = await newest(database)
    await execute(database, "UPDATE users SET last_seen_at = '2026-01-01 00:00:00+00'", "UPDATE orgs SET name = 'other'")
    assert await since(database, last) == []


async def test_what_is_undone_is_no_change(database, key):
    last = await newest(database)
    with pytest.raises(ZeroDivisionError):
        async with database.write() as session:
            await keys.revoke(session, key.id, NOON)
            raise ZeroDivisionError
    assert await since(database, last) == []
    async with database.write() as session:
        await keys.revoke(session, key.id, NOON)
    assert await since(database, last) == [("keys", key.id)]


async def test_the_newest_thousand_are_kept(database, key):
    last = await newest(database)
    async with database.write() as session:
        connection = await session.connection()
        for number in range(1100):
            await connection.execute(text("UPDATE keys SET name = :name"), {"name": str(number)})
    kept = await news(database, last)
    assert len(kept) == 1000
    assert kept[0] != last
    assert [change.id for change in kept] == list(range(kept[0].id, kept[0].id + 1000))


async def test_changes_become_visible_in_the_order_of_their_numbers(url, database, key):
    """A transaction that took a number and ends late must not slip in behind who has read a later one."""
    if not url.startswith("postgres"):
        pytest.skip("SQLite has one writer")
    other = Database(url)
    last = await newest(database)
    is_open, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with database.write() as session:
            await (await session.connection()).execute(text("UPDATE teams SET name = 'slow'"))
            is_open.set()
            await go_on.wait()

    async def quick() -> None:
        await execute(other, "UPDATE users SET email = 'quick@x.org'")

    first = asyncio.create_task(slow())
    await is_open.wait()
    second = asyncio.create_task(quick())
    async with asyncio.timeout(10):
        while not await _somebody_waits(database):
            await asyncio.sleep(0.01)
    assert await since(database, last) == []
    go_on.set()
    await asyncio.gather(first, second)
    assert [noun for noun, _ in await since(database, last)] == ["teams", "users"]
    await other.close()


async def _somebody_waits(database):
    async with database.read() as session:
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return (await (await session.connection()).execute(waiting)).scalar_one()


async def test_many_uses_are_written_at_once(database, key):
    uses = {f"unknown{number}": NOON for number in range(700)} | {key.id: NOON}
    async with database.write() as session:
        await keys.touch(session, uses)
        await keys.touch(session, {})
    async with database.read() as session:
        assert (await keys.get(session, key.id)).last_used_at == NOON


async def test_the_schema_before_roles_notes_what_it_knew(database, key):
    await database.downgrade(schema.before("0006"))
    last = await newest(database)
    changes = ("UPDATE keys SET admin = true", "UPDATE users SET admin = true", "UPDATE orgs SET name = 'x'", "DELETE FROM keys")
    await execute(database, *changes)
    assert await since(database, last) == [("keys", key.id), ("users", key.user_id), ("keys", key.id)]


async def test_an_older_schema_notes_nothing_and_a_newer_one_all(database, key):
    await database.downgrade(schema.before("0005"))
    await execute(database, "UPDATE keys SET name = 'unseen'")
    await database.migrate()
    last = await newest(database)
    assert last.noun == ""
    await execute(database, "UPDATE keys SET name = 'seen'")
    assert await since(database, last) == [("keys", key.id)]
