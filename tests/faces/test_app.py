"""The tree of commands: what is there, under which names, how fast it starts."""

import json
import subprocess
import sys

import pytest

from mindgw import __version__
from mindgw.cli.app import MOUNTS

SLOW = {"aiohttp", "alembic", "litestar", "rich", "sqlalchemy", "sqlmodel", "textual", "uvicorn", "websockets"}
#: Every command that the scripts of operators rely on.
PROMISED = """init|serve|quickstart|status|chat|version|keys create|keys list|keys show|keys revoke|keys scan|join-tokens create
|join-tokens list|join-tokens revoke|queue list|queue watch|queue show|queue cancel|queue bump|queue pause|queue resume|queue stats
|agent join|agent run|agent status|agent leave|workers list|workers show|workers remove|models list|ca export|ca fingerprint
|login|logout|whoami|auth status|auth print-token|contexts list|contexts show|contexts use|contexts add|contexts rename|contexts remove
|users invite|users accept|users list|users show|users role|users disable|users enable|users remove|users sessions|users create
|users identities|users link|users unlink
|me|me limits|me usage|me models|me queue|me sessions|me sign-out|me keys list|me keys create|me keys revoke"""


def test_without_words_it_shows_its_help(cli):
    shown = cli()
    assert shown.code == 0
    assert all((f"\n  {mount.name} " in shown.out) is not mount.is_hidden for mount in MOUNTS)
    assert "Exit codes:" in shown.out


@pytest.mark.parametrize("command", [command.strip() for command in PROMISED.split("|")])
def test_every_promised_command_has_help(cli, command):
    for flag in ("--help", "-h"):
        shown = cli(*command.split(), flag)
        assert shown.code == 0
        assert shown.out.startswith(f"Usage: mindgw {command}")
        assert shown.err == ""


@pytest.mark.parametrize(
    "noun", ["keys", "key", "workers", "models", "join-tokens", "ca", "agent", "users", "user", "contexts", "context", "auth"]
)
def test_a_noun_alone_shows_its_help(cli, noun):
    shown = cli(noun)
    assert (shown.code, shown.err) == (0, "")
    assert "Commands:" in shown.out


@pytest.mark.parametrize(
    "words", [["--help"], ["keys", "--help"], ["chat", "-h"], ["init", "--help"], ["serve", "-h"], ["queue", "watch", "-h"], ["version"]]
)
def test_help_starts_without_what_is_slow_to_import(words):
    probe = "import sys; from mindgw.cli.app import main; code = main(sys.argv[1:]); print('\\n'.join(sys.modules)); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, check=True, timeout=60)
    loaded = {line.partition(".")[0] for line in done.stdout.splitlines()}
    assert "mindgw" in loaded
    assert not loaded & SLOW


@pytest.mark.parametrize("words", [["-V"], ["--version"], ["version"], ["version", "-q"]])
def test_it_knows_its_version(cli, words):
    assert __version__ in cli(*words).out


def test_version_as_json(cli):
    assert json.loads(cli("version", "--json").out) == {"version": __version__, "server": None}


def test_python_dash_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "mindgw", "nonsense"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "suggestion"), [(["keyz"], "'keys'"), (["keys", "lst"], "'list'"), (["worker", "shw"], "'show'"), (["statu"], "'status'")]
)
def test_a_typo_is_met_with_the_visible_name(cli, words, suggestion):
    refused = cli(*words)
    assert refused.code == 2
    assert f"Did you mean {suggestion}?" in refused.err
    assert refused.out == ""


@pytest.mark.parametrize(
    "words",
    [["keys", "create"], ["keys", "list", "--frobnicate"], ["-o", "yaml", "keys", "list"], ["keys", "list", "-o"], ["--timeout", "x"]],
)
def test_a_wrong_command_line_ends_with_2_and_three_lines(cli, words):
    refused = cli(*words)
    assert (refused.code, refused.out) == (2, "")
    first, second, third = refused.err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint:  ")
    assert third.endswith("exit 2")


def test_a_wrong_command_line_is_json_on_stderr_when_asked(cli):
    refused = cli("keys", "create", "--json")
    assert (refused.code, refused.out) == (2, "")
    assert json.loads(refused.err)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("words", "code"),
    [(["agent", "run"], 4), (["agent", "join", "mgwj1_x"], 2), (["agent", "status"], 3), (["agent", "run", "--nonsense"], 2)],
)
def test_the_agents_commands_share_the_exit_codes(cli, tmp_path, words, code):
    refused = cli(*words, "--state-dir", str(tmp_path))
    assert refused.code == code


def test_the_agents_commands_share_the_global_flags(cli, tmp_path):
    words = ("agent", "status", "--state-dir", str(tmp_path))
    for flagged in ((*words, "--json"), ("--json", *words), (*words, "-o", "json", "--no-input", "-y")):
        assert json.loads(cli(*flagged).out)["up"] is False
    refused = cli("agent", "run", "--state-dir", str(tmp_path), "--json")
    assert json.loads(refused.err)["error"]["code"] == "not_enrolled"
