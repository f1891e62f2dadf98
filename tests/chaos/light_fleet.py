"""Many agents in one process, a program of its own: the real way to the server and back (`mindgw_agent`'s tunnel, link, session, outbox)
in front of FAKE engines that answer out of memory. What a server does for a thousand boxes is seen with it, never what a box costs.

python light_fleet.py FILE URL FOLDER      FILE: a `bench.stock.Stock`; FOLDER: for the outboxes

It reads lines and answers each with one: `ready` (how many links are up), `epochs` (of how many sessions they are, in all). It ends with
its stdin.
"""

import asyncio
import logging
import sys
from pathlib import Path

import msgspec

from mindgw_agent import address, bookkeeping, loop, wire
from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.offer import Offer
from mindgw_agent.outbox import Outbox
from mindgw_agent.settings import Settings
from mindgw_agent.stand import Stand
from mindgw_agent.tunnel import Tunnel, keep_connected

#: The model that each of them has, besides one of its own.
SHARED = "light"
SLOTS = 4
USAGE = wire.Usage(7, 2)
ANSWER = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"light","usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9},'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"one two"},"finish_reason":"stop"}]}'
)


class Member(msgspec.Struct):
    """An agent that may connect: its id and its private key."""

    id: str
    key: bytes


class Stock(msgspec.Struct):
    """What is read of the file."""

    #: Public identity of the server.
    server: bytes
    members: list[Member]


class FakeEngine:
    """What a box has."""

    def __init__(self, number: int) -> None:
        models = [wire.Model(name, kinds=["chat"]) for name in (SHARED, f"{SHARED}-{number}")]
        self._report = wire.EngineReport(id="e1", kind="generic", healthy=True, slots=SLOTS, models=models)

    async def probe(self) -> wire.EngineReport:
        return self._report


async def carry(_engine: FakeEngine, request: Request, out: Outlet) -> None:
    """The answer, at once."""
    close = wire.Close("done", usage=USAGE, bytes=len(ANSWER), finish="stop", tag=request.meta.tag, status=200)
    out.head(200, "application/json", ANSWER)
    out.bill(close)
    out.close(close)


class Fleet:
    """All of them."""

    def __init__(self, stock: Stock, where: address.Address, folder: Path) -> None:
        self._where = where
        self._tunnels = [self._tunnel(stock, number, folder) for number in range(len(stock.members))]
        self._tasks: list[asyncio.Task[None]] = []

    def _tunnel(self, stock: Stock, number: int, folder: Path) -> Tunnel:
        member = stock.members[number]
        settings = Settings(agent_id=member.id, name=f"light-{number}", servers=[self._where.root], server_identity=stock.server)

        async def find() -> FakeEngine:
            return FakeEngine(number)

        outbox = Outbox(folder / f"{number}", member.id, fresh=True)
        outbox.open()
        return Tunnel(settings, member.key, Offer([Stand(find)], carry), outbox, lambda epoch: None)

    async def begin(self) -> None:
        for tunnel in self._tunnels:
            await tunnel.offer.probe()
            self._tasks.append(asyncio.create_task(keep_connected(tunnel, [self._where], None)))
            self._tasks.append(asyncio.create_task(bookkeeping.keep(tunnel.outbox, lambda trouble: None)))

    @property
    def ready(self) -> int:
        return sum(tunnel.link is not None and tunnel.link.ready_at is not None for tunnel in self._tunnels)

    def obey(self, line: str) -> int:
        if line == "ready":
            return self.ready
        if line == "epochs":
            return sum(tunnel.last_epoch for tunnel in self._tunnels)
        raise ValueError(f"what is {line!r}?")


async def main(file: str, url: str, folder: str) -> None:
    logging.getLogger("mindgw.agent").setLevel(logging.ERROR)
    fleet = Fleet(msgspec.json.decode(Path(file).read_bytes(), type=Stock), address.parse(url), Path(folder))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await fleet.begin()
    while line := (await reader.readline()).decode().strip():
        print(fleet.obey(line), flush=True)


if __name__ == "__main__":
    loop.run(main(*sys.argv[1:]))
