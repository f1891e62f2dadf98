"""`mindgw db`, on data directories of its own; nobody serves from most of them."""

import asyncio
import json
import sqlite3
import subprocess
import sys

import pytest

from mindgw.store import schema
from tests.faces.conftest import Terminal
from tests.postgres import at, execute

HEAD = schema.head()
BEFORE = schema.before(HEAD)

#: Serves from a directory as far as the lock can tell, until its input is closed.
HOLD = """
import sys
from pathlib import Path
from mindgw.control import lock
with lock.hold(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def read(result, code=0):
    assert result.code == code, result.err
    return json.loads(result.out)


def secretly(url):
    """With a password; a server of our own asks for none."""
    return url.replace(":@", ":hunter2@")


@pytest.fixture
def db(cli, tmp_path):
    """`mindgw db WORDS` on a data directory that was just made."""
    directory = tmp_path / "d"
    assert cli("init", "--data-dir", str(directory), "-q").code == 0
    return lambda *words: cli("db", *words, "--data-dir", str(directory))


@pytest.fixture
def pg(cli, tmp_path, postgres_url):
    """The same with a Postgres, whose password must not be seen."""
    directory = tmp_path / "p"
    assert cli("init", "--data-dir", str(directory), "--db", secretly(postgres_url), "-q").code == 0
    return lambda *words: cli("db", *words, "--data-dir", str(directory))


def change(tmp_path, *statements):
    with sqlite3.connect(tmp_path / "d" / "mindgw.db") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_status_says_what_it_is(db, tmp_path):
    found = read(db("status", "--json"))
    assert (found["database"], found["kind"], found["state"]) == (str(tmp_path / "d" / "mindgw.db"), "sqlite", "current")
    assert (found["revision"], found["head"], found["serving"]) == (HEAD, HEAD, None)
    assert (found["journal"], found["synchronous"]) == ("wal", "full")
    assert found["rows"]["keys"] == 1 and found["size"] > 50_000
    lines = dict(line.split(maxsplit=1) for line in db("status").out.splitlines())
    assert (lines["state"], lines["revision"]) == ("current", f"{HEAD} of {HEAD}")
    assert "KiB" in lines["size"] and "keys 1" in lines["rows"] and lines["served"] == "by  nobody"
    assert db("status", "-q").out == "current\n"


def test_status_and_check_of_a_postgres(pg):
    found = read(pg("status", "--json"))
    assert (found["kind"], found["state"], found["rows"]["keys"]) == ("postgresql", "current", 1)
    assert found["version"][0].isdigit() and found["synchronous"] in {"on", "off"} and found["size"] > 1_000_000
    shown = pg("status")
    assert "hunter2" not in json.dumps(found) + shown.out + shown.err and "***" in found["database"]
    report = read(pg("check", "--json"))
    assert (report["ok"], report["checks"]) == (True, ["indexes", "constraints", "revision", "schema"])


def test_a_database_of_a_newer_release_is_shown_and_left_alone(db, tmp_path):
    change(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    before = (tmp_path / "d" / "mindgw.db").read_bytes()
    shown = db("status")
    assert shown.code == 3 and "newer" in shown.out and "a newer release made this database" in shown.err
    for words in (["upgrade"], ["downgrade", "-y"]):
        refused = db(*words)
        assert refused.code == 1 and "code=schema_newer" in refused.err and "9999" in refused.err
    assert db("check").code == 3
    assert (tmp_path / "d" / "mindgw.db").read_bytes() == before
    assert not (tmp_path / "d" / "backups").exists()


def test_down_one_step_and_up_again_with_copies(db, tmp_path):
    down = read(db("downgrade", "--yes", "--json"))
    assert (down["before"], down["after"]) == (HEAD, BEFORE)
    behind = db("status")
    assert behind.code == 3 and "mindgw db upgrade" in behind.err and f"{BEFORE} of {HEAD}" in behind.out
    checked = db("check")
    assert checked.code == 3 and HEAD in checked.out and "1 thing is wrong" in checked.err
    up = db("upgrade")
    assert up.code == 0 and f"from {BEFORE} to {HEAD}" in up.err
    copies = sorted((tmp_path / "d" / "backups").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert str(copies[0]) == down["backup"] and str(copies[1]) in up.err
    assert read(db("upgrade", "--json")) == {"before": HEAD, "after": HEAD, "backup": None}
    assert db("check").code == 0


def test_down_to_a_named_revision(pg):
    first = schema.revisions()[0]
    assert read(pg("downgrade", first, "-y", "--json")) == {"before": HEAD, "after": first, "backup": None}
    assert read(pg("upgrade", "--json"))["after"] == HEAD
    assert pg("check").code == 0


@pytest.mark.parametrize("revision", [HEAD, "9999", "x"])
def test_down_to_what_is_not_older_is_a_wrong_command(db, revision):
    refused = db("downgrade", revision, "--yes")
    assert refused.code == 2 and schema.revisions()[0] in refused.err
    assert db("status").code == 0


def test_from_the_first_revision_there_is_no_way_down(db):
    db("downgrade", schema.revisions()[0], "--yes")
    refused = db("downgrade", "--yes")
    assert refused.code == 2 and "there is no older one" in refused.err


def test_the_way_down_must_be_typed(db, tmp_path):
    refused = db("downgrade")
    assert refused.code == 2 and "--yes required" in refused.err
    for typed, code in (("y", 1), (BEFORE, 0)):
        terminal = Terminal("db", "downgrade", "--data-dir", str(tmp_path / "d"))
        assert "a copy is made first" in terminal.hear(f"Type {BEFORE} to do it:")
        terminal.type(f"{typed}\n")
        assert terminal.end().code == code
        assert (db("status").code == 0) is (code == 1)


def test_of_a_postgres_no_copy_is_promised(pg, tmp_path):
    terminal = Terminal("db", "downgrade", "--data-dir", str(tmp_path / "p"))
    assert "pg_dump" in terminal.hear("to do it:")
    terminal.type("\n")
    assert terminal.end().code == 1


def test_beside_a_running_server_it_only_looks(db, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "d")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        refused = db("downgrade", "--yes")
        assert refused.code == 7 and f"process {process.pid}" in refused.err
        assert (db("check").code, db("upgrade").code) == (0, 0)
        assert f"process {process.pid}" in db("status").out
        change(tmp_path, f"UPDATE alembic_version SET version_num = '{BEFORE}'")
        assert f"process {process.pid} serves" in db("upgrade").err
    finally:
        process.communicate(timeout=20)


def test_a_postgres_that_another_server_uses_is_not_taken_back(pg, postgres_url):
    import asyncpg

    async def beside():
        other = await asyncpg.connect(postgres_url, server_settings={"application_name": "mindgw"})
        try:
            return await asyncio.to_thread(pg, "downgrade", "--yes")
        finally:
            await other.close()

    refused = asyncio.run(beside())
    assert refused.code == 7 and "code=database_in_use" in refused.err
    assert pg("status").code == 0


def test_a_check_names_what_is_wrong(db, tmp_path):
    change(tmp_path, "DROP INDEX ix_audit_at", "PRAGMA foreign_keys=OFF", "DELETE FROM orgs")
    shown = db("check")
    assert shown.code == 3
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[0] == ["CHECK", "OBJECT", "PROBLEM"] and {row[0] for row in rows[1:]} == {"references", "schema"}
    report = read(db("check", "--json"), 3)
    assert not report["ok"] and {problem["object"] for problem in report["problems"]} >= {"keys", "ix_audit_at"}
    assert "ix_audit_at" in db("check", "-q").out.splitlines()


def test_an_index_that_postgres_did_not_finish_is_found(pg, postgres_url):
    asyncio.run(execute(postgres_url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_audit_at'::regclass"))
    assert [problem["object"] for problem in read(pg("check", "--json"), 3)["problems"]] == ["ix_audit_at"]


def test_a_file_that_is_gone_is_told(db, tmp_path):
    (tmp_path / "d" / "mindgw.db").unlink()
    shown = db("status")
    assert shown.code == 3 and "mindgw init" in shown.err and "empty" in shown.out
    assert [db(*words).code for words in (["check"], ["upgrade"], ["downgrade", "-y"])] == [1, 1, 1]
    assert not (tmp_path / "d" / "mindgw.db").exists()


@pytest.mark.parametrize("verb", ["status", "check", "upgrade", "downgrade"])
def test_a_directory_of_nobody_is_left_as_it_is(cli, tmp_path, verb):
    refused = cli("db", verb, "--data-dir", str(tmp_path / "nothing"), "-y")
    assert refused.code == 1 and "mindgw init" in refused.err
    assert not (tmp_path / "nothing").exists()


def test_a_postgres_that_is_not_there_is_told_without_its_password(cli, pg, tmp_path, postgres_url):
    nowhere = at(secretly(postgres_url), "nowhere")
    file = tmp_path / "p" / "config.yaml"
    file.write_text(f'database: "{nowhere}"\n')
    refused = cli("db", "status", "--config", str(file), "--data-dir", str(tmp_path / "p"))
    assert refused.code == 1 and "cannot open the database" in refused.err and "hunter2" not in refused.err


def test_large_sizes_are_said_in_large_units():
    from mindgw.cli.db import _size

    assert [_size(size) for size in (1, 2048, 5 * 2**20, 3 * 2**30, 2**41)] == ["1 B", "2.0 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"]
