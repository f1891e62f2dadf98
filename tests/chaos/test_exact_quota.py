"""A hard limit of exactly N requests' worth: whoever asks, however many at once and through whichever server, exactly N are served.

Servers and agents are real. The FAKE engine uses just as many tokens as a request reserves at most, so that N requests fill the limit to
the token. Where answers are one token long none can be shortened to fit; where they are longer the last ones are, and are cut.
"""

import asyncio
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest

from tests.chaos import books
from tests.chaos.books import Account
from tests.chaos.counting_engine import AROUND, CountingEngine, counting_engine, loop_aside
from tests.e2e.raw import CHAT, Raw, request
from tests.e2e.shared_postgres import PostgresWorld, two_servers
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

#: Clients at a time, over all servers.
CLIENTS = 64
#: Seconds that a round may take.
PATIENCE = 120.0

#: The limit, what is used, and what is reserved.
Sample = tuple[int, int, int]
Look = Callable[[], Awaitable[Sample | None]]


class Town(NamedTuple):
    """Servers of one database, each with a box whose FAKE engine counts."""

    worlds: Sequence[World]
    engines: Sequence[CountingEngine]


@contextmanager
def town(worlds: Sequence[World]) -> Iterator[Town]:
    """Servers that were initialised, at work."""
    with ExitStack() as stack:
        loop = stack.enter_context(loop_aside())
        engines = [stack.enter_context(counting_engine(loop)) for _ in worlds]
        for made, engine in zip(worlds, engines, strict=True):
            made.serve()
            made.join(made.folder.name, engine.url, "--slots", "16")
        yield Town(worlds, engines)


class Order(NamedTuple):
    """One round: what is asked for, and how many times it fits."""

    seed: int
    #: Keys of one team.
    keys: Sequence[str]
    #: Id of the team.
    team: str
    #: The text is padded to that many bytes.
    length: int
    #: Tokens of an answer.
    output: int
    fits: int

    @property
    def prompt(self) -> int:
        """Tokens of a prompt: role, text, and what stands around it."""
        return len("user") + self.length + AROUND

    @property
    def limit(self) -> int:
        return (self.prompt + self.output) * self.fits

    def body(self, rng: random.Random, name: str) -> dict[str, Any]:
        text = f"{name} {self.output} {rng.randint(0, 20)} ".ljust(self.length, "x")
        assert len(text) == self.length
        messages = [{"role": "user", "content": text}]
        return {"model": "fake", "messages": messages, "max_tokens": self.output, "stream": rng.random() < 0.5}


def order(here: Town, seed: int, output: int, fits: int = 0) -> Order:
    """A team with keys and its limit."""
    rng = random.Random(seed)
    made = here.worlds[0]
    team = f"team {seed} {output}"
    keys = [made.admin_post("/api/v1/keys", {"name": f"{team} {number}", "team": team})["key"] for number in range(3)]
    (row,) = made.query(f"select id from teams where name = '{team}'")
    wanted = Order(seed, keys, row["id"], rng.randint(40, 400), output, fits or rng.randint(60, 150))
    made.admin_post("/api/v1/quotas", {"scope": f"team:{team}", "tokens": [f"{wanted.limit}/total"]}, "PUT")
    mark = made.admin_post("/api/v1/keys", {"name": f"mark of {team}"})
    made.admin_post("/api/v1/quotas", {"scope": f"key:{mark['id']}", "tokens": ["0/total"]}, "PUT")
    until(lambda: all(_refuses(each, mark["key"]) for each in here.worlds), "all servers know of limits that one of them set", 10)
    return wanted


def _refuses(made: World, key: str) -> bool:
    """Whether the limit of a key that may use nothing is known there."""
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "mark 1 0"}], "max_tokens": 1}).encode()
    with Raw(made.port) as raw:
        raw.send(request(key, body))
        return raw.answer().status == 429


