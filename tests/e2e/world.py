"""The real thing, end to end: server, agents and engines as processes of their own, driven through the scripting contract."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds that anything may take on a loaded machine.
PATIENCE = 60.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def until(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first truthy answer of `look`."""
    end = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)  # a poll with a deadline


class Process:
    """A child process whose talk is kept in a file."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.child = subprocess.Popen(command, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()
        self.child.wait(PATIENCE)

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM, then its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        return self.child.wait(seconds)

    @property
    def said(self) -> str:
        """All of its output so far."""
        return self.log.read_text(errors="replace")


class World:
    """One server and whatever joined it, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.port = free_port()
        home = folder / "home"
        home.mkdir(parents=True)
        kept = {
            name: os.environ[name] for name in ("PATH", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG") if name in os.environ
        }
        self.env = {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self.processes: list[Process] = []
        self.server: Process | None = None
        self.init: dict[str, Any] = {}
        #: The model of its boxes, where a test cares.
        self.model = ""

    # -- the scripting contract ----------------------------------------------------------------------------------

    def run(self, *args: str, code: int | None = 0, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`mindgw ARGS` to its end; checks the exit code unless that is None."""
        command = [sys.executable, "-m", "mindgw", *args]
        done = subprocess.run(
            command, env={**self.env, **(env or {})}, capture_output=True, text=True, input=stdin, timeout=PATIENCE, check=False
        )
        assert code is None or done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def admin(self, *args: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`mindgw ARGS` with the first admin's key, over HTTP."""
        return self.run(*args, code=code, env={"MINDGW_TOKEN": self.key, "MINDGW_SERVER": self.root})

    def items(self, *args: str) -> list[dict[str, Any]]:
        """The items of a list."""
        items: list[dict[str, Any]] = json.loads(self.admin(*args, "--json").stdout)["items"]
        return items

    def initialise(self, *args: str) -> dict[str, Any]:
        """`mindgw init`."""
        done = self.run("init", "--data-dir", str(self.data_dir), "--port", str(self.port), "--json", *args)
        self.init = json.loads(done.stdout)
        return self.init

    @property
    def base_url(self) -> str:
        return str(self.init["base_url"])

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return str(self.init["api_key"])

    # -- processes -----------------------------------------------------------------------------------------------

    def spawn(self, name: str, *args: str, env: dict[str, str] | None = None) -> Process:
        """`mindgw ARGS`, left running until the world ends."""
        command = [sys.executable, "-m", "mindgw", *args]
        process = Process(command, {**self.env, **(env or {})}, self.folder / f"{name}.log")
        self.processes.append(process)
        return process

    def serve(self, *args: str) -> Process:
        """The server, ready."""
        if not self.init:
            self.initialise()
        self.server = self.spawn("server", "serve", "--data-dir", str(self.data_dir), *args)
        until(lambda: self._alive(self.server) and self.get("/readyz")[0] == 200, "the server is ready")
        return self.server

    def _alive(self, process: Process | None) -> bool:
        assert process is not None
        assert process.child.poll() is None, process.said
        return True

    def join(self, name: str, engine_url: str, *args: str, token: str = "") -> Process:
        """An agent in front of an engine, ready."""
        token = token or self.admin("join-tokens", "create", "-q").stdout.strip()
        state = ("--state-dir", str(self.folder / f"agent-{name}"))
        agent = self.spawn(name, "agent", "join", token, "--name", name, "--engine-url", engine_url, *state, *args)
        until(lambda: self._alive(agent) and self.worker(name).get("state") == "ready", f"worker {name} is ready")
        return agent

    def worker(self, name: str) -> dict[str, Any]:
        """The worker as the list shows it; {} when it is not there."""
        status, body = self.get("/api/v1/workers", self.key)
        assert status == 200, body
        return next((worker for worker in json.loads(body)["items"] if worker["name"] == name), {})

    def get(self, path: str, key: str = "") -> tuple[int, bytes]:
        """Status and body of a GET; (0, b"") when nobody listens."""
        request = urllib.request.Request(self.root + path, headers={"authorization": f"Bearer {key}"} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()
        except OSError:
            return 0, b""

    def admin_post(self, path: str, document: object, method: str = "POST") -> dict[str, Any]:
        """A change through the management API with the first admin's key; its answer."""
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        data = json.dumps(document).encode() if document is not None else None
        with urllib.request.urlopen(urllib.request.Request(self.root + path, data, headers, method=method), timeout=PATIENCE) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the ledger that are in the database now."""
        return self.query("select * from ledger order by id")

    def query(self, text: str) -> list[dict[str, Any]]:
        """What the database answers (SQLite)."""
        import sqlite3

        with closing(sqlite3.connect(f"file:{self.data_dir / 'mindgw.db'}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(text)]

    def close(self) -> None:
        """Ends every process, agents first."""
        for process in reversed(self.processes):
            try:
                process.stop(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A world that is gone afterwards."""
    made = World(folder)
    try:
        yield made
    finally:
        made.close()
