"""Processes that a command starts end with it."""

import os
import signal
import sys

import pytest

from mindgw.cli.children import Children
from mindgw.client.errors import ClientError, Unreachable

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = [sys.executable, "-uc", "import signal as s; s.signal(s.SIGTERM, s.SIG_IGN); print('here'); [s.pause() for _ in iter(int, 1)]"]


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
        child = children.start("stubborn one", STUBBORN, speaks=True)
        assert child.process.stdout.readline() == "here\n"
    assert child.process.returncode == -signal.SIGKILL


def test_a_child_that_fails_is_reported_with_its_last_words(tmp_path):
    with Children(tmp_path) as children, pytest.raises(ClientError, match="failing one ended .exit 4") as failed:
        children.start("failing one", [sys.executable, "-c", "import sys; sys.exit(print('no such model', file=sys.stderr) or 4)"])
        children.wait_for("it", lambda: False, 30)
    assert "no such model" in failed.value.hint


def test_waiting_has_an_end(tmp_path):
    with Children(tmp_path) as children, pytest.raises(Unreachable, match="the thing was not ready within 0 s"):
        children.start("sleeper", SLEEPER)
        children.wait_for("the thing", lambda: False, 0.01)
