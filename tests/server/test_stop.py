"""The end of the real server: whatever connections do, what is known is written down."""

import asyncio
from contextlib import asynccontextmanager

import msgspec

from mindgw import config
from mindgw.control import secrets
from mindgw.server.app import build
from mindgw.server.listeners import Listeners
from mindgw.server.run import GatewayServer
from mindgw.store.database import Database
from tests.e2e.world import free_port
from tests.initialised import initialised


@asynccontextmanager
async def gateway(directory):
    """A server at work in this loop, with its task."""
    await initialised(directory)
    known = msgspec.structs.replace(config.load(None, directory), listen=f"127.0.0.1:{free_port()}")
    database = Database(known.database_url)
    with Listeners(known) as listeners:
        made = GatewayServer(known, build(known, secrets.load(directory), database), None, listeners)
        listeners.open()
        serving = asyncio.create_task(made._serve([*listeners.plain.sockets]))
        async with asyncio.timeout(20):
            while not made.started:
                await asyncio.sleep(0.01)
        yield made, serving
    await database.close()


async def test_a_connection_that_cannot_end_ends_alone(tmp_path, monkeypatch, caplog):
    async with gateway(tmp_path / "data") as (made, serving):
        port = made.servers[0].sockets[0].getsockname()[1]
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        async with asyncio.timeout(20):
            while len(made.server_state.connections) < 3:
                await asyncio.sleep(0.01)
        first = next(iter(made.server_state.connections))
        told = []

        def broken(self):
            told.append(self)
            if self is first:
                raise AssertionError
            self.transport.close()

        monkeypatch.setattr(type(first), "shutdown", broken)
        made.should_exit = True
        await serving
        assert len(told) == 3 and not made.server_state.connections
        assert made.lifespan.shutdown_event.is_set() and not made.lifespan.shutdown_failed
        assert [record.message for record in caplog.records if record.exc_info] == ["a connection did not end in order"]
        for _, writer in streams:
            writer.close()
