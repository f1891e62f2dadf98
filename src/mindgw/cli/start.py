"""Where `mindgw` begins. Imports next to nothing, for until the commands are loaded a Ctrl-C would end in a traceback."""

import os
import signal
from types import FrameType


def main() -> int:
    """Runs one command and returns its exit code."""
    # a SIGINT that is ignored, as a shell does for what it puts into the background, stays so
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, _leave)
    from mindgw.cli import app

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return app.main()


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Nothing has begun, so there is nothing to clean up."""
    os._exit(130)
