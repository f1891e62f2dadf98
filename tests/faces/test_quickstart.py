"""`mindgw quickstart` with everything real: server, agent and llama.cpp as processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

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


def test_a_server_that_cannot_start_is_reported_and_nothing_is_left(tmp_path):
    subprocess.run([sys.executable, "-m", "mindgw", "init", "--data-dir", str(tmp_path / "d"), "-q"], check=True, timeout=PATIENCE)
    (tmp_path / "d" / "pepper").write_bytes(b"short")
    done = subprocess.run(command(tmp_path, "--exit-after-answer"), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert processes_of(tmp_path) == []
