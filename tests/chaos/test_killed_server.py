"""The server is killed again and again under load: nothing that was used is lost, nothing is billed twice, and the books agree.

Server and agent are real, the agent does not wait long before it comes back (`hasty_agent`), the engine is a FAKE that counts what it
delivers; the last test has a real llama.cpp, and an agent that is in no hurry.
"""

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import books
from tests.chaos.books import Account
from tests.chaos.counting_engine import CountingEngine, counting_engine, loop_aside
from tests.chaos.load import Load, Seen
from tests.e2e.shared_postgres import postgres_world
from tests.e2e.world import Process, World, until, world
from tests.real_engine import ENDLESS, start_engine

pytestmark = pytest.mark.e2e

HASTY = Path(__file__).with_name("hasty_agent.py")
#: More lines of the settings file.
SETTINGS = 'prices: "*=10/20"\nquotas:\n  output: 40\n'

#: Owners of keys: their fields, and the limits of the key or of its team. One is used up on the way, one nearly always.
OWNERS: list[tuple[dict[str, str], list[dict[str, Any]]]] = [
    ({}, []),
    ({}, [{"tokens": ["50M/month", "100M/total"]}]),
    ({"team": "rich"}, [{"scope": "team:rich", "tokens": ["20M/day"], "usd": ["900/month"]}]),
    ({"team": "rich", "user": "u@example.org"}, [{"tokens": ["1M/total"]}, {"scope": "user:u@example.org", "tokens": ["5M/month"]}]),
    ({"team": "poor"}, [{"scope": "team:poor", "tokens": ["2500/total"]}]),
    ({}, [{"tokens": ["2k/day"], "on_exceed": "soft"}]),
    ({}, [{"tokens": ["100/day"], "on_exceed": "alert"}]),
]


class Bank:
    """A world under load."""

    def __init__(self, made: World, model: str, seed: int) -> None:
        self.world = made
        self.model = model
        self.rng = random.Random(seed)
        self.keys = [self._owner(f"owner {number}", *owner) for number, owner in enumerate(OWNERS)]

    def _owner(self, name: str, fields: dict[str, str], limits: list[dict[str, Any]]) -> str:
        made = self.world.admin_post("/api/v1/keys", {"name": name, **fields})
        for limit in limits:
            self.world.admin_post("/api/v1/quotas", {"scope": f"key:{made['id']}", **limit}, "PUT")
        return str(made["key"])

    def load(self, rate: float = 100.0) -> Load:
        return Load(self.world.root, self.keys, self.model, self.rng, rate)

    def is_back(self, name: str = "box") -> bool:
        return bool(self.world.worker(name).get("state") == "ready")

    def restart(self) -> None:
        """A new server after one that ended, with its worker."""
        self.world.serve()
        until(self.is_back, "the worker is back")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.world.server is not None
        self.world.server.kill()

    def old_leases(self) -> list[dict[str, Any]]:
        """What servers that are gone still have on loan."""
        last = "(select max(id) from epochs)"
        return self.world.query(f"select * from leases where amount > 0 and epoch < {last}")


@contextmanager
def bank(made: World, engine_url: str, model: str, *, slots: int, seed: int, hasty: bool = True) -> Iterator[Bank]:
    """A server with prices and limits, and a box whose agent is hasty, or not."""
    made.initialise()
    with (made.data_dir / "config.yaml").open("a") as file:
        file.write(SETTINGS)
    made.serve()
    here = Bank(made, model, seed)
    if hasty:
        state = made.folder / "agent-box"
        token = made.admin("join-tokens", "create", "-q").stdout.strip()
        box = ("--name", "box", "--engine-url", engine_url, "--slots", str(slots), "--state-dir", str(state))
        made.run("agent", "join", token, *box, "--enroll-only")
        made.processes.append(Process([sys.executable, str(HASTY), str(state)], made.env, made.folder / "box.log"))
        until(here.is_back, "the worker is ready")
    else:
        made.join("box", engine_url, "--slots", str(slots))
    yield here


# -- what must hold ----------------------------------------------------------------------------------------------------


def all_is_told(here: Bank, engine: CountingEngine) -> Account:
    """Waits until the ledger has what the engine delivered and no dead server holds anything; the accounts then."""
    accounts = [Account(books.read(here.world))]

    def look() -> bool:
        accounts[0] = Account(books.read(here.world))
        return not accounts[0].lost(engine.delivered) and not here.old_leases()

    with suppress(AssertionError):  # what is missing says more
        until(look, "all is told", 60)
    lost = accounts[0].lost(engine.delivered)
    assert not lost, f"{len(lost)} of {engine.requests} requests are lost: {lost[:5]}"
    assert here.old_leases() == [], "dead servers hold reservations"
    return accounts[0]


def assert_right(here: Bank, engine: CountingEngine, load: Load) -> Account:
    """Nothing lost, nothing doubled, no drift."""
    account = all_is_told(here, engine)
    assert account.invented(engine.delivered) == []
    wrong = account.wrong(engine.delivered, load.seen)
    assert wrong == [], f"{len(wrong)} of {engine.requests}\n" + "\n".join(wrong[:20])
    assert_sound(here, account)
    return account


