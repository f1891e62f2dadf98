"""Processes that the benchmark starts and, whatever happens, ends again: each by its own pid."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from bench import cores

ROOT = Path(__file__).resolve().parent.parent
#: Seconds that a process has to get ready, or to end once asked to.
READY, GRACE = 60.0, 10.0
#: Seconds between two looks whether something is ready.
LOOK = 0.005
#: What a child sees of our environment: no settings of the user, no keyring, no proxy.
KEPT = ("PATH", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


class NotReady(Exception):
    """Something did not start; the message says what, and its last words."""


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    child: "subprocess.Popen[bytes]"
    #: Where its stdout and stderr go.
    out: Path
    err: Path

    def last_words(self) -> str:
        """The end of what it said, for an error message."""
        text = self.err.read_text(encoding="utf-8", errors="replace") or self.out.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-10:])


class Processes:
    """Use as a context: leaving it ends all processes, the last one first. `folder` must exist; the caller removes it."""

    def __init__(self, folder: Path, plan: cores.Plan) -> None:
        self.folder = folder
        #: Which of them runs where.
        self._plan = plan
        #: In the order in which they were started.
        self._running: list[Process] = []
        home = folder / "home"
        home.mkdir()
        self._env = {name: os.environ[name] for name in KEPT if name in os.environ} | {"HOME": str(home)}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._running:
            _end(self._running.pop().child)

    @property
    def pids(self) -> dict[str, list[int]]:
        return {process.name: [process.child.pid] for process in self._running}

    def words(self) -> str:
        """The last words of all, for whoever looks for what went wrong."""
        return "\n".join(f"-- {process.name}\n{said}" for process in self._running if (said := process.last_words()))

    def start(self, part: str, name: str, *words: str, talks: bool = False) -> Process:
        """`python -m WORDS` in the background on the core of that part, if the plan has one, in a session of its own: a Ctrl-C reaches the
        benchmark alone. With `talks` it reads lines from us: `ask`."""
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        stdin = subprocess.PIPE if talks else subprocess.DEVNULL
        with out.open("wb") as stdout, err.open("wb") as stderr, cores.kept_to(self._plan.core.get(part)):
            child = subprocess.Popen(
                _python(words), stdin=stdin, stdout=stdout, stderr=stderr, env=self._env, cwd=ROOT, start_new_session=True
            )
        process = Process(name, child, out, err)
        self._running.append(process)
        return process

    def announced(self, process: Process) -> str:
        """The URL that a program of the benchmark prints once it listens."""
        self.until(lambda: process.out.read_bytes().endswith(b"\n"), f"the {process.name} listens", process)
        return process.out.read_text(encoding="ascii").splitlines()[0]

    def ask(self, process: Process, line: str) -> str:
        """Says a line to a process that was started with `talks`; gives the line that it answers."""
        before = process.out.read_bytes().count(b"\n")
        stdin = cast("IO[bytes]", process.child.stdin)
        stdin.write(line.encode() + b"\n")
        stdin.flush()
        self.until(lambda: process.out.read_bytes().count(b"\n") > before, f"the {process.name} answers {line!r}", process)
        return process.out.read_text(encoding="utf-8").splitlines()[-1]

    def end(self, process: Process) -> None:
        """Ends one, which may have ended by itself."""
        self._running.remove(process)
        _end(process.child)

    def run(self, *words: str) -> str:
        """`python -m WORDS` to its end; gives its stdout. Raises NotReady when it fails."""
        try:
            done = subprocess.run(
                _python(words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=self._env,
                cwd=ROOT,
                timeout=READY,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotReady(f"{' '.join(words[:2])}: not over within {READY:g} s") from None
        if done.returncode != 0:
            raise NotReady(f"{' '.join(words[:2])}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def until(self, ready: Callable[[], bool], what: str, *concerned: Process) -> None:
        """Looks until `ready` says yes. Raises NotReady when time is up, or when one of those concerned (all, if none is named) has
        ended meanwhile."""
        end = time.monotonic() + READY
        while not ready():
            for process in concerned or self._running:
                if process.child.poll() is not None:
                    raise NotReady(f"the {process.name} ended (exit {process.child.returncode}):\n{process.last_words()}")
            if time.monotonic() > end:
                raise NotReady(f"not within {READY:g} s: {what}\n{(concerned or self._running)[-1].last_words()}")
            time.sleep(LOOK)  # a poll with a deadline


def _python(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", *words]


def _end(child: "subprocess.Popen[Any]") -> None:
    if child.stdin is not None:
        child.stdin.close()
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def get(port: int, path: str, key: str = "") -> tuple[int, bytes]:
    """Status and body of a GET on loopback; (0, b"") when nobody answers."""
    return call(port, "GET", path, key)


def call(port: int, method: str, path: str, key: str = "", body: Any = None) -> tuple[int, bytes]:
    """Status and body of a request on loopback, its body in JSON; (0, b"") when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    text = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, text, headers | ({"content-type": "application/json"} if text else {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
