"""Processes that a command starts and, whatever happens, ends again: each by its own pid, and by a leash should the command be killed."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from mindgw import clock
from mindgw.cli import leash
from mindgw.client.errors import ClientError, Unreachable

#: Seconds that a child has to end by itself once asked to.
GRACE = leash.GRACE
_TICK = 0.1
_TAIL = 8


@dataclass(frozen=True, slots=True)
class Child:
    #: What people call it.
    title: str
    process: "subprocess.Popen[str]"
    #: Where its stderr goes, and its stdout unless that is read.
    log: Path

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])
        except OSError:
            return ""


class Children:
    """Use as a context: leaving it ends every child, the last one first, also after an error."""

    def __init__(self, logs: Path) -> None:
        #: Folder of the logs; made by the caller.
        self._logs = logs
        #: In the order in which they were started.
        self._running: list[Child] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # a second Ctrl-C must not leave anything behind
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while self._running:
                _end(self._running.pop())
        finally:
            signal.signal(signal.SIGINT, before)

    def start(self, title: str, words: Sequence[str], *, speaks: bool = False) -> Child:
        """Starts `python -m WORDS` in a session of its own, so that a Ctrl-C reaches this process alone. With `speaks` its stdout is a
        pipe to be read by the caller."""
        log = self._logs / f"{title.replace(' ', '-')}.log"
        with log.open("w", encoding="utf-8") as sink:
            output: int | IO[str] = subprocess.PIPE if speaks else sink
            process = subprocess.Popen(
                python(leash.__name__, *words),
                stdin=subprocess.PIPE,  # the leash
                stdout=output,
                stderr=sink,
                text=True,
                start_new_session=True,
                encoding="utf-8",
            )
        child = Child(title, process, log)
        self._running.append(child)
        return child

    def wait_for(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Looks until `ready` says yes. Raises ClientError with a log's end when a child has ended, Unreachable when time is up."""
        deadline = clock.monotonic() + seconds
        while not ready():
            self.check()
            if clock.monotonic() > deadline:
                raise Unreachable(f"{what} was not ready within {seconds:.0f} s", hint=f"the logs are in {self._logs}")
            self.rest(_TICK)
        self.check()

    def rest(self, seconds: float) -> None:
        """Pauses, but not longer than the newest child lives."""
        try:
            self._running[-1].process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return

    def check(self) -> None:
        """Raises ClientError when a child has ended that should not have."""
        for child in self._running:
            code = child.process.poll()
            if code is not None:
                words = child.last_words()
                raise ClientError(
                    f"the {child.title} ended (exit {code})", hint=f"its log {child.log} ends with:\n{words}" if words else ""
                )


def _end(child: Child) -> None:
    if child.process.poll() is None:
        child.process.terminate()
        try:
            child.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
    for pipe in (child.process.stdin, child.process.stdout):
        if pipe is not None:
            pipe.close()


def python(module: str, *words: str) -> list[str]:
    """The command line of a module of the same installation, wherever the user stands: no module is taken from there."""
    return [sys.executable, "-P", "-m", module, *words]
