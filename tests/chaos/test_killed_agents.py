"""One of three agents is killed again and again under load: whoever has not had a byte of an answer yet has it all the same, and pays for
one attempt.

Server and agents are real, the engine behind all three is a FAKE that counts what it delivers.
"""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos import books
from tests.chaos.books import Account
from tests.chaos.counting_engine import CountingEngine, counting_engine, loop_aside
from tests.chaos.load import Seen, read_stream, read_whole
from tests.e2e.raw import CHAT
from tests.e2e.world import Process, World, until, world

pytestmark = pytest.mark.e2e

NAMES = ("one", "two", "three")
#: Slots of each, and clients: more than two agents can serve at once.
SLOTS, CLIENTS = 4, 9
#: Seconds in which one client has its answer.
PATIENCE = 120.0


class Clients:
    """They ask one request after the other, half of them streams, until so many were answered that had not begun when their agent died."""

    def __init__(self, root: str, key: str, wanted: int, first: tuple[int, int]) -> None:
        self._url, self._key = root + CHAT, key
        self._wanted = wanted
        #: Milliseconds in which the engine says nothing, from and to.
        self._first = first
        self._rng = random.Random(7)
        #: All that was asked.
        self.seen: list[Seen] = []
        self.streams: set[str] = set()

    @property
    def ended(self) -> list[Seen]:
        return [one for one in self.seen if one.is_whole or one.code or one.has_left]

    @property
    def counted(self) -> list[Seen]:
        """Those that are over, but for streams of which something had come before they were cut off."""
        return [one for one in self.ended if one.is_whole or not one.events]

    @property
    def _are_enough(self) -> bool:
        under_way = len(self.seen) - len(self.ended)
        return len(self.counted) + under_way >= self._wanted

    async def run(self) -> None:
        patience = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=patience) as session, asyncio.TaskGroup() as all_:
            for _ in range(CLIENTS):
                all_.create_task(self._go_on(session))

    async def _go_on(self, session: aiohttp.ClientSession) -> None:
        while not self._are_enough:
            await self._one(session)

    async def _one(self, session: aiohttp.ClientSession) -> None:
        mine = Seen(f"q{len(self.seen):06d}", self._key)
        self.seen.append(mine)
        count, stream = self._rng.randint(1, 9), self._rng.random() < 0.5
        content = f"{mine.name} {count} 0 {self._rng.randint(*self._first)}"
        body: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": content}], "max_tokens": count}
        if stream:
            self.streams.add(mine.name)
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with session.post(self._url, json=body, headers={"authorization": f"Bearer {self._key}"}) as answer:
                mine.status = answer.status
                mine.request_id = answer.headers["x-mindgw-request-id"]
                await (read_stream(answer, mine) if stream and answer.status == 200 else read_whole(answer, mine))
        finally:
            mine.has_left = not mine.is_whole


class Fleet:
    """The server and its three agents."""

    def __init__(self, made: World, engine: CountingEngine) -> None:
        self.world, self.engine = made, engine
        self._agents: dict[str, Process] = {name: made.join(name, engine.url, "--slots", str(SLOTS)) for name in NAMES}
        key = made.admin_post("/api/v1/keys", {"name": "load"})
        made.admin_post("/api/v1/quotas", {"scope": f"key:{key['id']}", "tokens": ["50M/month"]}, "PUT")
        self.key = str(key["key"])
        self.kills = 0

    def kill(self, name: str) -> None:
        """SIGKILL, and a new process at once."""
        self._agents[name].kill()
        self._agents[name] = self.world.spawn(name, "agent", "run", "--state-dir", str(self.world.folder / f"agent-{name}"))
        self.kills += 1

    def is_at_work(self, name: str) -> bool:
        """Ready, with a request."""
        found = self.world.worker(name)
        return bool(found["state"] == "ready" and found["used"])

    def is_ready(self, name: str) -> bool:
        return bool(self.world.worker(name)["state"] == "ready")


@contextmanager
def fleet(folder: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Fleet]:
    with world(folder) as made, counting_engine(loop) as engine:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write('prices: "*=10/20"\n')
        made.serve()
        yield Fleet(made, engine)


