"""What the owner of a box decides on it, and that a running agent knows."""

from itertools import count

from mindgw_agent import clock, decisions, pause
from mindgw_agent.settings import StateDir
from mindgw_agent.status import Status


def test_a_pause_that_is_over_before_anybody_looks_is_no_failure(tmp_path, monkeypatch):
    """An agent serves from there whose status is never seen in between."""
    state, now = StateDir(tmp_path), count(1_000_700, 100)
    monkeypatch.setattr(StateDir, "load", lambda state: object())
    monkeypatch.setattr(StateDir, "is_locked", lambda state: True)
    monkeypatch.setattr(decisions.status, "read", lambda state: Status())
    monkeypatch.setattr(decisions, "LOOK", 0.0)
    monkeypatch.setattr(clock, "unix_ms", lambda: next(now))
    assert decisions.pause_box(state, "1s") == f"paused until {clock.at(1002)}"
    assert state.pause_file.read_text() == "1002\n", "a second from 1000.7 s on is not over at 1001 s"
    assert pause.until(state) == 0
