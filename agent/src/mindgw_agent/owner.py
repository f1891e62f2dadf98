"""`mindgw agent pause` and `resume`: what the owner of a box decides on it, whatever the server would like."""

import time
from typing import Annotated

import typer

from mindgw_agent import clock, errors

SpanArgument = Annotated[str, typer.Argument(metavar="SPAN", help="90s, 15m, 2h or 1d.")]
#: Seconds for a running agent to notice.
NOTICED = 10.0


def mount(app: typer.Typer, state_option: object) -> None:
    """Puts the commands below `agent`; `state_option` is the type of --state-dir."""

    @app.command()
    def pause(span: SpanArgument, state_dir: state_option = None) -> int:  # type: ignore[valid-type]
        """Take no requests for a while: those that run go on, and the server sees until when.

        Example: mindgw agent pause 2h
        """
        from mindgw_agent import pause as pausing

        until = clock.unix_ms() // 1000 + pausing.seconds(span)
        return _settle(state_dir, until)

    @app.command()
    def resume(state_dir: state_option = None) -> int:  # type: ignore[valid-type]
        """Take requests again before the pause is over."""
        return _settle(state_dir, 0)


def _settle(directory: object, until: int) -> int:
    """Write it down, and wait until the agent that serves from there, if one does, has taken note."""
    from pathlib import Path

    from mindgw_agent import pause as pausing
    from mindgw_agent import status
    from mindgw_agent.settings import StateDir

    state = StateDir(directory if isinstance(directory, Path) else None)
    if state.load() is None:
        raise errors.NotEnrolled(f"{state.path} has not joined a server")
    if until:
        pausing.begin(state, until)
    else:
        pausing.end(state)
    wanted = clock.at(until) if until else None
    end = time.monotonic() + NOTICED
    while state.is_locked() and status.read(state).paused_until != wanted:
        if time.monotonic() > end:
            raise errors.AgentError("the agent that serves does not take note", hint="`mindgw agent status` says more", code="no_answer")
        time.sleep(0.05)
    running = status.read(state).running
    rest = f"; {running} requests run to their end" if until and running else ""
    typer.echo(f"✓ paused until {wanted}{rest}" if until else "✓ it takes requests again", err=True)
    return 0