def all_is_told(here: Fleet) -> Account:
    """The accounts, once they have all that the engine was asked for and every slot is free."""
    until(lambda: not any(here.world.worker(name)["used"] for name in NAMES), "all slots are free")
    until(lambda: not Account(books.read(here.world)).lost(here.engine.delivered), "all is told")
    return Account(books.read(here.world))


def assert_right(here: Fleet, clients: Clients) -> Account:
    """Every request has its answer and one attempt that is paid for, with the tokens of the engine; and the books agree."""
    account, delivered = all_is_told(here), here.engine.delivered
    failed = [(one.name, one.status, one.code, one.events) for one in clients.counted if not one.is_whole]
    assert failed == []
    for one in clients.counted:
        (row,) = [row for row in account.billed[one.request_id] if sum(books.tokens(row))]
        last = delivered[one.request_id][-1]
        assert books.tokens(row) == (last.prompt, last.completion) == (one.prompt, one.completion), one.name
        assert (row["kind"], row["outcome"]) == ("settled", "done")
    assert account.doubled() == []
    assert account.invented(delivered) == []
    found = books.read(here.world)
    assert books.drift(found) == []
    assert [budget for budget in found.budgets if budget["used"] != sum(map(sum, map(books.tokens, paid(found.rows))))] == []
    verified = here.world.admin("ledger", "verify", "--json", code=None)
    assert verified.returncode == 0, verified.stdout
    for process in here.world.processes:
        assert "Traceback" not in process.said, process.said
    return account


def paid(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] in books.BILLED]


def told(here: Fleet, clients: Clients, account: Account) -> str:
    wasted = [row for rows in account.ended.values() for row in rows if row["kind"] == "wasted"]
    moved = {row["request_id"] for row in wasted}
    streams = sum(one.name in clients.streams for one in clients.counted)
    billed = sum(len(account.billed[one.request_id]) for one in clients.counted)
    return (
        f"{here.kills} kills: {sum(one.is_whole for one in clients.counted)} of {len(clients.counted)} answered ({streams} streams), "
        f"{billed} billed rows, {len(moved)} requests moved by {len(wasted)} attempts that came to nothing, "
        f"{len(clients.seen) - len(clients.counted)} streams cut after their first byte, which do not count"
    )


def test_sixty_of_sixty_while_agents_are_killed_at_work(tmp_path: Path) -> None:
    with loop_aside() as loop, fleet(tmp_path, loop) as here:
        clients = Clients(here.world.root, here.key, 60, (200, 500))
        running = asyncio.run_coroutine_threadsafe(clients.run(), loop)
        for number in range(5):
            name = NAMES[number % 3]
            until(lambda name=name: running.done() or here.is_at_work(name), "it is at work")
            here.kill(name)
            asked = len(clients.ended) + 8
            until(lambda asked=asked: running.done() or len(clients.ended) >= asked, "others are served")
            until(lambda name=name: here.is_ready(name), "it is back")
        running.result(PATIENCE)
        account = assert_right(here, clients)
        print("\n" + told(here, clients, account))
        assert any(row["kind"] == "wasted" for rows in account.ended.values() for row in rows)  # or else nothing was shown


@pytest.mark.real_install
def test_five_hundred_of_five_hundred_with_a_kill_every_five_seconds(tmp_path: Path) -> None:
    """Minutes, so with `--long` alone."""
    with loop_aside() as loop, fleet(tmp_path, loop) as here:
        clients = Clients(here.world.root, here.key, 500, (800, 2000))
        running = asyncio.run_coroutine_threadsafe(clients.run(), loop)
        while wait([running], timeout=5.0).not_done:
            here.kill(NAMES[here.kills % 3])
        running.result()
        account = assert_right(here, clients)
        print("\n" + told(here, clients, account))
        assert len(clients.counted) >= 500
        assert here.kills >= 10
        assert sum(row["kind"] == "wasted" for rows in account.ended.values() for row in rows) >= here.kills
