"""An engine that the agent owns: begun with it, begun anew when it ends, and ended with it.

The command line is the owner's own, from the box itself. Its process leads a group of its own, so that a Ctrl-C for the agent does not end
it in the middle of an answer, and so that nothing of it is left over: an agent that is killed cannot end that group any more, so a *guard*
does, a shell that waits for the end of a pipe which nobody but the agent holds.
"""

import asyncio
import contextlib
import logging
import os
import random
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

from mindgw_agent import errors

log = logging.getLogger("mindgw.agent")

#: Seconds before it is begun anew: the first and the longest; and for how long it must have lived to start from the first again.
FIRST_DELAY: Final = 1.0
LAST_DELAY: Final = 60.0
LIVED: Final = 60.0
#: Seconds to end by itself.
GRACE: Final = 10.0
#: What the guard does: it is told a group, and once there is nobody any more who could say a second word it ends that, as `_end` does.
_GUARD: Final = 'read -r group || exit; read -r word; kill -s TERM -- "-$group"; sleep "$0"; kill -s KILL -- "-$group"'


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
        async with _guard() as guard:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
            )
            guard(process.pid)
            log.info("the engine runs: %s (process %d)", words[0], process.pid)
            began(process.pid)
            try:
                code = await process.wait()
            finally:
                await asyncio.shield(_end(process))
    except (OSError, ValueError) as error:
        return f"cannot be begun: {error}"
    return f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"


@contextlib.asynccontextmanager
async def _guard() -> AsyncIterator[Callable[[int], None]]:
    """To be told of a group, which ends with this process however it ends, unless the context was left before."""
    silent = asyncio.subprocess.DEVNULL
    guard = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", _GUARD, str(GRACE), stdin=asyncio.subprocess.PIPE, stdout=silent, stderr=silent, start_new_session=True
    )
    assert guard.stdin is not None
    pipe = guard.stdin
    try:
        yield lambda group: pipe.write(b"%d\n" % group)  # which takes these few bytes at once
    finally:
        with contextlib.suppress(ProcessLookupError):
            guard.kill()
        await guard.wait()


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