class Client:
    """Asks again and again, waits when it is told to, and stops when it hears that the limit is used up."""

    def __init__(
        self, session: aiohttp.ClientSession, root: str, wanted: Order, number: int, heard: Counter[str], *, forgives: bool
    ) -> None:
        """`forgives`: servers may be away, or end in the middle of an answer."""
        self._forgives = forgives
        self._session = session
        self._root = root
        self._wanted = wanted
        self._rng = random.Random(wanted.seed * 1000 + number)
        self._name = f"c{number}"
        #: Codes of errors, "" for answers; of all clients together.
        self._heard = heard

    async def ask_until_used_up(self) -> None:
        asked = 0
        while (wait := await self._ask(f"{self._name}.{asked}")) is not None:
            asked += 1
            await asyncio.sleep(wait)  # as the server said

    async def _ask(self, name: str) -> float | None:
        """Seconds after which it may ask again; None: never."""
        body, headers = self._wanted.body(self._rng, name), {"authorization": f"Bearer {self._rng.choice(self._wanted.keys)}"}
        try:
            async with self._session.post(self._root + CHAT, json=body, headers=headers) as answer:
                code, wait = await _code(answer), int(answer.headers.get("retry-after-ms", "0")) / 1000
        except (aiohttp.ClientError, OSError):
            assert self._forgives
            code, wait = "nobody", 0.2
        self._heard[code] += 1
        if code == "insufficient_quota":
            assert answer.status == 200 or answer.headers["x-should-retry"] == "false"
            return None
        assert self._forgives or code in {"", "rate_limit_exceeded"}, code
        return wait


async def _code(answer: aiohttp.ClientResponse) -> str:
    """Code of the error, "" for an answer; a stream may fail after it began."""
    text = (await answer.read()).decode()
    if answer.content_type != "text/event-stream":
        return "" if answer.status == 200 else str(json.loads(text)["error"]["code"])
    events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    codes = [event["error"]["code"] for event in events if "error" in event]
    assert codes or text.endswith("data: [DONE]\n\n"), text
    return str(codes[0]) if codes else ""


async def sample(look: Look, over: asyncio.Event) -> list[Sample]:
    """Looks at a budget every few milliseconds."""
    found: list[Sample] = []
    while not over.is_set():
        if (row := await look()) is not None:
            found.append(row)
        try:
            async with asyncio.timeout(0.003):
                await over.wait()
        except TimeoutError:
            continue
    return found


async def everybody(here: Town, wanted: Order, look: Look, deed: Callable[[], None] | None) -> tuple[Counter[str], list[Sample]]:
    """All clients until each has heard that the limit is used up, or until they lose patience, and what the budget was meanwhile;
    `deed` is done beside them, in a thread."""
    over = asyncio.Event()
    samples = asyncio.create_task(sample(look, over))
    heard: Counter[str] = Counter()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        roots = [made.root for made in here.worlds]
        clients = [
            Client(session, roots[number % len(roots)], wanted, number, heard, forgives=deed is not None) for number in range(CLIENTS)
        ]
        tasks = [asyncio.create_task(client.ask_until_used_up()) for client in clients]
        doing = asyncio.create_task(asyncio.to_thread(deed)) if deed is not None else None
        _, late = await asyncio.wait(tasks, timeout=PATIENCE)
        for task in late:
            task.cancel()
        ends = await asyncio.gather(*tasks, *filter(None, [doing]), return_exceptions=True)
    over.set()
    found = await samples
    for end in ends:
        if isinstance(end, Exception):
            raise end
    return heard, found


QUERY = "select lim, used, reserved from budgets where scope = 'team:{}' and unit = 'tokens'"


async def on_postgres(here: Town, wanted: Order, deed: Callable[[], None] | None = None) -> tuple[Counter[str], list[Sample]]:
    made = here.worlds[0]
    assert isinstance(made, PostgresWorld)
    connection = await asyncpg.connect(made.database)

    async def look() -> Sample | None:
        row = await connection.fetchrow(QUERY.format(wanted.team))
        return tuple(row) if row is not None else None

    try:
        return await everybody(here, wanted, look, deed)
    finally:
        await connection.close()


async def on_sqlite(here: Town, wanted: Order, deed: Callable[[], None] | None = None) -> tuple[Counter[str], list[Sample]]:
    connection = sqlite3.connect(f"file:{here.worlds[0].data_dir / 'mindgw.db'}?mode=ro", uri=True)

    async def look() -> Sample | None:
        row: Sample | None = connection.execute(QUERY.format(wanted.team)).fetchone()
        return row

    try:
        return await everybody(here, wanted, look, deed)
    finally:
        connection.close()


