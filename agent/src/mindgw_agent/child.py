"""An engine that the agent owns: begun with it, begun anew when it ends, and ended with it.

The command line is the owner's own, from the box itself. Its process leads a group of its own, so that a Ctrl-C for the agent does not end
it in the middle of an answer, and so that nothing of it is left over.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Final

from mindgw_agent import errors

log = logging.getLogger("mindgw.agent")

#: Seconds before it is begun anew: the first and the longest; and for how long it must have lived to start from the first again.
FIRST_DELAY: Final = 1.0
LAST_DELAY: Final = 60.0
LIVED: Final = 60.0
#: Seconds to end by itself.
GRACE: Final = 10.0
#: Of Linux: the signal that comes when the one who began it is gone.
_PR_SET_PDEATHSIG: Final = 1


def words_of(command: str) -> list[str]:
    """The command line in words, as a shell would cut it; nothing else of a shell is understood. Raises `Misuse`."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise errors.Misuse(f"--exec {command!r}: {error}", hint='as in --exec "llama-server -m model.gguf --port 8080"') from None
    if not words:
        raise errors.Misuse("--exec is empty", hint='as in --exec "llama-server -m model.gguf --port 8080"')
    return words


def delay(failures: int, roll: float) -> float:
    """Seconds before the next try: between half of 1, 2, 4 … 60 s and all of it."""
    longest = min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + roll / 2)


async def supervise(words: list[str], began: Callable[[int], None] = lambda pid: None, roll: Callable[[], float] = random.random) -> None:
    """Run the engine, again and again, until this is cancelled: then it is asked to end, and after GRACE seconds made to.

    `began` is called with each process id. A command that is not there is tried again as well: it may be on a disk that comes later.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        begun = loop.time()
        why = await _once(words, began)
        failures = 1 if loop.time() - begun >= LIVED else failures + 1
        pause = delay(failures, roll())
        log.warning("the engine %s; it is begun anew in %.1f s", why, pause)
        await asyncio.sleep(pause)


async def _once(words: list[str], began: Callable[[int], None]) -> str:
    """One life of the engine; why it is over, for people."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True, preexec_fn=_end_with_parent
        )
    except (OSError, ValueError) as error:
        return f"cannot be begun: {error}"
    log.info("the engine runs: %s (process %d)", words[0], process.pid)
    began(process.pid)
    try:
        code = await process.wait()
    finally:
        await asyncio.shield(_end(process))
    return f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Nothing of its group is left when this returns."""
    _tell(process.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            await process.wait()
    _tell(process.pid, signal.SIGKILL)
    await process.wait()


def _tell(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_with_parent() -> None:
    """In the new process, before it is the engine: an agent that was killed cannot end it any more, so the system does."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
