"""A server end for the agent's tunnel: the gateway's own greeting and link behind a plain WebSocket listener."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trustme
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from mindgw.core import receipt
from mindgw.gateway.handshake import Handshake, Rejected, goodbye
from mindgw.gateway.tunnel import Link
from mindgw_agent import identity, wire


class Ear:
    """Hears one answer, and gives credit back as it reads, unless it is paused."""

    def __init__(self, link: Link, *, paused: bool) -> None:
        self._link = link
        self._paused = paused
        #: Bytes that were given no credit for yet.
        self._unread = 0
        self.stream = 0
        self.status = 0
        self.body = b""
        #: Set when the answer has ended.
        self.close: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answered(self, head: wire.Head, close: wire.Close | None) -> None:
        self.status = head.status
        if head.body:
            self.data(head.body)
        if close is not None:
            self.closed(close)

    def data(self, data: bytes) -> None:
        self.body += data
        self._unread += len(data)
        if not self._paused:
            self.read()

    def read(self) -> None:
        self._paused = False
        self._link.consumed(self.stream, self._unread)
        self._unread = 0

    def closed(self, close: wire.Close) -> None:
        self.close.set_result(close)

    def lost(self) -> None:
        if not self.close.done():
            self.close.set_result(None)


class Gateway:
    """Takes one agent in, again and again."""

    def __init__(self, public_key: bytes) -> None:
        self.identity = identity.new_key()
        self.public_key = public_key
        self.scheme = "http"
        #: What the server has on its disk.
        self.epoch = 0
        #: Turns every agent away.
        self.refusal: wire.Goodbye | None = None
        #: Epochs of the links that came up, and the reports that were heard.
        self.epochs: list[int] = []
        self.reports: list[wire.Report] = []
        #: Batches of receipts as they came, and whether they are acknowledged as they come.
        self.batches: list[wire.Receipts] = []
        self.keeps = True
        #: Receipts that were kept: the chain of the agent, checked. Its newest number and hash.
        self.kept: list[wire.Receipt] = []
        self.last, self.head = 0, b""
        self.drained = False
        self.greetings = 0
        #: The link of this moment and its socket.
        self.link: Any = None
        self.socket: Any = None
        self.news = asyncio.Condition()
        self.server: Server | None = None

    @property
    def root(self) -> str:
        assert self.server is not None
        return f"{self.scheme}://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def reported(self, report: wire.Report) -> None:
        self.reports.append(report)

    def lied(self, charge: str) -> None:
        raise AssertionError(charge)

    def drains(self) -> None:
        self.drained = True

    def parts(self) -> None:
        raise AssertionError("an agent just goes")

    def receipts(self, batch: wire.Receipts) -> None:
        self.batches.append(batch)
        assert identity.verify(self.public_key, batch.signature, wire.transcript_receipts("a1", batch.last, batch.head))
        if self.keeps:
            self.keep(batch)

    def keep(self, batch: wire.Receipts) -> None:
        """Check a batch against the chain, keep what is new, acknowledge it."""
        new = receipt.check(batch, "a1", self.last, self.head)
        assert isinstance(new, list), new
        self.kept += [one for one, _ in new]
        if batch.last >= self.last:
            self.last, self.head = batch.last, batch.head
        if batch.receipts:
            self.link.received(self.last)

    def ask(self, body: bytes = b"{}", *, paused: bool = False, **fields) -> Ear:
        """Send a request over the link of this moment."""
        ear = Ear(self.link, paused=paused)
        meta = wire.Meta(**{"request_id": "r1", "path": "/v1/chat/completions", "model": "m", "length": len(body), "tag": b"bill"} | fields)
        ear.stream = self.link.open(ear, meta, body)
        return ear

    async def until(self, true) -> None:
        """Wait for something that an agent does; ten seconds at most."""
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(true)

    async def _changed(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def handle(self, socket: ServerConnection) -> None:
        self.greetings += 1
        try:
            link, ready = await self._greet(socket)
        except Rejected as no:
            await socket.send(goodbye(no.goodbye))
            return
        except ConnectionClosed:
            return
        finally:
            await self._changed()
        writer = asyncio.create_task(self._write(link, ready, socket))
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                link.receive(message, asyncio.get_running_loop().time())
                await self._changed()
        self.link = None
        link.lost()
        writer.cancel()
        await self._changed()

    async def _greet(self, socket: ServerConnection) -> tuple[Link, asyncio.Event]:
        handshake = Handshake(identity.public_half(self.identity), lambda m: identity.sign(self.identity, m), identity.verify, bytes(32))
        handshake.hello(await socket.recv())
        if self.refusal is not None:
            no = Rejected(self.refusal.code, self.refusal.message)
            no.goodbye = self.refusal
            raise no
        await socket.send(handshake.challenge(self.epoch))
        report = handshake.admit(await socket.recv(), self.public_key, self.epoch, socket.request.headers["Host"])
        self.epoch = handshake.epoch
        ready = asyncio.Event()
        link = self.link = Link(ready.set, asyncio.get_running_loop().time())
        link.owner = self
        self.socket = socket
        self.reports.append(report)
        self.epochs.append(self.epoch)
        await socket.send(handshake.welcome("gpu", "active", "1", 10.0))
        return link, ready

    async def _write(self, link: Link, ready: asyncio.Event, socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await ready.wait()
                ready.clear()
                while message := link.take():
                    await socket.send(message)
                if link.closing is not None:
                    await socket.close()
                    return


@asynccontextmanager
async def gateway(public_key: bytes, *, authority: trustme.CA | None = None) -> AsyncIterator[Gateway]:
    """A gateway on a free port of the loopback interface; over TLS with a certificate of `authority`."""
    made = Gateway(public_key)
    context = None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        made.scheme = "https"
    async with serve(
        made.handle, "127.0.0.1", 0, ssl=context, subprotocols=[wire.SUBPROTOCOL], compression=None, ping_interval=None
    ) as server:
        made.server = server
        yield made
