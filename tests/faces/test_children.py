"""Processes that a command starts end with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindgw.cli.children import Children
from mindgw.client.errors import ClientError, Unreachable

PATIENCE = 30

#: What the children of these tests run, each a module of its own.
MODULES = {
    "sleeper": "import signal; signal.pause()",
    "stubborn": "import signal as s; s.signal(s.SIGTERM, s.SIG_IGN); print('here', flush=True); [s.pause() for _ in iter(int, 1)]",
    "failing": "import sys; sys.exit(print('no such model', file=sys.stderr) or 4)",
    "told": "import sys; print(sys.argv[1:], flush=True)",
    "polite": """import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print('here', flush=True)
signal.pause()
""",
}
SLEEPER = ["sleeper"]


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    place = tmp_path / "modules"
    place.mkdir()
    for name, text in MODULES.items():
        (place / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(place))


def is_gone(child):
    try:
        os.kill(child.process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_all_end_when_the_work_is_done(tmp_path):
    with Children(tmp_path) as children:
        started = [children.start(f"sleeper {number}", SLEEPER) for number in range(2)]
        assert not any(is_gone(child) for child in started)
    assert all(is_gone(child) for child in started)
    assert started[0].process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ClientError("x"), SystemExit(3)])
def test_all_end_when_the_work_fails(tmp_path, failure):
    with pytest.raises(type(failure)), Children(tmp_path) as children:
        child = children.start("sleeper", SLEEPER)
        raise failure
    assert is_gone(child)


def test_one_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("mindgw.cli.children.GRACE", 0.05)
    with Children(tmp_path) as children:
        child = children.start("stubborn one", ["stubborn"], speaks=True)
        assert child.process.stdout.readline() == "here\n"
    assert child.process.returncode == -signal.SIGKILL


def test_a_child_that_fails_is_reported_with_its_last_words(tmp_path):
    with Children(tmp_path) as children, pytest.raises(ClientError, match="failing one ended .exit 4") as failed:
        children.start("failing one", ["failing"])
        children.wait_for("it", lambda: False, 30)
    assert "no such model" in failed.value.hint


def test_waiting_has_an_end(tmp_path):
    with Children(tmp_path) as children, pytest.raises(Unreachable, match="the thing was not ready within 0 s"):
        children.start("sleeper", SLEEPER)
        children.wait_for("the thing", lambda: False, 0.01)


def test_a_child_is_told_its_arguments_and_takes_no_module_from_where_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "runpy.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with Children(tmp_path) as children:
        child = children.start("told one", ["told", "--port", "0", "a b"], speaks=True)
        assert child.process.stdout.readline() == "['--port', '0', 'a b']\n"


def parent(logs: Path, module: str) -> "subprocess.Popen[str]":
    """A process that starts one child and waits; its first line is what the child said first, with the child's pid."""
    script = f"""
import signal
from pathlib import Path
from mindgw.cli.children import Children
with Children(Path({str(logs)!r})) as children:
    child = children.start("child", [{module!r}], speaks=True)
    print(child.process.pid, child.process.stdout.readline().strip(), flush=True)
    signal.pause()
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def runs(pid: int) -> bool:
    """A zombie that nobody collects does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while runs(pid):
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.02)


def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path):
    with parent(tmp_path, "polite") as process:
        pid, said = process.stdout.readline().split()
        assert said == "here"
        assert runs(int(pid))
        process.kill()
        until_gone(int(pid))


def test_one_that_does_not_listen_is_killed_without_its_parent_too():
    script = "import sys; from mindgw.cli import leash; leash.GRACE = 0.05; sys.argv = ['leash', 'stubborn']; leash.main()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.stdin.close()
        assert process.wait(PATIENCE) == -signal.SIGKILL
