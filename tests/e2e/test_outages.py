"""The database goes away under a real server and comes back: who is known is served on, nobody is served unmetered, no row is lost.

A FAKE engine answers; every answer that a client saw must have its one row in the end.
"""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import Answer, Raw, request
from tests.e2e.shared_postgres import postgres_world
from tests.e2e.stage import chat, said
from tests.e2e.world import World, free_port, until, world
from tests.postgres import Server

pytestmark = pytest.mark.e2e

#: Seconds within which all is as before, once the database is back.
RECOVERY = 5.0


class Patient:
    """A world whose database will go away."""

    def __init__(self, made: World, engine: FakeEngine, metrics: int) -> None:
        self.world, self.engine = made, engine
        #: Port that tells what is unwritten, and asks for no key.
        self._metrics = metrics
        #: Ids of requests that were answered.
        self.paid: list[str] = []
        #: A key that was used a moment ago, and two that were never used.
        self.known, self.unknown, self.other = (
            made.admin("keys", "create", name, "-q").stdout.strip() for name in ("known", "new", "other")
        )
        self.served(self.known)

    def new_key(self, name: str) -> str:
        return self.world.admin("keys", "create", name, "-q").stdout.strip()

    def ask(self, key: str, scene: str = "plain") -> Answer:
        with Raw(self.world.port) as raw:
            raw.send(request(key, chat(scene)))
            answer = raw.answer()
        if answer.status == 200:
            self.paid.append(answer.headers["x-request-id"])
        return answer

    def served(self, key: str) -> bool:
        answer = self.ask(key)
        assert answer.status == 200, answer
        return True

    def refused(self, key: str) -> bool:
        """Told to come back in a moment, not that its key is wrong."""
        answer = self.ask(key)
        assert (answer.status, answer.error["type"]) == (503, "service_unavailable_error"), answer
        assert answer.error["code"] in {"auth_unavailable", "database_unavailable"} and int(answer.headers["retry-after"]) > 0
        return True

    @property
    def unwritten(self) -> int:
        """Rows that are kept in memory."""
        with Raw(self._metrics) as raw:
            raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            page = raw.answer().body.decode()
        (line,) = (line for line in page.splitlines() if line.startswith("mindgw_usage_rows_unwritten "))
        return int(float(line.split()[1]))

    def recovers(self) -> None:
        """By itself, in time, with every row."""
        end = time.monotonic() + RECOVERY
        until(lambda: self.ask(self.other).status == 200, "keys are looked up again", RECOVERY)
        until(lambda: self.world.get("/readyz")[0] == 200, "the server is ready again", end - time.monotonic())
        until(lambda: self.unwritten == 0, "all rows are written", end - time.monotonic())
        written = [row["request_id"] for row in self.world.rows()]
        assert set(self.paid) <= set(written)
        assert len(written) == len(set(written))
        assert self.world.worker("fake")["state"] == "ready"


@contextmanager
def at_work(made: World) -> Iterator[Patient]:
    """A server with one worker and three keys."""
    with fake_engine() as engine:
        made.initialise()
        metrics = free_port()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(f"metrics:\n  listen: 127.0.0.1:{metrics}\n")
        made.serve()
        made.join("fake", engine.url, "--slots", "4")
        yield Patient(made, engine, metrics)
        engine.gate.set()


def through(seconds: float, step: Callable[[], object]) -> None:
    """The step again and again, for so long."""
    end = time.monotonic() + seconds
    until(lambda: [step()] and time.monotonic() >= end, "the time is over")


def management(here: Patient) -> str:
    """Code of the error that management answers with."""
    status, body = here.world.get("/api/v1/keys", here.world.key)
    assert status == 503, body
    return str(json.loads(body)["error"]["code"])


def test_postgres_is_stopped_and_started(own_postgres: Server, tmp_path: Path) -> None:
    with postgres_world(tmp_path, own_postgres.address) as made, at_work(made) as here:
        with Raw(made.port) as running:
            running.send(request(here.known, chat("patience", stream=True)))
            until(lambda: here.engine.running == 1, "a stream is under way")
            here.served(here.known)
            own_postgres.stop()
            here.engine.gate.set()
            answer = running.answer()
            here.paid.append(answer.headers["x-request-id"])
            assert said(answer)
        assert all(here.served(here.known) for _ in range(5))
        assert here.unwritten >= 5
        through(2.0, lambda: here.refused(here.unknown))
        assert management(here) == "database_unavailable"
        assert made.get("/readyz")[0] == 503 and made.get("/healthz")[0] == 200
        own_postgres.start()
        here.recovers()
        assert here.served(here.unknown)


def test_postgres_does_not_answer_any_more(own_postgres: Server, tmp_path: Path) -> None:
    """As when its machine or the network between is gone: nothing comes back, not even a refusal."""
    with postgres_world(tmp_path, own_postgres.address) as made, at_work(made) as here:
        here.served(here.known)
        frozen = own_postgres.pids
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert all(here.served(here.known) for _ in range(5))
            begun = time.monotonic()
            assert here.refused(here.unknown)
            assert time.monotonic() - begun < 10
            assert here.unwritten >= 5
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        here.recovers()


def test_sqlite_is_locked_by_another_process(tmp_path: Path) -> None:
    """Its readers go on, so that unknown keys are served, too; what writes waits, or is told to come back."""
    with world(tmp_path) as made, at_work(made) as here:
        with closing(sqlite3.connect(made.data_dir / "mindgw.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert here.served(here.unknown)
            late = made.spawn("late", "keys", "create", "late", env={"MINDGW_TOKEN": made.key, "MINDGW_SERVER": made.root})
            through(8.0, lambda: here.served(here.known))
            assert here.unwritten >= 8
            assert late.child.wait(60) == 1 and "database_unavailable" in late.said
            other.execute("ROLLBACK")
        here.recovers()
        assert made.admin("keys", "create", "late", "-q").stdout.strip()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; skips the test where nobody may mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Not one more byte fits."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return filler


def test_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk, world(tmp_path / "world") as made:
        made.data_dir = disk
        with at_work(made) as here:
            until(lambda: here.unwritten == 0, "all is written")
            with closing(sqlite3.connect(disk / "mindgw.db", isolation_level=None)) as other:  # what is free inside its files is used up
                until(lambda: other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "the log is in the file")
            filler = fill(disk)
            assert here.served(here.unknown)
            through(2.0, lambda: here.served(here.known))
            assert here.unwritten > 0
            assert made.admin("keys", "create", "late", code=1).stderr.count("database_unavailable") == 1
            filler.unlink()
            here.recovers()


def test_a_read_only_disk_is_told_at_the_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk, world(tmp_path / "world") as made:
        made.data_dir = disk
        made.initialise()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = {file.name: file.read_bytes() for file in disk.iterdir() if file.is_file()}
        for words in (["serve"], ["db", "upgrade"], ["init"]):
            done = made.run(*words, "--data-dir", str(disk), code=1)
            assert str(disk) in done.stderr and "Traceback" not in done.stderr, done.stderr
            assert "read-only" in done.stderr.lower() or "cannot open the database" in done.stderr, done.stderr
        assert {file.name: file.read_bytes() for file in disk.iterdir() if file.is_file()} == before
