"""Many agents that lose their links at once come back soon, and nobody who is served meanwhile comes to harm.

The server is real, and so is one agent, whose FAKE engine counts what it delivers; the many are light (`light_fleet`): real links in one
process, FAKE engines out of memory.
"""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from bench import stock
from tests.chaos.books import Account, read
from tests.chaos.counting_engine import CountingEngine, counting_engine, loop_aside
from tests.chaos.load import Load, Seen
from tests.chaos.proxy import Proxy, chaos_proxy
from tests.e2e.raw import ask
from tests.e2e.stage import chat
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).with_name("light_fleet.py")
#: Seconds that a figure may be above its target, on a machine that does other things as well.
MARGIN = 15.0


class Light:
    """The light agents."""

    def __init__(self, process: "subprocess.Popen[str]", size: int) -> None:
        self._process = process
        self.size = size

    def ask(self, what: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def are_there(self, epochs: int = 0) -> bool:
        """All of them, and each with a new session since they had so many in all."""
        return self.ask("ready") == self.size and self.ask("epochs") >= (epochs + self.size if epochs else 0)


class Timed(Load):
    """Streams and answers in one piece, to their ends, and how long each took."""

    def __init__(self, world_: World, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(world_.root, [world_.key], "fake", random.Random(3), rate=20)
        self._loop = loop
        self.may_leave, self.counts, self.pauses = False, (1, 4), (0, 5)
        self.took: list[float] = []
        self._run = asyncio.run_coroutine_threadsafe(self.run(), loop)

    async def one(self, session: object) -> None:
        begun = self._loop.time()
        await super().one(session)  # type: ignore[arg-type]
        self.took.append(self._loop.time() - begun)

    def end(self) -> list[Seen]:
        self.stop()
        self._run.result(90)
        return self.seen

    def told(self) -> str:
        took = sorted(self.took)
        middle, late = took[len(took) // 2], took[int(len(took) * 0.99)]
        return f"{len(took)} requests: median {middle * 1000:.0f} ms, p99 {late * 1000:.0f} ms, worst {took[-1] * 1000:.0f} ms"


class Scene:
    """A server with one box and many light ones."""

    def __init__(self, made: World, loop: asyncio.AbstractEventLoop, engine: CountingEngine, light: Light, proxy: Proxy) -> None:
        self.world, self.loop, self.engine = made, loop, engine
        self.light, self.proxy = light, proxy

    def calm(self) -> str:
        """What traffic looks like while nothing happens."""
        load = Timed(self.world, self.loop)
        until(lambda: len(load.took) >= 60, "some are served")
        assert [one for one in load.end() if not one.is_whole] == []
        return load.told()

    def links_are_reset(self) -> tuple[float, str]:
        """All light agents lose their links; seconds until they are back, and what traffic looked like meanwhile."""
        load, epochs = Timed(self.world, self.loop), self.light.ask("epochs")
        until(lambda: load.took, "one is served")
        begun = time.monotonic()
        self.proxy.reset()
        until(lambda: self.light.are_there(epochs), "they are back", 180)
        took = time.monotonic() - begun
        failed = [(one.name, one.status, one.code) for one in load.end() if not one.is_whole]
        assert failed == []
        return took, load.told()

    def server_is_killed(self) -> tuple[float, str]:
        """The same from the moment at which a new server is ready; traffic begins then."""
        epochs, server = self.light.ask("epochs"), self.world.server
        assert server is not None
        server.kill()
        self.world.serve()
        begun = time.monotonic()
        load = Timed(self.world, self.loop)
        until(lambda: self.light.are_there(epochs), "they are back", 180)
        took = time.monotonic() - begun
        until(lambda: load.took, "one is served")
        failed = [(one.name, one.status, one.code) for one in load.end() if not one.is_whole]
        assert failed == []
        return took, load.told()

    def assert_well(self) -> None:
        """Everybody is ready and serves, what was used is billed once, and nothing went wrong on the way."""
        page = self.world.get("/metrics", self.world.key)[1].decode().splitlines()
        ready = [line for line in page if line.startswith("mindgw_worker_ready{")]
        assert [line.endswith(" 1.0") for line in ready] == [True] * (self.light.size + 1)
        for _ in range(5):
            assert ask(self.world, chat("plain", model="light")).status == 200
        until(lambda: not Account(read(self.world)).lost(self.engine.delivered), "all is told")
        assert Account(read(self.world)).doubled() == []
        for process in self.world.processes:
            assert "Traceback" not in process.said, process.said


@contextmanager
def scene(folder: Path, size: int) -> Iterator[Scene]:
    with world(folder) as made, loop_aside() as loop, counting_engine(loop) as engine:
        server = made.serve()
        made.join("box", engine.url, "--slots", "16")  # before the others: a list of workers shows the first ones alone
        server.stop()
        (folder / "stock").write_bytes(msgspec.json.encode(stock.fill(made.data_dir, size, 0)))
        (folder / "outboxes").mkdir()
        made.serve()
        with chaos_proxy(loop, made.port) as proxy:
            command = [sys.executable, str(PROGRAM), str(folder / "stock"), proxy.url, str(folder / "outboxes")]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=made.env) as process:
                light = Light(process, size)
                until(light.are_there, "all are there", 180)
                yield Scene(made, loop, engine, light, proxy)
                assert process.stdin is not None
                process.stdin.close()


def test_who_is_served_does_not_notice_that_fifty_agents_come_back(tmp_path: Path) -> None:
    with scene(tmp_path, 50) as here:
        here.links_are_reset()
        here.server_is_killed()
        here.assert_well()


@pytest.mark.real_install
def test_a_thousand_agents_are_back_in_a_minute(tmp_path: Path) -> None:
    """Minutes, so with `--long` alone."""
    with scene(tmp_path, 1000) as here:
        print(f"\nwhile nothing happens: {here.calm()}")
        for what, act in (("their links were reset", here.links_are_reset), ("their server was killed", here.server_is_killed)):
            took, traffic = act()
            print(f"1,000 agents were back {took:.1f} s after {what}; meanwhile {traffic}")
            assert took <= 60.0 + MARGIN
        here.assert_well()
