"""`mindgw quickstart` with everything real: server, agent and llama.cpp as processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.house import ROOT

pytestmark = pytest.mark.e2e
pytest.importorskip("xllamacpp")

PATIENCE = 120


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def command(tmp_path, *words):
    return [sys.executable, "-m", "mindgw", "quickstart", "--data-dir", str(tmp_path / "d"), "--embedded", *words]


def processes_of(directory):
    """Command lines of processes that mention the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(directory) in line:
                found.append(line)
    return found


def test_it_answers_twice_in_a_row_and_leaves_nothing_running(tmp_path, taken):
    """The first time its port is taken."""
    for flags in (["--port", str(taken)], []):
        done = subprocess.run(
            command(tmp_path, "--exit-after-answer", "--json", *flags), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["answer"].strip()
        assert (said["model"], said["embedded"]) == ("tiny-babbler", True)
        assert f":{taken}/" not in said["base_url"]
        assert (f"port {taken} is taken" in done.stderr) is bool(flags)
        assert "babbles" in done.stderr
        assert said["api_key"] not in done.stderr
        assert processes_of(tmp_path) == []


def read_until(stream, mark):
    """What a child says up to the line with the mark, or up to its end."""
    said = ""
    while mark not in said and (line := stream.readline()):
        said += line
    return said


def test_it_stays_up_until_it_is_interrupted(tmp_path, taken):
    with subprocess.Popen(command(tmp_path, "--port", str(taken)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        shown = read_until(child.stdout, "-d '")
        talk = read_until(child.stderr, "Up until Ctrl-C")
        assert "Up until Ctrl-C" in talk, talk
        curl = shown[shown.index("curl ") :]
        root, key = curl.split()[1].removesuffix("/v1/chat/completions"), curl.split("Bearer ")[1].split("'")[0]
        request = urllib.request.Request(f"{root}/v1/models", headers={"authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny-babbler"
        child.send_signal(signal.SIGINT)
        _, talk = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, talk
    assert processes_of(tmp_path) == []


@pytest.fixture
def up(tmp_path):
    """A quickstart that has answered."""
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        talk = read_until(child.stderr, "Up until Ctrl-C")
        assert "Up until Ctrl-C" in talk, talk
        yield child
        child.kill()


def quickstart(tmp_path, *words, **environ):
    return subprocess.run(
        command(tmp_path, *words), capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **environ}
    )


def refused(done, code, *words):
    """Three lines for people, and that exit code."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint", "ref"], done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_second_one_is_refused_and_a_kill_leaves_nothing_running(tmp_path, up):
    serving = (tmp_path / "d/serve.lock").read_text()
    agent = (tmp_path / "d/quickstart/agent/agent.key").stat()
    refused(quickstart(tmp_path), 7, f"a server already runs (process {serving})", f"kill {serving}", "code=already_running")
    said = json.loads(quickstart(tmp_path, "--json").stderr)["error"]
    assert said["code"] == "already_running"
    assert (tmp_path / "d/quickstart/agent/agent.key").stat().st_ino == agent.st_ino, "the first one's agent is who it was"
    assert len(processes_of(tmp_path)) == 4, "it, its server, its agent and its engine"
    up.kill()
    up.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while processes_of(tmp_path):
        assert time.monotonic() < deadline, processes_of(tmp_path)
        time.sleep(0.05)


def test_uninstall_takes_all_that_it_made(tmp_path, up):
    """The names that install.sh knows are those that there are."""
    up.send_signal(signal.SIGINT)
    assert up.wait(PATIENCE) == 0
    made = sorted(path.name for path in (tmp_path / "d").rglob("*"))
    assert {"mindgw.db", "agent.json", "server.log"} <= set(made)
    environ = {**os.environ, "MINDGW_DATA_DIR": str(tmp_path / "d")}
    script = ["sh", str(ROOT / "install.sh"), "--uninstall", "--purge"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "d").exists(), done.stderr


@pytest.mark.parametrize("where", ["/proc/x", "file", "x" * 300])
def test_a_data_directory_that_cannot_be_is_an_error_of_three_lines(tmp_path, where):
    (tmp_path / "file").write_text("")
    words = ["--data-dir", str(tmp_path / where)]
    refused(quickstart(tmp_path, *words), 1, where)
    done = quickstart(tmp_path, *words, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["hint"]


@pytest.mark.parametrize("start", [[sys.executable, "-m", "mindgw"], [str(Path(sys.executable).with_name("mindgw"))]], ids=["-m", "script"])
def test_an_interrupt_while_it_is_still_being_loaded_is_silent(tmp_path, start):
    """The first thing that the commands import presses Ctrl-C."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = ["quickstart", "--data-dir", str(tmp_path / "d")]
    done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=PATIENCE, check=False, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_ignored_interrupt_stays_ignored():
    """A shell that starts us in the background wants it so."""
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from mindgw.cli import start; sys.argv = ['mindgw', '-V']\n"
    script += "start.main(); sys.exit(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_that_cannot_start_is_reported_and_nothing_is_left(tmp_path):
    subprocess.run([sys.executable, "-m", "mindgw", "init", "--data-dir", str(tmp_path / "d"), "-q"], check=True, timeout=PATIENCE)
    (tmp_path / "d" / "pepper").write_bytes(b"short")
    done = subprocess.run(command(tmp_path, "--exit-after-answer"), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert processes_of(tmp_path) == []
