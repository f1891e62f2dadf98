"""What an operator gets wrong with `mindgw init` and `mindgw serve`, in real processes on real files: three lines that name the way out,
and nothing left behind that breaks the next try."""

import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mindgw_agent.tokens import parse_key
from tests.faces.conftest import Result


@pytest.fixture
def mindgw(tmp_path):
    """`mindgw WORDS` in a process of its own, in an empty folder that is not its data directory."""
    (tmp_path / "here").mkdir(mode=0o755)

    def run(*words: str, cwd: Path = tmp_path / "here", **environ: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "mindgw", *words],
            cwd=cwd,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def data(tmp_path):
    return tmp_path / "d"


def refused(result: Result, code: int, *words: str) -> None:
    """Three lines on stderr, these words among them, and that exit code."""
    assert (result.code, result.out) == (code, ""), result.err
    lines = result.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint", "ref"], result.err
    assert "defect" not in result.err
    for word in words:
        assert word in result.err


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def free_port() -> int:
    with listener() as found:
        return int(found.getsockname()[1])


# -- the data directory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize("command", ["init", "serve"])
def test_an_empty_data_directory_is_a_wrong_command_and_touches_nothing(mindgw, tmp_path, command, text):
    here = tmp_path / "here"
    before = mode(here)
    refused(mindgw(command, "--data-dir", text), 2, "command line: --data-dir", "must be a path")
    assert (list(here.iterdir()), mode(here)) == ([], before)


@pytest.mark.parametrize("name", [".", "here"])
def test_a_directory_of_somebody_else_is_left_as_it_is(mindgw, tmp_path, name):
    here = tmp_path / "here"
    (here / "thesis.txt").write_text("mine")
    here.chmod(0o755)
    where = tmp_path if name == "here" else here
    refused(mindgw("init", "--data-dir", name, cwd=where), 1, "not empty", "--data-dir")
    assert ([file.name for file in here.iterdir()], mode(here)) == (["thesis.txt"], 0o755)


@pytest.mark.parametrize("prepared", [(), ("config.yaml",), ("lost+found/",)])
def test_a_directory_that_was_made_ready_for_us_is_taken_and_closed(mindgw, data, prepared):
    data.mkdir(mode=0o755)
    for name in prepared:
        (data / name).mkdir() if name.endswith("/") else (data / name).write_text("log:\n  level: debug\n")
    assert mindgw("init", "--data-dir", str(data)).code == 0
    assert mode(data) == 0o700


def test_a_settings_file_that_is_none_of_ours_keeps_its_directory_open(mindgw, data):
    data.mkdir(mode=0o755)
    (data / "config.yaml").write_text("- somebody\n- else\n")
    refused(mindgw("init", "--data-dir", str(data)), 1, "config.yaml:1")
    assert ([file.name for file in data.iterdir()], mode(data)) == (["config.yaml"], 0o755)


# -- addresses that are taken -------------------------------------------------------------------------------------------------


def test_a_taken_port_is_a_conflict_that_names_the_flag(mindgw, data):
    with closing(listener()) as taken:
        port = taken.getsockname()[1]
        assert mindgw("init", "--data-dir", str(data), "--port", str(port)).code == 0
        refused(mindgw("serve", "--data-dir", str(data)), 7, f"127.0.0.1:{port}", "--port", "code=address_in_use")
        said = mindgw("serve", "--data-dir", str(data), "--json")
        assert json.loads(said.err)["error"]["code"] == "address_in_use"


def test_a_taken_port_of_the_tls_listener_is_one_too_and_the_plain_one_is_given_back(mindgw, data):
    plain = free_port()
    with closing(listener()) as taken:
        port = taken.getsockname()[1]
        words = ("--port", str(plain), "--public-url", f"https://localhost:{port}", "--listen", f"127.0.0.1:{port}")
        assert mindgw("init", "--data-dir", str(data), *words).code == 0
        refused(mindgw("serve", "--data-dir", str(data)), 7, f"127.0.0.1:{port}", "--listen", "code=address_in_use")
    with closing(socket.create_server(("127.0.0.1", plain))):
        pass


