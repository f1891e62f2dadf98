"""Work that ends with whoever waits for it, over real connections."""

import asyncio
from functools import partial

import pytest
import uvicorn
from litestar import Litestar, Request, post

from mindgw.errors import Cancelled
from mindgw.server.cors import Cors
from mindgw.server.guard import Guard
from mindgw.server.management.presence import while_connected
from mindgw.server.protocol import Guarded


class Desk:
    """A server with one piece of work, which ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(self) -> str:
        self.begun.set()
        try:
            await self.go.wait()
            return "done"
        finally:
            self.ended.set()


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /work HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    return reader, writer


@pytest.mark.parametrize("how", ["close", "abort", "stay"])
async def test_work_ends_with_its_client_and_not_before(how):
    desk = Desk()

    @post("/work")
    async def work(request: Request) -> str:
        return await while_connected(request.receive, desk.work())

    http = partial(Guarded, Guard(), Cors())
    server = uvicorn.Server(uvicorn.Config(Litestar([work]), port=0, http=http, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server._serve())
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await ask(server.servers[0].sockets[0].getsockname()[1])
        await desk.begun.wait()
        if how == "stay":
            desk.go.set()
            assert (await reader.read()).endswith(b"done")
        elif how == "abort":
            writer.transport.abort()
        writer.close()
        await desk.ended.wait()
        server.should_exit = True
        await serving
    assert desk.go.is_set() == (how == "stay")


async def test_who_ends_the_waiting_ends_the_work():
    desk = Desk()
    never = asyncio.Event()

    async def receive():
        await never.wait()

    waiting = asyncio.create_task(while_connected(receive, desk.work()))
    await desk.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert desk.ended.is_set()


async def test_who_is_gone_before_it_began_is_told_nothing():
    async def receive():
        return {"type": "http.disconnect"}

    desk = Desk()
    with pytest.raises(Cancelled, match="hung up"):
        await while_connected(receive, desk.work())
