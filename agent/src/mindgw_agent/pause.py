"""A pause of this box: its owner wants it for other things. What runs goes on, nothing new begins, and the server is told until when.

It stands in a file of the state directory, so that it outlives a restart of the agent and needs no door into it.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any, Final

from mindgw_agent import clock, errors
from mindgw_agent.offer import Offer
from mindgw_agent.settings import StateDir

log = logging.getLogger("mindgw.agent")

#: Seconds between looks at the file.
LOOK: Final = 0.5
#: The longest pause, in seconds: who wants more than a year leaves.
LONGEST: Final = 366 * 86400
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """`90s`, `15m`, `2h`, `1d`, or bare seconds. Raises `Misuse`."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    count = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < count <= LONGEST:
        raise errors.Misuse(f"{text!r} is not a span of time", hint="write it as 90s, 15m, 2h or 1d, a year at most")
    return count


def begin(state: StateDir, until: int) -> None:
    """On the disk when this returns. Raises `BadState`."""
    state.write(state.pause_file, f"{until}\n".encode())


def end(state: StateDir) -> None:
    """No pause is no error. Raises `BadState`."""
    try:
        state.pause_file.unlink(missing_ok=True)
    except OSError as error:
        raise errors.BadState(f"cannot remove {state.pause_file}: {error.strerror}") from None


def until(state: StateDir) -> int:
    """The Unix second until which the box is paused, 0 when it is not. A file that cannot be read is no pause."""
    try:
        text = state.pause_file.read_bytes()[:20].strip()
    except OSError:
        return 0
    found = int(text) if text.isdigit() else 0
    return found if found > clock.unix_ms() / 1000 else 0


async def heed(state: StateDir, offer: Offer[Any], changed: Callable[[], None]) -> None:
    """Keep the offer to the file, for ever; `changed` is called whenever that made a difference."""
    while True:
        found = await asyncio.to_thread(until, state)
        if found != offer.paused_until:
            log.info("paused until %s", clock.at(found)) if found else log.info("the pause is over")
            offer.paused_until = found
            changed()
        await asyncio.sleep(LOOK)
