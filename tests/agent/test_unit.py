"""The agent as a service. There is no systemd here: `systemctl` is a SUBSTITUTE that notes what it is told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import choices, cli, errors, unit
from mindgw_agent.settings import Settings, StateDir
from mindgw_agent.unit import Service

SUBSTITUTE = """#!{python}
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[-2:-1] == ["is-active"] or "is-active" in sys.argv:
    print("active")
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An enrolled state directory, and what systemctl was told."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/systemctl"
    program.write_text(SUBSTITUTE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    state = StateDir(tmp_path / "gpu 1%")
    state.save(Settings(agent_id="a1", name="gpu%h", servers=["http://127.0.0.1:9"], server_identity=bytes(32)))
    return state


def notes(box: StateDir) -> list[list[str]]:
    file = box.path.parent / "notes"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def typed(*words: str) -> int:
    return cli.main(["agent", "service", *words])


def test_a_unit_is_written_and_enabled_and_removed_again(box, capsys):
    directory = ("--state-dir", str(box.path))
    assert typed("status", *directory) == 3
    assert capsys.readouterr().out == "not installed\n"
    assert typed("install", *directory) == 0
    (file,) = (box.path.parent / "config/systemd/user").iterdir()
    assert file == Service(box, "user").file
    text = file.read_text()
    assert f'"--state-dir" "{box.path.parent}/gpu 1%%"' in text
    assert "Description=MindGateway agent gpu%%h\n" in text
    assert "User=" not in text
    assert notes(box) == [["--user", "daemon-reload"], ["--user", "enable", "--now", file.name]]
    assert "enable-linger" in capsys.readouterr().err
    assert typed("install", *directory) == 0  # again is no error
    assert file.read_text() == text
    assert typed("status", *directory) == 0
    assert typed("uninstall", *directory) == 0
    assert not file.exists()
    assert typed("uninstall", *directory) == 0
    assert notes(box)[-2:] == [["--user", "disable", "--now", file.name], ["--user", "daemon-reload"]]


def test_a_unit_of_the_system_runs_as_who_owns_the_directory(box, monkeypatch, tmp_path):
    monkeypatch.setattr(unit, "SYSTEM_UNITS", tmp_path / "system")
    Service(box, "system").install()
    text = Service(box, "system").file.read_text()
    assert "\nUser=" in text
    assert "WantedBy=multi-user.target" in text
    assert notes(box)[0] == ["daemon-reload"]


def test_what_systemctl_cannot_do_is_told(box, monkeypatch):
    monkeypatch.setenv("CODE", "1")
    with pytest.raises(errors.AgentError, match="systemctl daemon-reload failed"):
        Service(box, "user").install()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.AgentError, match="systemctl cannot be run"):
        Service(box, "user").install()


def test_where_nobody_joined_there_is_no_service(tmp_path):
    with pytest.raises(errors.NotEnrolled):
        Service(StateDir(tmp_path), "user").install()


def test_a_place_that_is_not_ours_is_told(box, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(unit, "SYSTEM_UNITS", tmp_path / "file")
    with pytest.raises(errors.BadState, match="cannot write"):
        Service(box, "system").install()


def test_directories_that_end_alike_have_units_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    usual = tmp_path / "mindgw-agent"
    paths = [Path(path) for path in ("/srv/a/state", "/srv/b/state", "/srv/x/agent", "/srv/box.1", "/srv/box-1", f"/srv/{'x' * 255}")]
    names = [Service(StateDir(path), "system").name for path in [usual, *paths]]
    assert names[0] == "mindgw-agent"
    assert len(set(names)) == len(names)
    assert all(len(name) < 100 for name in names)


def test_the_unit_of_another_agent_is_left_alone(box, monkeypatch, tmp_path, capsys):
    """Two users, each with the usual directory, and one system."""
    monkeypatch.setattr(unit, "SYSTEM_UNITS", tmp_path / "system")
    states = []
    for user in ("ana", "ben"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / user))
        state = StateDir(tmp_path / user / "mindgw-agent")
        state.save(Settings(agent_id=user, name=user, servers=["http://127.0.0.1:9"], server_identity=bytes(32)))
        states.append(state)
        if user == "ana":
            Service(state, "system").install()
    service = Service(states[1], "system")
    text, told = service.file.read_text(), notes(box)
    with pytest.raises(errors.Occupied, match="another agent"):
        service.install()
    with pytest.raises(errors.Occupied, match="another agent"):
        service.uninstall()
    assert (service.file.read_text(), notes(box)) == (text, told)


def test_proxies_of_the_environment_are_kept_for_the_service(box, monkeypatch):
    for name in ("https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    file = box.path / "environment"
    Service(box, "user").install()
    assert not file.exists()
    assert f"EnvironmentFile=-{box.path.parent}/gpu 1%%/environment\n" in Service(box, "user").file.read_text()
    monkeypatch.setenv("HTTPS_PROXY", 'http://ana:p$a"s@proxy.example:3128')
    monkeypatch.setenv("no_proxy", "10.0.0.0/8")
    Service(box, "user").install()
    assert sorted(file.read_text().splitlines()) == ['HTTPS_PROXY="http://ana:p\\$a\\"s@proxy.example:3128"', 'no_proxy="10.0.0.0/8"']
    assert file.stat().st_mode & 0o777 == 0o600
    read = subprocess.run(["sh", "-c", '. "$0"; printf %s "$HTTPS_PROXY"', str(file)], capture_output=True, text=True, check=True, env={})
    assert read.stdout == 'http://ana:p$a"s@proxy.example:3128'
    with file.open("a") as more:
        more.write("CUDA_VISIBLE_DEVICES=0\n")
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("no_proxy", "*")
    Service(box, "user").install()
    assert "CUDA_VISIBLE_DEVICES=0" in file.read_text() and file.read_text().count("proxy") == 2 and 'no_proxy="*"' in file.read_text()
    monkeypatch.setenv("no_proxy", "a\nLD_PRELOAD=b")
    with pytest.raises(errors.Misuse):
        Service(box, "user").install()
    box.forget()
    assert not file.exists()


def test_the_program_of_exec_is_found_again_by_a_service(tmp_path, monkeypatch):
    program = tmp_path / "llama server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for said in ("'llama server' -m 'a b'", "./llama\\ server -m 'a b'"):
        assert choices._findable(said) == f"'{program}' -m 'a b'"
    for kept in ("nowhere -m x", f"'{program}'   x", "", "'"):
        assert choices._findable(kept) == kept


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30))
def test_nothing_in_a_path_ends_its_word_or_stands_for_something_else(word):
    quoted = unit._quoted(word)
    inside = quoted[1:-1]
    assert inside.replace("\\\\", "").replace('\\"', "").count('"') == 0
    assert inside.replace("%%", "").count("%") == inside.replace("$$", "").count("$") == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_can_read_the_unit(box, tmp_path):
    file = tmp_path / "mindgw-agent.service"
    file.write_text(unit.render("gpu", box, "user"))
    done = subprocess.run(["systemd-analyze", "verify", "--user", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert "mindgw-agent.service" not in done.stderr, done.stderr