def assert_sound(here: Bank, account: Account) -> None:
    """Nothing doubled, hard limits kept, no drift; `ledger verify` says so, too."""
    assert account.doubled() == []
    found = books.read(here.world)
    assert books.drift(found) == []
    assert books.passed(found, here.world.query("select * from quotas")) == []
    verified = here.world.admin("ledger", "verify", "--json", code=None)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def assert_clean_after_an_end(here: Bank) -> None:
    """A server that ends well leaves no reservation behind, and the next one finds the books as they were."""
    made = here.world
    assert made.server is not None
    assert made.server.stop() == 0
    before = books.read(made)
    assert [budget for budget in before.budgets if budget["reserved"]] == []
    assert books.drift(before) == []
    here.restart()
    assert books.read(made).rows == before.rows
    assert_sound(here, Account(before))
    for process in made.processes:
        assert "Traceback" not in process.said, process.said


# -- kills -------------------------------------------------------------------------------------------------------------


def kill_again_and_again(here: Bank, engine: CountingEngine, kills: int, load: Load, loop: asyncio.AbstractEventLoop) -> None:
    """So many kills under load: each when the engine has sent so many more events, or before the worker is back. Ends when the engine has
    had ten requests a kill."""
    running = asyncio.run_coroutine_threadsafe(load.run(), loop)
    rng = here.rng
    try:
        for _ in range(kills):
            target = engine.sent + rng.choice([0, rng.randint(1, 30), rng.randint(30, 300), rng.randint(300, 900)])
            until(lambda target=target: engine.sent >= target, "the engine works")
            here.kill()
            here.world.serve()
            if rng.random() < 0.85:
                until(here.is_back, "the worker is back")
        until(here.is_back, "the worker is back")
        until(lambda: engine.requests > 10 * kills, "enough was asked to show something")
    finally:
        load.stop()
        running.result(90)


def rounds(made: World, kills: int, seed: int) -> None:
    """Kills, books, a clean end, books again."""
    with loop_aside() as loop, counting_engine(loop) as engine, bank(made, engine.url, "fake", slots=48, seed=seed) as here:
        load, begun = here.load(), time.monotonic()
        kill_again_and_again(here, engine, kills, load, loop)
        killed = time.monotonic()
        account = assert_right(here, engine, load)
        assert engine.requests > 10 * kills  # or else nothing was shown
        print(
            f"\n{kills} kills in {killed - begun:.1f} s, right after {time.monotonic() - killed:.1f} s: {len(load.seen)} asked, "
            f"{engine.requests} reached the engine, {sum(one.is_whole for one in load.seen)} answered, "
            f"{sum(row['error_code'] == 'server_lost' for rows in account.ended.values() for row in rows)} cut off by a kill, "
            f"{len(account.receipts)} receipts, {sum(map(len, account.billed.values()))} billed"
        )
        assert_clean_after_an_end(here)


def test_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        rounds(made, 8, seed=4)


def test_nor_do_they_on_postgres(postgres_url: str, tmp_path: Path) -> None:
    with postgres_world(tmp_path, postgres_url) as made:
        rounds(made, 4, seed=5)


@pytest.mark.real_install
@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred_kills(seed: int, postgres_url: str, tmp_path: Path) -> None:
    """Minutes, so with `--long` alone."""
    with world(tmp_path / "sqlite") if seed == 1 else postgres_world(tmp_path / "postgres", postgres_url) as made:
        rounds(made, 200, seed=seed)


def test_a_real_engine_and_an_agent_that_is_in_no_hurry(tmp_path: Path) -> None:
    with (
        world(tmp_path) as made,
        start_engine(slots=4, shape=ENDLESS) as engine,
        loop_aside() as loop,
        bank(made, engine.url, engine.alias, slots=4, seed=6, hasty=False) as here,
    ):
        load = here.load(rate=6)
        running = asyncio.run_coroutine_threadsafe(load.run(), loop)
        for answers in (4, 12):
            until(lambda answers=answers: sum(one.is_whole for one in load.seen) >= answers, "answers came")
            until(lambda: sum(bool(one.events) and not one.is_whole for one in load.seen[-8:]) > 1, "others are in the middle of theirs")
            here.kill()
            here.restart()
        load.stop()
        running.result(90)
        until(lambda: not here.old_leases(), "dead servers hold nothing", 60)
        begun = {one.request_id for one in load.seen if one.events or one.is_whole}
        until(lambda: begun <= Account(books.read(made)).ended.keys(), "every answer that began has its row", 60)
        account = Account(books.read(made))
        assert [one.name for one in load.seen if one.is_whole and one.completion and _other(one, account.billed[one.request_id])] == []
        assert sum(row["error_code"] == "server_lost" for rows in account.ended.values() for row in rows) >= 1
        assert_sound(here, account)
        assert_clean_after_an_end(here)


def _other(client: Seen, rows: list[dict[str, Any]]) -> bool:
    """Whether another count is billed than the one that a client read."""
    return [books.tokens(row) for row in rows] != [(client.prompt, client.completion)]
