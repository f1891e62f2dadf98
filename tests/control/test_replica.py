"""A second server on one Postgres: what it shares with the first, and all that may be wrong with the directories and the database."""

import shutil

import pytest
from sqlmodel import select

from mindgw import config
from mindgw.control import replica, secrets, setup, witness
from mindgw.control.setup import Wishes, initialise
from mindgw.errors import ConfigError
from mindgw.store import schema
from mindgw.store.database import Database
from mindgw.store.tables import AuditEntry, Key
from mindgw_agent.tokens import JoinToken
from tests.postgres import execute


@pytest.fixture
async def first(postgres_url, tmp_path):
    """The data directory of a server on a Postgres."""
    await initialise(tmp_path / "one", Wishes(database=postgres_url, port=9001))
    return tmp_path / "one"


async def second(first, directory, url, **wishes):
    return await initialise(directory, Wishes(database=url, secrets_from=first, **wishes))


async def refusal(*args, **wishes):
    with pytest.raises(ConfigError) as refused:
        await second(*args, **wishes)
    return f"{refused.value.message} / {refused.value.hint}"


async def rows(url, table):
    database = Database(url)
    async with database.read() as session:
        found = (await session.exec(select(table))).all()
    await database.close()
    return found


async def test_a_second_server_has_the_secrets_of_the_first_and_a_place_of_its_own(first, postgres_url, tmp_path):
    made = await second(first, tmp_path / "two", postgres_url, port=9002)
    assert (made.created, made.api_key, made.backup, made.emptied) == (True, None, None, "")
    assert secrets.load(tmp_path / "two") == secrets.load(first)
    files = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "two").iterdir()}
    assert files == {
        **dict.fromkeys([*secrets.FILES, witness.FILE, "config.yaml", "server.key", "server.pem"], 0o600),
        "ca.pem": 0o644,
    }
    assert (tmp_path / "two" / "server.key").read_bytes() != (first / "server.key").read_bytes()
    settings = config.load(None, tmp_path / "two")
    assert (settings.listen, settings.database) == ("127.0.0.1:9002", postgres_url)
    assert JoinToken.decode(made.join_token).urls == ["http://127.0.0.1:9002"]
    (key,) = await rows(postgres_url, Key)
    assert made.admin == f"admin (mgw_{key.id}_…{key.last4})"


async def test_it_may_be_made_again_and_run_again_without_the_flag(first, postgres_url, tmp_path):
    await second(first, tmp_path / "two", postgres_url)
    for wishes in (Wishes(secrets_from=first), Wishes(database=postgres_url, secrets_from=first), Wishes()):
        again = await initialise(tmp_path / "two", wishes)
        assert (again.created, again.api_key) == (False, None)
    assert len(await rows(postgres_url, Key)) == 1
    marks = [entry for entry in await rows(postgres_url, AuditEntry) if entry.action == replica.MARK]
    assert [mark.object for mark in marks] == [secrets.load(first).fingerprint]


async def test_a_copy_that_was_cut_is_completed(first, postgres_url, tmp_path):
    await second(first, tmp_path / "two", postgres_url)
    for name in ("config.yaml", "pepper", "ca.pem", "server.pem"):
        (tmp_path / "two" / name).unlink()
    await second(first, tmp_path / "two", postgres_url)
    assert secrets.load(tmp_path / "two") == secrets.load(first)


async def test_a_directory_that_is_no_servers_has_no_secrets_to_give(postgres_url, tmp_path):
    (tmp_path / "one").mkdir()
    assert "identity.key is missing" in await refusal(tmp_path / "one", tmp_path / "two", postgres_url)
    assert "is missing" in await refusal(tmp_path / "nothing", tmp_path / "two", postgres_url)
    assert not (tmp_path / "two").exists()


async def test_one_directory_is_not_two(first, postgres_url, tmp_path):
    (tmp_path / "link").symlink_to(first)
    assert "itself" in await refusal(first, first, postgres_url)
    assert "itself" in await refusal(first, tmp_path / "link", postgres_url)


async def test_a_directory_with_a_server_of_its_own_is_left_alone(first, postgres_url, tmp_path):
    await initialise(tmp_path / "two")
    before = {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}
    assert "a server of its own" in await refusal(first, tmp_path / "two", postgres_url)
    assert {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()} == before
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "config.yaml").write_text("")
    assert "a server of its own" in await refusal(first, tmp_path / "three", postgres_url)
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "thesis.tex").write_text("")
    assert "is not empty" in await refusal(first, tmp_path / "four", postgres_url)


async def test_one_file_has_one_server(first, tmp_path):
    for database in ("sqlite", f"sqlite:///{tmp_path}/x.db"):
        assert "one SQLite file has one server" in await refusal(first, tmp_path / "two", database)
    assert not (tmp_path / "two").exists()


async def test_an_empty_database_was_never_the_first_servers(first, postgres_url, tmp_path):
    await execute(postgres_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    assert "is empty" in await refusal(first, tmp_path / "two", postgres_url)
    database = Database(postgres_url)
    await database.migrate()
    await database.close()
    assert "has no keys" in await refusal(first, tmp_path / "two", postgres_url)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(("revision", "said"), [("9999", "newer release"), (schema.revisions()[0], "mindgw db upgrade --data-dir")])
async def test_a_database_at_another_schema_is_not_changed_under_its_server(first, postgres_url, tmp_path, revision, said):
    await execute(postgres_url, f"UPDATE alembic_version SET version_num = '{revision}'")
    assert said in await refusal(first, tmp_path / "two", postgres_url)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("lost", ["identity.key", "pepper"])
async def test_the_database_of_another_server_is_told_from_ours(first, postgres_url, tmp_path, lost):
    """As with a copy of the data directory in which one secret is another."""
    shutil.copytree(first, tmp_path / "copy")
    (tmp_path / "copy" / lost).unlink()
    secrets.obtain(tmp_path / "copy")
    assert "belongs to another server" in await refusal(tmp_path / "copy", tmp_path / "two", postgres_url)
    with pytest.raises(ConfigError, match="belongs to another server") as refused:
        await initialise(tmp_path / "copy")
    assert "--secrets-from" in refused.value.hint


async def test_a_database_that_does_not_say_whose_it_is_gets_the_benefit_of_the_doubt_and_a_mark(first, postgres_url, tmp_path):
    await execute(postgres_url, f"DELETE FROM audit WHERE action = '{replica.MARK}'")
    await second(first, tmp_path / "two", postgres_url)
    assert len([entry for entry in await rows(postgres_url, AuditEntry) if entry.action == replica.MARK]) == 1


async def test_without_the_flag_a_second_directory_is_shown_the_way(first, postgres_url, tmp_path):
    with pytest.raises(ConfigError) as refused:
        await initialise(tmp_path / "two", Wishes(database=postgres_url))
    assert "--secrets-from" in refused.value.hint


async def test_secrets_that_cannot_be_copied_are_told(first, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot copy the secrets"):
        replica.copy(first, tmp_path / "file")


async def test_both_may_serve_from_one_database(first, postgres_url, tmp_path):
    await second(first, tmp_path / "two", postgres_url)
    for directory in (first, tmp_path / "two"):
        database = Database(config.load(None, directory).database_url)
        await setup.require(database, directory)
        assert await setup.prepare(database, directory) is None
        await database.close()