def play(here: Town, seed: int, output: int = 1) -> None:
    """One round."""
    made = here.worlds[0]
    wanted = order(here, seed, output)
    before = sum(engine.requests for engine in here.engines)
    begun = time.monotonic()
    run = on_postgres if isinstance(made, PostgresWorld) else on_sqlite
    heard, samples = asyncio.run(run(here, wanted))
    standing = QUERY.format(wanted.team)
    print(f"\nseed {seed}: {wanted.fits} fit, {dict(heard)}, {len(samples)} samples, {time.monotonic() - begun:.1f} s")
    assert heard["insufficient_quota"] == CLIENTS, (heard, made.query(standing), made.query("select * from leases"))
    assert sum(engine.requests for engine in here.engines) - before == heard[""]
    assert len(samples) > 20
    assert {lim for lim, _, _ in samples} == {wanted.limit}
    assert max(used + reserved for _, used, reserved in samples) <= wanted.limit
    until(lambda: made.query(standing)[0]["reserved"] == 0, "nothing is reserved any more", 30)
    used = made.query(standing)[0]["used"]
    if output == 1:
        assert (heard[""], used) == (wanted.fits, wanted.limit)
    else:
        assert wanted.limit - wanted.prompt <= used <= wanted.limit, "not one token more could have been had"


def assert_sound(here: Town) -> None:
    """All books are right in the end."""
    made = here.worlds[0]
    found = books.read(made)
    assert books.drift(found) == []
    assert books.passed(found, made.query("select * from quotas where scope like 'team:%'")) == []
    assert Account(found).doubled() == []
    made.admin("ledger", "verify")
    for each in here.worlds:
        for process in each.processes:
            assert "Traceback" not in process.said, process.said


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 52), marks=pytest.mark.real_install)], ids=["two", "fifty"])
def test_two_servers_on_one_postgres_admit_exactly_what_fits(seeds: range, postgres_url: str, tmp_path: Path) -> None:
    with two_servers(tmp_path, postgres_url) as worlds, town(worlds) as here:
        for seed in seeds:
            play(here, seed)
            play(here, seed, output=12)
        assert_sound(here)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 52), marks=pytest.mark.real_install)], ids=["two", "fifty"])
def test_one_server_on_sqlite_admits_exactly_what_fits(seeds: range, tmp_path: Path) -> None:
    with world(tmp_path / "one") as made:
        made.initialise()
        with town([made]) as here:
            for seed in seeds:
                play(here, seed)
                play(here, seed, output=12)
            assert_sound(here)


def test_a_limit_holds_while_one_of_two_servers_is_killed(postgres_url: str, tmp_path: Path) -> None:
    """What its leases hold stays reserved until its agent has told; then the rest of the limit is used up, to the token."""
    with two_servers(tmp_path, postgres_url) as worlds, town(worlds) as here:
        wanted = order(here, 7, output=12, fits=500)
        victim, engine = here.worlds[1], here.engines[1]

        def spent() -> bool:
            (row,) = victim.query(QUERY.format(wanted.team))
            return row["used"] + row["reserved"] > wanted.limit - wanted.prompt

        def kill_twice() -> None:
            for _ in range(2):
                target = engine.requests + 60
                # on a slow machine the other one may have served the rest by now
                until(lambda target=target: engine.requests >= target or spent(), "the victim works, or nothing is left")
                assert victim.server is not None
                victim.server.kill()
                victim.serve()

        heard, samples = asyncio.run(on_postgres(here, wanted, kill_twice))
        standing = QUERY.format(wanted.team)
        print(f"\n{dict(heard)}, {len(samples)} samples")
        assert heard["insufficient_quota"] == CLIENTS, (heard, victim.query(standing), victim.query("select * from leases"))
        assert max(used + reserved for _, used, reserved in samples) <= wanted.limit
        until(lambda: victim.query(standing)[0]["reserved"] == 0, "nothing is reserved any more", 60)
        used = victim.query(standing)[0]["used"]
        assert wanted.limit - wanted.prompt <= used <= wanted.limit, "not one token more could have been had"
        delivered = {id: came for each in here.engines for id, came in each.delivered.items()}
        account = Account(books.read(victim))
        assert account.lost(delivered) == []
        assert account.invented(delivered) == []
        assert_sound(here)