def test_a_taken_port_of_the_metrics_names_its_setting(mindgw, data):
    with closing(listener()) as taken:
        port = taken.getsockname()[1]
        assert mindgw("init", "--data-dir", str(data), "--port", str(free_port())).code == 0
        with (data / "config.yaml").open("a") as file:
            file.write(f"metrics:\n  listen: 127.0.0.1:{port}\n")
        refused(mindgw("serve", "--data-dir", str(data)), 7, f"127.0.0.1:{port}", "metrics.listen")


def test_an_address_of_another_machine_is_told(mindgw, data):
    words = ("--port", str(free_port()), "--public-url", "https://localhost:8443", "--listen", "192.0.2.1:8443")
    assert mindgw("init", "--data-dir", str(data), *words).code == 0
    refused(mindgw("serve", "--data-dir", str(data)), 1, "192.0.2.1:8443", "--listen")


def test_a_second_server_of_one_directory_is_told_what_runs(mindgw, data):
    assert mindgw("init", "--data-dir", str(data), "--port", str(free_port())).code == 0
    serving = subprocess.Popen(
        [sys.executable, "-m", "mindgw", "serve", "--data-dir", str(data)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert serving.stderr is not None
        while b"listening" not in (line := serving.stderr.readline()):
            assert line
        refused(mindgw("serve", "--data-dir", str(data)), 7, f"process {serving.pid}", "code=already_running")
    finally:
        serving.terminate()
        serving.communicate(timeout=60)


# -- databases that cannot be used --------------------------------------------------------------------------------------------


def unreachable() -> str:
    return f"postgresql://gw:hunter2@127.0.0.1:{free_port()}/gw"


def test_an_init_whose_database_is_away_does_not_spoil_the_next(mindgw, data):
    failed = mindgw("init", "--data-dir", str(data), "--db", unreachable())
    refused(failed, 1, "cannot open the database", "--db")
    assert "hunter2" not in failed.err
    assert not (data / "config.yaml").exists()
    made = mindgw("init", "--data-dir", str(data), "--json")
    assert parse_key(json.loads(made.out)["api_key"])


def test_an_init_of_a_server_whose_new_database_is_away_keeps_the_old_one(mindgw, data):
    assert mindgw("init", "--data-dir", str(data)).code == 0
    before = (data / "config.yaml").read_bytes()
    refused(mindgw("init", "--data-dir", str(data), "--db", unreachable()), 1, "--db")
    assert (data / "config.yaml").read_bytes() == before
    assert mindgw("init", "--data-dir", str(data)).code == 0


@pytest.mark.parametrize("place", ["missing/y.db", "file/y.db", "folder", "text"])
def test_a_file_that_cannot_be_a_database_is_told(mindgw, tmp_path, data, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database " * 1000)
    refused(mindgw("init", "--data-dir", str(data), "--db", f"sqlite:///{tmp_path / place}"), 1, str(tmp_path / place), "--db")
    assert mindgw("init", "--data-dir", str(data)).code == 0


def test_an_option_that_the_database_does_not_know_is_told(mindgw, data):
    refused(mindgw("init", "--data-dir", str(data), "--db", f"{unreachable()}?colour=blue"), 1, "colour", "--db")


@pytest.mark.parametrize("loss", ["gone", "emptied"])
def test_a_server_that_has_lost_its_database_does_not_start_over_by_itself(mindgw, data, loss):
    assert mindgw("init", "--data-dir", str(data), "--port", str(free_port())).code == 0
    for file in data.glob("mindgw.db*"):
        file.unlink()
    if loss == "emptied":
        (data / "mindgw.db").touch()
    refused(mindgw("serve", "--data-dir", str(data)), 1, "mindgw.db", "mindgw init", "backup")
    made = mindgw("init", "--data-dir", str(data))
    assert made.code == 0
    assert "the database was missing: this one is new and empty" in made.err
    assert "API key" in made.err
    again = mindgw("init", "--data-dir", str(data))
    assert "missing" not in again.err


def test_what_is_left_of_a_lost_database_does_not_get_into_its_successor(mindgw, data):
    """A write-ahead log belongs to the file that it was written beside; SQLite would play it into any other."""
    assert mindgw("init", "--data-dir", str(data)).code == 0
    with closing(sqlite3.connect(data / "mindgw.db")) as connection:
        connection.execute("CREATE TABLE stranger (x)")
        connection.commit()
        log = (data / "mindgw.db-wal").read_bytes()
    (data / "mindgw.db").unlink()
    (data / "mindgw.db-wal").write_bytes(log)
    assert "new and empty" in mindgw("init", "--data-dir", str(data)).err
    with closing(sqlite3.connect(data / "mindgw.db")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert "keys" in tables and "stranger" not in tables
    assert (data / "mindgw.db-wal.lost").read_bytes() == log


# -- wrong flags --------------------------------------------------------------------------------------------------------------

WRONG = [
    ("init", ("--public-url", "http://x"), "--public-url: must be https://host:port, not 'http://x'"),
    ("init", ("--db", "mysql://x"), "--db: must be sqlite or an address"),
    ("init", ("--db", ""), "--db: must be sqlite or an address"),
    ("init", ("--listen", "127.0.0.1:8443"), "--listen: the TLS listener needs --public-url"),
    ("init", ("--public-url", "https://x:8443", "--listen", "nonsense"), "--listen: must be HOST:PORT, not 'nonsense'"),
    ("init", ("--public-url", "https://x:8443", "--port", "8443"), "would both take port 8443"),
    ("init", ("--with", "nonsense"), "--with: there is no template 'nonsense'"),
    ("serve", ("--public-url", "http://x"), "--public-url: must be https://host:port, not 'http://x'"),
    ("serve", ("--listen", "0.0.0.0:80"), "--listen: must be a loopback address"),
    ("serve", ("--public-url", "https://x:8443", "--listen", "nonsense"), "--listen: must be HOST:PORT, not 'nonsense'"),
    ("serve", ("--log-level", "loud"), "--log-level: must be one of debug, info, warning, error, not 'loud'"),
    ("serve", ("--log-format", "xml"), "--log-format: must be one of auto, json, text, not 'xml'"),
]


@pytest.mark.parametrize("known", [False, True], ids=["new", "again"])
@pytest.mark.parametrize(("command", "words", "message"), WRONG)
def test_a_wrong_flag_is_named_and_no_file_is_blamed(cli, data, command, words, message, known):
    if known:
        assert cli("init", "--data-dir", str(data)).code == 0
    before = {file.name: file.read_bytes() for file in data.iterdir() if file.suffix == ".yaml"} if known else {}
    result = cli(command, "--data-dir", str(data), *words)
    refused(result, 2, "command line: ", message, "--help")
    assert "config.yaml" not in result.err
    assert {file.name: file.read_bytes() for file in data.glob("*.yaml")} == before
    assert data.exists() == known


def test_a_flag_that_does_not_fit_the_settings_is_what_is_blamed(cli, data):
    assert cli("init", "--data-dir", str(data), "--port", "9001").code == 0
    refused(cli("init", "--data-dir", str(data), "--public-url", "https://x:9001"), 2, "command line: --public-url", "9001")
    assert cli("init", "--data-dir", str(data), "--public-url", "https://x:9002").code == 0
    refused(cli("serve", "--data-dir", str(data), "--port", "9002"), 2, "command line: --port", "9002")


def test_a_wrong_line_of_the_file_is_still_blamed_on_the_file(cli, data):
    assert cli("init", "--data-dir", str(data)).code == 0
    with (data / "config.yaml").open("a") as file:
        file.write("public_url: http://x\n")
    refused(cli("serve", "--data-dir", str(data), "--log-level", "debug"), 1, "config.yaml:5: public_url: must be", "settings.md")


def test_a_settings_file_that_is_not_there_is_told(cli, data):
    refused(cli("serve", "--data-dir", str(data), "--config", str(data / "none.yaml")), 1, "none.yaml", "--config")


def test_quietly_a_new_admin_key_is_the_only_word(mindgw, data):
    words = ("init", "--data-dir", str(data), "-q", "--new-admin-key")
    for made in (mindgw(*words), mindgw(*words)):
        assert (made.code, made.err, made.out.count("\n")) == (0, "", 1)
        assert parse_key(made.out.strip())
