"""One server a data directory."""

import os
import subprocess
import sys

import pytest

from mindgw.control import lock
from mindgw.errors import ConfigError, Conflict

HOLD = """
import sys
from pathlib import Path
from mindgw.control import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that serves from the directory, until its input is closed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.communicate(timeout=20)


def test_a_second_server_is_refused_with_the_first_ones_pid(tmp_path, other):
    with pytest.raises(Conflict, match=rf"process {other.pid} already serves from {tmp_path}") as refused, lock.hold(tmp_path):
        pass
    assert refused.value.code == "already_running"
    assert lock.holder(tmp_path) == other.pid


def test_a_server_that_was_killed_holds_nothing(tmp_path, other):
    other.kill()
    other.wait(20)
    assert lock.holder(tmp_path) is None
    with lock.hold(tmp_path):
        assert lock.holder(tmp_path) == os.getpid()


def test_the_lock_ends_with_the_block(tmp_path):
    assert lock.holder(tmp_path) is None
    for _ in range(2):
        with lock.hold(tmp_path):
            assert (tmp_path / lock.FILE).stat().st_mode & 0o777 == 0o600
    assert lock.holder(tmp_path) is None


def test_an_error_of_the_server_is_not_taken_for_the_locks(tmp_path):
    with pytest.raises(BlockingIOError), lock.hold(tmp_path):
        raise BlockingIOError


def test_a_lock_file_without_a_pid_still_says_that_somebody_serves(tmp_path, other):
    (tmp_path / lock.FILE).write_text("nonsense")
    assert lock.holder(tmp_path) == 0
    with pytest.raises(Conflict, match="another process"), lock.hold(tmp_path):
        pass


def test_a_directory_that_was_never_made_is_told(tmp_path):
    with pytest.raises(ConfigError) as refused, lock.hold(tmp_path / "none"):
        pass
    assert "mindgw init" in refused.value.hint
