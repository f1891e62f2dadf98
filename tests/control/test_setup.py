"""`initialise`: from nothing to ready, and again without harm."""

import asyncio
import hmac
import os
import sqlite3
import subprocess
import sys
from datetime import timedelta

import pytest
from cryptography import x509
from sqlmodel import select

from mindgw import clock, config
from mindgw.control import lock, secrets, setup, witness
from mindgw.control.setup import Wishes, initialise
from mindgw.errors import ConfigError
from mindgw.store import fleet, keys
from mindgw.store.database import Database
from mindgw.store.tables import AuditEntry, Key, Org, Team, User
from mindgw_agent import tokens
from mindgw_agent.tokens import JoinToken

#: Serves from a directory as far as the lock can tell, until its input is closed.
HOLD = """
import sys
from datetime import timedelta
from pathlib import Path
from mindgw.control import lock
with lock.hold(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


async def rows(directory, table):
    database = Database(config.load(None, directory).database_url)
    async with database.read() as session:
        found = (await session.exec(select(table))).all()
    await database.close()
    return found


async def test_a_directory_is_made_ready_to_serve(tmp_path):
    directory = tmp_path / "new" / "data"
    made = await initialise(directory, Wishes(port=9001))
    assert (made.created, made.data_dir, made.base_url) == (True, str(directory), "http://127.0.0.1:9001/v1")
    assert config.load(None, directory).listen == "127.0.0.1:9001"
    files = {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir()}
    names = [
        "audit.end",
        "ca.key",
        "config.yaml",
        "identity.key",
        "mindgw.db",
        "pepper",
        "sealing.key",
        "server.key",
        "server.pem",
        "signing.key",
    ]
    assert files == {**dict.fromkeys(names, 0o600), "ca.pem": 0o644}
    assert directory.stat().st_mode & 0o777 == 0o700
    own = secrets.load(directory)
    assert (made.ca_pem.encode(), made.fingerprint) == (own.ca_pem, own.fingerprint)


async def test_the_first_key_is_the_admins_and_good(tmp_path):
    made = await initialise(tmp_path)
    (org,), (team,), (user,), (key,) = [await rows(tmp_path, table) for table in (Org, Team, User, Key)]
    key_id, secret = tokens.parse_key(made.api_key)
    assert (key.id, key.role, key.org_id, key.team_id, key.user_id) == (key_id, "admin", org.id, team.id, user.id)
    assert hmac.compare_digest(key.digest, keys.digest(secrets.load(tmp_path).pepper, secret))
    assert (org.name, team.name, user.email, user.role) == ("default", "default", "admin@localhost", "admin")
    assert made.api_key not in repr(made)
    assert {(entry.actor, entry.action) for entry in await rows(tmp_path, AuditEntry)} == {
        ("local", "server.init"),
        ("local", "user.create"),
        ("local", "key.create"),
        ("local", "join_token.create"),
    }


async def test_its_join_token_lets_one_box_in_for_an_hour(tmp_path):
    made = await initialise(tmp_path)
    token = JoinToken.decode(made.join_token)
    database = Database(config.load(None, tmp_path).database_url)
    async with database.write() as session:
        (row,) = await fleet.join_tokens(session)
    await database.close()
    assert (row.id, row.max_uses, row.approve) == (token.id.hex(), 1, "auto")
    assert row.expires_at.timestamp() - row.created_at.timestamp() == pytest.approx(3600, abs=30)


async def test_a_second_run_changes_nothing_but_gives_a_fresh_token(tmp_path):
    first = await initialise(tmp_path, Wishes(port=9001))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".db"}
    second = await initialise(tmp_path)
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".db"}
    assert after.pop(witness.FILE) != before.pop(witness.FILE)  # the token is in the audit log
    assert after == before
    assert (second.created, second.api_key, second.backup) == (False, None, None)
    assert (second.base_url, second.fingerprint) == (first.base_url, first.fingerprint)
    assert second.join_token != first.join_token
    assert [len(await rows(tmp_path, table)) for table in (Org, Team, User, Key)] == [1, 1, 1, 1]


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
async def test_an_admin_key_that_is_no_good_any_more_gets_a_successor(tmp_path, end):
    first = await initialise(tmp_path)
    database = Database(config.load(None, tmp_path).database_url)
    async with database.write() as session:
        key = await keys.get(session, tokens.parse_key(first.api_key)[0])
        setattr(key, end, clock.utcnow())
    await database.close()
    second = await initialise(tmp_path)
    assert second.api_key not in {None, first.api_key}
    assert (await initialise(tmp_path)).api_key is None


async def test_an_admin_key_that_ends_one_day_is_good_until_then(tmp_path):
    first = await initialise(tmp_path)
    database = Database(config.load(None, tmp_path).database_url)
    async with database.write() as session:
        key = await keys.get(session, tokens.parse_key(first.api_key)[0])
        key.expires_at = clock.utcnow() + timedelta(days=1)
    await database.close()
    assert (await initialise(tmp_path)).api_key is None


@pytest.mark.parametrize(("state", "org"), [("disabled", "active"), ("removed", "active"), ("active", "disabled")])
async def test_an_operator_who_is_shut_out_gets_back_in_from_the_servers_own_disk(tmp_path, state, org):
    await initialise(tmp_path)
    database = Database(config.load(None, tmp_path).database_url)
    async with database.write() as session:
        (user,), (own,) = (await session.exec(select(User))).all(), (await session.exec(select(Org))).all()
        user.state, own.state, user.role = state, org, "user"
    await database.close()
    made = await setup.new_admin_key(tmp_path)
    database = Database(config.load(None, tmp_path).database_url)
    async with database.read() as session:
        held = await keys.holder(session, tokens.parse_key(made.api_key)[0])
    await database.close()
    assert (held.welcome, held.rights.roles) == (True, ("admin",))
    assert [(user.state, user.role) for user in await rows(tmp_path, User)] == [("active", "admin")]
    assert {entry.action for entry in await rows(tmp_path, AuditEntry)} >= {"user.enable" if state == "disabled" else "user.create"}
    assert (await initialise(tmp_path)).api_key is None


async def test_a_key_of_an_admin_who_was_disabled_does_not_count(tmp_path):
    await initialise(tmp_path)
    database = Database(config.load(None, tmp_path).database_url)
    async with database.write() as session:
        (await session.exec(select(User))).one().state = "disabled"
    await database.close()
    assert (await initialise(tmp_path)).api_key is not None


async def test_a_lost_key_gets_a_successor(tmp_path):
    first = await initialise(tmp_path)
    second = await setup.new_admin_key(tmp_path)
    assert second.api_key not in {None, first.api_key}
    assert [key.role for key in await rows(tmp_path, Key)] == ["admin", "admin"]


async def test_a_later_wish_is_written_where_the_setting_stands(tmp_path):
    await initialise(tmp_path, Wishes(port=9001))
    file = tmp_path / config.FILE
    file.write_text(file.read_text().replace('"127.0.0.1:9001"', '"127.0.0.1:9001" # our port') + "log:\n  level: debug\n")
    made = await initialise(tmp_path, Wishes(port=9002, public_url="https://gpu.example:8443/"))
    assert '"127.0.0.1:9002" # our port' in file.read_text()
    found = config.load(None, tmp_path)
    assert (found.listen, found.public_url, found.log.level) == ("127.0.0.1:9002", "https://gpu.example:8443", "debug")
    assert made.base_url == "https://gpu.example:8443/v1"
    assert JoinToken.decode(made.join_token).urls == ["https://gpu.example:8443", "http://127.0.0.1:9002"]
    leaf = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert "gpu.example" in names
    assert file.stat().st_mode & 0o777 == 0o600


#: A run in a process of its own.
SCRIPT = """
import asyncio, sys
from pathlib import Path
from mindgw.control.setup import initialise
made = asyncio.run(initialise(Path(sys.argv[1])))
print(made.fingerprint, made.api_key)
"""


async def test_a_run_that_ends_while_another_one_looks_is_no_loss(tmp_path, monkeypatch):
    """The other one makes the first key, and the pepper before it, after this one has seen that there is none."""
    directory, looks, missing = tmp_path / "data", [], secrets.missing

    def slow(at):
        found = missing(at)
        looks.append(found)
        if len(looks) == 2:
            subprocess.run([sys.executable, "-c", SCRIPT, directory], check=True, timeout=60)
        return found

    monkeypatch.setattr(secrets, "missing", slow)
    assert (await initialise(directory)).api_key is None
    assert "pepper" in looks[1]


async def test_two_runs_at_once_make_one_server(tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / "data")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [(await asyncio.to_thread(process.communicate, timeout=60))[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0][0] == said[1][0]
    assert [key for _, key in said].count("None") == 1


async def test_a_wish_that_makes_no_sense_leaves_the_settings_as_they_were(tmp_path):
    await initialise(tmp_path, Wishes(port=9001))
    before = (tmp_path / config.FILE).read_bytes()
    for wishes in (Wishes(public_url="http://x:1"), Wishes(port=0), Wishes(database="oracle"), Wishes(public_url="https://x:9001")):
        with pytest.raises(ConfigError):
            await initialise(tmp_path, wishes)
    assert (tmp_path / config.FILE).read_bytes() == before


async def test_a_place_where_no_directory_can_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        await initialise(tmp_path / "file" / "data")
    assert "--data-dir" in refused.value.hint


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may write anywhere")
async def test_a_directory_that_may_not_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError) as refused:
        await initialise(tmp_path / "data")
    assert "--data-dir" in refused.value.hint


async def test_a_directory_of_the_kernels_is_told():
    with pytest.raises(ConfigError) as refused:
        await initialise(config.data_directory("/proc/self/mindgw"))
    assert "--data-dir" in refused.value.hint


async def test_a_database_whose_pepper_is_lost_is_not_given_another(tmp_path):
    await initialise(tmp_path)
    (tmp_path / "pepper").unlink()
    with pytest.raises(ConfigError, match="pepper"):
        await initialise(tmp_path)
    assert not (tmp_path / "pepper").exists()


async def test_a_run_that_was_cut_before_the_first_key_is_completed(tmp_path):
    """The database is there but empty, the secrets are not."""
    await initialise(tmp_path)
    with sqlite3.connect(tmp_path / "mindgw.db") as connection:
        connection.execute("DELETE FROM keys")
    connection.close()
    for name in ("pepper", "ca.pem", "server.pem"):
        (tmp_path / name).unlink()
    assert (await initialise(tmp_path)).api_key is not None


async def test_init_runs_beside_a_server_but_does_not_migrate_under_it(tmp_path):
    await initialise(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert lock.holder(tmp_path) == process.pid
        assert (await initialise(tmp_path)).join_token
        with sqlite3.connect(tmp_path / "mindgw.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0000'")
        connection.close()
        with pytest.raises(ConfigError, match=f"process {process.pid} serves"):
            await initialise(tmp_path)
    finally:
        process.communicate(timeout=20)


async def test_a_server_prepares_its_own_database(tmp_path):
    await initialise(tmp_path)
    database = Database(config.load(None, tmp_path).database_url)
    with lock.hold(tmp_path):
        assert await setup.prepare(database, tmp_path) is None
    assert not setup.renew(config.load(None, tmp_path), secrets.load(tmp_path))
    await database.close()
