"""Commands as a user types them, against the real server in this process."""

import asyncio
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn

from mindgw import config
from mindgw.cli.app import main
from mindgw.clock import monotonic
from mindgw.control import secrets, setup
from mindgw.gateway.seat import Worker
from mindgw.gateway.tunnel import Link
from mindgw.server.app import Server, build
from mindgw.store import fleet as stored
from mindgw.store.database import Database
from mindgw_agent import wire

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user with an empty home, no keyring and a plain environment."""
    for name in ("MINDGW_TOKEN", "MINDGW_SERVER", "MINDGW_CONTEXT", "MINDGW_DATA_DIR", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """`mindgw serve` in this process sends all logging to its stderr, which is gone after the test."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers = before
    root.setLevel(level)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """`mindgw WORDS` in this process."""

    def run(*words: str) -> Result:
        code = main(list(words))
        said = capfd.readouterr()
        return Result(code, said.out, said.err)

    return run


class Terminal:
    """`mindgw WORDS` in a process of its own whose stdin is a terminal."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "mindgw", *words]
        self.child = subprocess.Popen(
            command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        os.close(theirs)

    def hear(self, mark: str) -> str:
        """What it says on stderr up to the mark, or to its end."""
        assert self.child.stderr is not None
        said = b""
        while mark.encode() not in said and (more := os.read(self.child.stderr.fileno(), 4096)):
            said += more
        return said.decode()

    def type(self, text: str) -> None:
        """Types; Ctrl-C goes to the foreground, as a terminal sends it."""
        if text == "\x03":
            self.child.send_signal(signal.SIGINT)
        else:
            os.write(self._ours, text.encode())

    def end(self) -> Result:
        """Waits for its end; the terminal is gone then."""
        out, err = self.child.communicate(timeout=60)
        os.close(self._ours)
        return Result(self.child.returncode, out.decode(), err.decode())


@dataclass(frozen=True)
class Gateway:
    url: str
    key: str
    data_dir: Path
    #: What runs, and the loop of its thread.
    server: Server
    loop: asyncio.AbstractEventLoop


@contextmanager
def at_work(directory: Path, settings: str = "") -> Iterator[Gateway]:
    """The real server on a free port; nothing has joined it. `settings` are added to those of a new data directory."""
    made = asyncio.run(setup.initialise(directory))
    if settings:
        with (directory / config.FILE).open("a") as file:
            file.write(settings)
    known = config.load(None, directory)
    started = threading.Event()
    server: dict[str, Any] = {}

    async def work() -> None:
        database = Database(known.database_url)
        made = build(known, secrets.load(directory), database)
        running = uvicorn.Server(uvicorn.Config(made.app, port=0, ws="websockets-sansio", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(running.serve())
        while not running.started and not serving.done():
            await asyncio.sleep(0.01)  # uvicorn says so in a flag alone
        server.update(running=running, made=made, loop=asyncio.get_running_loop(), port=running.servers[0].sockets[0].getsockname()[1])
        started.set()
        await serving
        await database.close()

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="gateway")
    thread.start()
    try:
        assert started.wait(30)
        yield Gateway(f"http://127.0.0.1:{server['port']}", made.api_key or "", directory, server["made"], server["loop"])
    finally:
        server["running"].should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The real server on a free port; nothing has joined it."""
    with at_work(tmp_path_factory.mktemp("gateway") / "data") as made:
        yield made


@pytest.fixture
def admin(cli: Cli, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`mindgw` for an operator of the real server."""
    monkeypatch.setenv("MINDGW_TOKEN", gateway.key)
    monkeypatch.setenv("MINDGW_SERVER", gateway.url)
    return cli


class Live:
    """A worker that is connected, as the server sees it; nothing is at the other end of its link."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        self._gateway = gateway
        self._name = name
        self._serial = 0
        self.worker = Worker(self._on_loop(self._enrol()), name, 1, Link(lambda: None, monotonic()))

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._gateway.loop).result(30)

    async def _enrol(self) -> str:
        async with self._gateway.server.database.write() as session:
            return (await stored.add_worker(session, self._name, b"k" * 32)).id

    async def _remove(self) -> None:
        async with self._gateway.server.database.write() as session:
            await stored.set_state(session, self.worker.id, "removed")

    def end(self) -> None:
        self.fleet("detach")
        self._on_loop(self._remove())

    def fleet(self, verb: str, *more: object) -> None:
        """Calls the server's fleet with it, on the server's loop."""
        fleet = self._gateway.server.pipeline.fleet

        async def call() -> None:
            getattr(fleet, verb)(self.worker, *more)

        self._on_loop(call())

    def report(self, *engines: wire.EngineReport) -> None:
        self._serial += 1
        self.fleet("report", wire.Report(self._serial, list(engines)))


@pytest.fixture
def live(gateway: Gateway) -> Iterator[Callable[..., Live]]:
    """Adds workers that are connected, by their names, with what they report."""
    made: list[Live] = []

    def add(name: str, *engines: wire.EngineReport) -> Live:
        one = Live(gateway, name)
        one.fleet("attach", True)
        one.report(*engines)
        made.append(one)
        return one

    yield add
    for one in made:
        one.end()


class Fake:
    """A FAKE of a server: answers every request with what the test put in, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {"content-type": "application/json"}
        self.body = b"{}"
        #: Bodies of the answers after the next one; the last body stays.
        self.then: list[bytes] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                fake.asked.append((self.command, self.path, dict(self.headers.items()), body))
                told, fake.body = fake.body, fake.then.pop(0) if fake.then else fake.body  # before whoever hears it asks again
                self.send_response(fake.status)
                for name, value in fake.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told)

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - names of the standard library

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=lambda: self.http.serve_forever(poll_interval=0.01))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A fake server that the commands talk to."""
    made = Fake()
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    monkeypatch.setenv("MINDGW_SERVER", made.url)
    yield made
    made.close()


#: Looks like a key; its secret must never be seen anywhere.
SECRET = "SECRETSECRETSECRETSECRETSECRETSECRETSE"
KEY = f"mgw_0123456789_{SECRET}"
