"""What the owner of a box decides on it, and that a running agent knows."""

from itertools import count

import pytest

from mindgw_agent import clock, decisions, errors, pause
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


def test_a_box_that_has_not_joined_cannot_be_paused_nor_resumed(tmp_path):
    for decide in (lambda: decisions.pause_box(StateDir(tmp_path), "1h"), lambda: decisions.resume_box(StateDir(tmp_path))):
        with pytest.raises(errors.NotEnrolled, match="has not joined"):
            decide()
    assert not StateDir(tmp_path).pause_file.exists()


def test_an_agent_that_takes_no_note_is_told_of(tmp_path, monkeypatch):
    """One serves from there, and never says that it is paused; what the owner decided stands all the same."""
    state = StateDir(tmp_path)
    monkeypatch.setattr(StateDir, "load", lambda state: object())
    monkeypatch.setattr(StateDir, "is_locked", lambda state: True)
    monkeypatch.setattr(decisions.status, "read", lambda state: Status())
    monkeypatch.setattr(decisions, "LOOK", 0.0)
    monkeypatch.setattr(decisions, "NOTICED", -1.0)
    with pytest.raises(errors.AgentError, match="takes? note") as failed:
        decisions.pause_box(state, "1h")
    assert "agent status" in failed.value.hint
    assert pause.until(state) > 0
    assert decisions.resume_box(state) == "it takes requests again"
    assert pause.until(state) == 0
