"""`mindgw init` as scripts use it. Nothing but the command line is used."""

import json
import stat
from pathlib import Path

import pytest

from mindgw.client import contexts, credentials
from mindgw_agent.tokens import JoinToken, parse_key


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_it_prints_one_object_with_what_scripts_need(cli, tmp_path):
    made = read(cli("init", "--data-dir", str(tmp_path / "d"), "--port", "9999", "--json"))
    assert made.keys() == {"data_dir", "base_url", "api_key", "join_token"}
    assert made["data_dir"] == str(tmp_path / "d")
    assert made["base_url"] == "http://127.0.0.1:9999/v1"
    assert parse_key(made["api_key"])
    assert JoinToken.decode(made["join_token"]).urls == ["http://127.0.0.1:9999"]


def test_a_second_run_prints_the_same_with_a_fresh_token(cli, tmp_path):
    words = ("init", "--data-dir", str(tmp_path / "d"), "--json")
    first, second = read(cli(*words)), read(cli(*words))
    assert first.pop("join_token") != second.pop("join_token")
    assert first == second


def test_where_the_key_is_not_kept_it_is_null_and_can_be_made_anew(cli, tmp_path, monkeypatch):
    words = ("init", "--data-dir", str(tmp_path / "d"), "--json")
    first = read(cli(*words))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert read(cli(*words))["api_key"] is None
    again = read(cli(*words, "--new-admin-key"))["api_key"]
    assert parse_key(again)
    assert again != first["api_key"]
    assert read(cli(*words))["api_key"] == again


def test_the_server_becomes_the_current_context(cli, tmp_path):
    made = read(cli("init", "--data-dir", str(tmp_path / "a"), "--port", "9998", "--json"))
    first = contexts.load().get()
    assert (first.name, first.url) == ("local", "http://127.0.0.1:9998")
    assert "BEGIN CERTIFICATE" in first.ca_pem
    assert credentials.find(first.fingerprint) == made["api_key"]
    cli("init", "--data-dir", str(tmp_path / "b"), "--port", "9997")
    assert contexts.load().get().name == f"local-{contexts.load().get().fingerprint[:6]}"
    cli("init", "--data-dir", str(tmp_path / "a"))
    assert contexts.load().get() == first


def test_it_shows_the_key_to_people_on_stderr_alone(cli, tmp_path):
    shown = cli("init", "--data-dir", str(tmp_path / "d"))
    assert (shown.code, shown.out) == (0, "")
    key = credentials.find(contexts.load().get().fingerprint)
    assert key in shown.err
    assert f"mindgw serve --data-dir {tmp_path / 'd'}" in shown.err
    assert key not in cli("init", "--data-dir", str(tmp_path / "d")).err


def test_a_key_that_is_not_known_here_is_missed_and_the_way_to_another_is_shown(cli, tmp_path, monkeypatch):
    words = ("init", "--data-dir", str(tmp_path / "d"))
    cli(*words)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    shown = cli(*words)
    assert (shown.code, shown.out) == (0, "")
    assert "mindgw init --new-admin-key" in shown.err
    assert "was there already" in shown.err


def test_templates_are_rendered_on_request_and_named(cli, tmp_path):
    shown = cli("init", "--data-dir", str(tmp_path / "d"), "--with", "systemd")
    assert shown.code == 0
    files = [Path(line.split()[-1]) for line in shown.err.splitlines() if "Template" in line]
    assert files
    assert any(str(tmp_path / "d") in file.read_text() for file in files)


def test_quietly_it_prints_the_data_directory(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDGW_DATA_DIR", str(tmp_path / "from-the-environment"))
    shown = cli("init", "-q")
    assert (shown.out, shown.err) == (f"{tmp_path / 'from-the-environment'}\n", "")


def test_what_it_writes_is_private(cli, tmp_path):
    cli("init", "--data-dir", str(tmp_path / "d"))
    open_to_others = [file.name for file in (tmp_path / "d").rglob("*") if stat.S_IMODE(file.stat().st_mode) & 0o077]
    assert set(open_to_others) <= {"ca.pem"}
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--public-url", "http://x"], 2),
        (["--public-url", "gw"], 2),
        (["--db", "mysql://x"], 2),
        (["--port", "0"], 2),
        (["--port", "x"], 2),
    ],
)
def test_a_wrong_flag_is_a_wrong_command_and_leaves_nothing_behind(cli, tmp_path, flags, code):
    refused = cli("init", "--data-dir", str(tmp_path / "d"), *flags)
    assert (refused.code, refused.out) == (code, "")
    assert not (tmp_path / "d" / "mindgw.db").exists()


def test_a_directory_that_cannot_be_made_ends_with_1(cli, tmp_path):
    (tmp_path / "file").write_text("")
    refused = cli("init", "--data-dir", str(tmp_path / "file" / "d"))
    assert (refused.code, refused.out) == (1, "")
    assert "--data-dir" in refused.err


def test_a_home_that_cannot_be_written_costs_nothing_but_a_warning(cli, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    shown = cli("init", "--data-dir", str(tmp_path / "d"), "--json")
    assert parse_key(read(shown)["api_key"])
    assert "cannot be kept" in shown.err


def test_serving_from_nowhere_says_what_to_do(cli, tmp_path):
    refused = cli("serve", "--data-dir", str(tmp_path / "nothing"))
    assert refused.code == 1
    assert "mindgw init" in refused.err


def test_a_second_server_says_which_key_is_good_and_is_another_context(cli, tmp_path, postgres_url):
    first = read(cli("init", "--data-dir", str(tmp_path / "a"), "--port", "9101", "--db", postgres_url, "--json"))
    words = ("init", "--data-dir", str(tmp_path / "b"), "--port", "9102", "--db", postgres_url, "--secrets-from", str(tmp_path / "a"))
    shown = cli(*words)
    assert (shown.code, shown.out) == (0, "")
    assert f"Admin key   admin (mgw_{parse_key(first['api_key'])[0]}_…" in shown.err
    assert first["api_key"] not in shown.err
    second = read(cli(*words, "--json"))
    assert (second["api_key"], second["base_url"]) == (first["api_key"], "http://127.0.0.1:9102/v1")
    known = contexts.load()
    assert {context.url for context in known.items.values()} == {"http://127.0.0.1:9101", "http://127.0.0.1:9102"}
    assert len({context.fingerprint for context in known.items.values()}) == 1
    read(cli("init", "--data-dir", str(tmp_path / "c"), "--port", "9103", *words[5:], "--json"))
    assert {context.url[-4:] for context in contexts.load().items.values()} == {"9101", "9102", "9103"}
    assert cli("init", "--data-dir", str(tmp_path / "a"), "-q").code == 0
    assert (contexts.load().get().url, len(contexts.load().items)) == ("http://127.0.0.1:9101", 3)


@pytest.mark.parametrize(("first", "database"), [("b", "postgresql://u:secret@h/d"), ("a", "sqlite")])
def test_a_second_server_that_cannot_be_is_a_wrong_command(cli, tmp_path, first, database):
    assert cli("init", "--data-dir", str(tmp_path / "a"), "-q").code == 0
    words = ("init", "--data-dir", str(tmp_path / "b"), "--db", database, "--secrets-from", str(tmp_path / first))
    refused = cli(*words)
    assert refused.code == 2 and "--secrets-from" in refused.err and "secret@" not in refused.err
    assert not (tmp_path / "b").exists()
