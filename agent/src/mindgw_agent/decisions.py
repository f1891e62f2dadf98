"""What the owner of a box decides on it, whatever the server would like, and how a running agent comes to know."""

import time
from typing import Final

from mindgw_agent import clock, errors, pause, status
from mindgw_agent.settings import StateDir

#: Seconds for a running agent to take note, and between looks at whether it has.
NOTICED: Final = 15.0
LOOK: Final = 0.05


def pause_box(state: StateDir, span: str) -> str:
    """Begins a pause; what came of it, for people. Raises `Misuse`, `NotEnrolled`, `BadState`, and AgentError when nobody takes note."""
    until = -(-clock.unix_ms() // 1000) + pause.seconds(span)  # no shorter than was asked for
    _check(state)
    pause.begin(state, until)
    running = _noted(state, clock.at(until), until).running
    return f"paused until {clock.at(until)}" + (f"; {running} requests run to their end" if running else "")


def resume_box(state: StateDir) -> str:
    """Ends a pause, if there is one; else as `pause_box`."""
    _check(state)
    pause.end(state)
    _noted(state, None)
    return "it takes requests again"


def _check(state: StateDir) -> None:
    if state.load() is None:
        raise errors.NotEnrolled(f"{state.path} has not joined a server")


def _noted(state: StateDir, wanted: str | None, until: int | None = None) -> status.Status:
    """What the agent that serves from there says once it has taken note; at once when none does, or when a pause `until` then is over: it
    may have come and gone between two looks."""
    end = time.monotonic() + NOTICED
    while state.is_locked() and status.read(state).paused_until != wanted and (until is None or clock.unix_ms() < until * 1000):
        if time.monotonic() > end:
            raise errors.AgentError("the agent that serves does not take note", hint="`mindgw agent status` says how it is")
        time.sleep(LOOK)
    return status.read(state)
