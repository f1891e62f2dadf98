"""The tiny model and the process that serves it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from mindgw.quickstart import engine, tiny_model
from tests.real_engine import PATIENCE, Shape, model_file, start_engine


def test_a_model_is_small_and_the_same_every_time(tmp_path):
    files = [tiny_model.write(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size < 1_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_shapes_make_different_models(tmp_path):
    small = tiny_model.write(tmp_path / "small.gguf")
    large = tiny_model.write(tmp_path / "large.gguf", Shape(embd=128, layers=3))
    assert large.stat().st_size > 2 * small.stat().st_size


def test_it_serves_babble_on_loopback_and_ends_when_asked():
    with start_engine(slots=3, alias="parrot") as running:
        assert running.url.startswith("http://127.0.0.1:")
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200}).encode()
        request = urllib.request.Request(running.url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            answer = json.load(response)
        words = answer["choices"][0]["message"]["content"].replace(",", " ").replace(".", " ").split()
        assert answer["model"] == "parrot"
        assert set(words) <= set(tiny_model.VOCABULARY)
        assert running.stop() == 0


@pytest.mark.parametrize("slots", [1, 5, 7])
def test_any_number_of_slots_can_be_had(slots):
    with start_engine(slots=slots) as running, urllib.request.urlopen(running.url + "/props", timeout=PATIENCE) as response:
        assert json.load(response)["total_slots"] == slots


def test_an_interrupt_ends_it_too():
    with start_engine() as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 0


def test_it_ends_with_its_parent():
    """The parent is a process of its own that starts the engine, tells its pid, and is killed."""
    script = (
        "import subprocess, sys, time\n"
        f"command = [sys.executable, '-m', 'mindgw.quickstart.engine', {str(model_file(Shape()))!r}]\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while alive(child):
        assert time.monotonic() < deadline, "the engine outlived its parent"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody collects does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def run(*arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    script = f"{prelude}\nfrom mindgw.quickstart.engine import main\nmain({list(arguments)!r})"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_without_the_wheel_it_names_the_extra():
    done = run(str(model_file(Shape())), prelude="import sys; sys.modules['xllamacpp'] = None")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == engine.MISSING
    assert "pip install 'mindgw[embedded]'" in done.stderr


def test_a_file_that_is_no_model_is_told(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF is not what this is")
    done = run(str(broken))
    assert (done.returncode, done.stdout) == (6, "")
    assert f"error: llama.cpp cannot serve {broken}" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["/nowhere/model.gguf"], [__file__, "--parallel", "0"], [__file__, "--port", "x"]])
def test_wrong_arguments_exit_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr
