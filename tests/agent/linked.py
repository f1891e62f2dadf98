"""What the tests of links share: an agent with a FAKE engine, connected to a gateway."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mindgw_agent import address, bookkeeping, identity
from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.offer import Offer
from mindgw_agent.outbox import Outbox
from mindgw_agent.settings import Settings
from mindgw_agent.stand import Stand
from mindgw_agent.tunnel import Tunnel, keep_connected
from mindgw_agent.wire import Close, EngineReport, Model
from tests.agent.gateway import Gateway, gateway


class FakeEngine:
    """A fake: an engine that always offers one model on two slots."""

    def __init__(self) -> None:
        self.report = EngineReport(id="e1", kind="fake", healthy=True, slots=2, models=[Model("m")])

    async def probe(self) -> EngineReport:
        return self.report


async def echo(engine: FakeEngine, request: Request, out: Outlet) -> None:
    """A fake exchange: the body comes back."""
    out.head(200, "application/json", request.body)
    out.close(Close("done", status=200))


class Agent:
    """A tunnel with a fake engine behind it, and an outbox in a directory of its own."""

    #: Where outboxes are made.
    place: Path

    def __init__(self, server: Gateway, key: bytes, carry, outbox: Outbox | None = None) -> None:
        self.engine = FakeEngine()
        self.offer: Offer[FakeEngine] = Offer([Stand(self.find)], carry)
        self.saved: list[int] = []
        #: What was told of trouble with the outbox.
        self.heard: list[str] = []
        srv = identity.public_half(server.identity)
        settings = Settings(agent_id="a1", name="gpu", servers=[server.root], server_identity=srv)
        self.outbox = outbox or Outbox(Path(tempfile.mkdtemp(dir=self.place), "outbox"), "a1", fresh=True)
        self.outbox.open()
        self.tunnel: Any = Tunnel(settings, key, self.offer, self.outbox, self.saved.append)
        self.address = address.parse(server.root)

    async def find(self) -> FakeEngine:
        return self.engine


@asynccontextmanager
async def connected(carry=echo, outbox: Outbox | None = None, **fields: Any) -> AsyncIterator[tuple[Gateway, Agent]]:
    """A gateway with these fields and an agent whose first link is up."""
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        for name, value in fields.items():
            setattr(server, name, value)
        agent = Agent(server, key, carry, outbox)
        await agent.offer.probe()
        running = asyncio.create_task(keep_connected(agent.tunnel, [agent.address], None, lambda: 0.01))
        keeping = asyncio.create_task(bookkeeping.keep(agent.outbox, agent.heard.append))
        try:
            await server.until(lambda: server.link is not None)
            yield server, agent
        finally:
            keeping.cancel()
            running.cancel()
            await asyncio.gather(running, keeping, return_exceptions=True)
            await agent.offer.stop(1)
            agent.outbox.close()
