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

from mindgw_agent import cli, errors, unit
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
    file = box.path.parent / "config/systemd/user/mindgw-gpu-1-.service"
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
    text = (tmp_path / "system/mindgw-gpu-1-.service").read_text()
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
