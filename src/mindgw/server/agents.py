"""The door that agents dial: one WebSocket each, as plain ASGI.

The coroutine greets the agent, then reads messages into its link; a second task writes whatever the link has to say. Frames that
pile up while a message is being sent leave together in the next one.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from mindgw import __version__
from mindgw.clock import monotonic
from mindgw.gateway.handshake import Handshake, Rejected, goodbye
from mindgw.gateway.pipeline import Pipeline, Session
from mindgw.gateway.registry import Registry
from mindgw.gateway.tunnel import PING_INTERVAL, Link
from mindgw_agent import identity, wire

log = logging.getLogger("mindgw.agents")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Seconds for the whole greeting, and bytes of its messages.
GREETING = 5.0
MAX_GREETING = 8 * 1024 + wire.MAX_PAYLOAD

#: Seconds that a link which must close has to say what is left; then its socket is given up, whether the agent read it or not.
PARTING = 2.0

#: WebSocket close codes.
NORMAL, TRY_LATER = 1000, 1013


class Gone(Exception):
    """The socket is closed."""


def reached_as(scheme: str, host: str, plain: str) -> str:
    """The name under which an agent reached us, as it signs it, given the Host header and HOST:PORT of the plain listener.

    Empty, which nobody signs, for the plain listener's name over TLS: an agent dials that on its own machine only, so somebody there
    stands in between, takes the agent's words without TLS and passes them on with it.
    """
    host = host.lower()
    return "" if scheme in {"https", "wss"} and host == plain.lower() else host


class Bell:
    """Rung by a link that has something to say."""

    __slots__ = ("link", "parting", "ready")

    def __init__(self) -> None:
        #: Whose bell it is; None while the link is being made.
        self.link: Link | None = None
        #: Set when there may be something to take, until the writer looks.
        self.ready = asyncio.Event()
        #: Set once the link must close.
        self.parting = asyncio.Event()

    def ring(self) -> None:
        self.ready.set()
        if self.link is not None and self.link.closing is not None:
            self.parting.set()


class AgentsDoor:
    """`/agent/v1/link`."""

    def __init__(self, pipeline: Pipeline, registry: Registry, plain: str, linked: Callable[[str], Awaitable[None]]) -> None:
        """`linked` is told of every worker before it is given its first request."""
        self._pipeline = pipeline
        self._linked = linked
        self._registry = registry
        #: HOST:PORT of the listener without TLS.
        self._plain = plain

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serves one WebSocket, from the upgrade to its end."""
        if scope["type"] != "websocket":
            await send({"type": "http.response.start", "status": 426, "headers": [(b"upgrade", b"websocket"), (b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await receive()
        headers = dict(scope["headers"])
        if b"origin" in headers or wire.SUBPROTOCOL not in scope.get("subprotocols", ()) or self._pipeline.draining:
            await send({"type": "websocket.close", "code": TRY_LATER})  # before the upgrade: HTTP 403
            return
        await send({"type": "websocket.accept", "subprotocol": wire.SUBPROTOCOL})
        with contextlib.suppress(Gone):
            host = headers.get(b"host", b"").decode("latin-1")
            await self._talk(reached_as(scope["scheme"], host, self._plain), receive, send)

    async def _talk(self, host: str, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(GREETING):
                session, link, bell = await self._greet(host, receive, send)
        except Rejected as no:
            log.warning("an agent was turned away: %s", no)
            await _say(send, goodbye(no.goodbye))
            await _close(send, NORMAL)
        except (wire.ProtocolError, TimeoutError) as wrong:
            # the socket goes without a closing handshake: whoever did not greet would not take part in that either
            log.warning("a greeting failed: %s", str(wrong) or "too slow")
        else:
            await self._carry(session, link, bell, receive, send)

    async def _greet(self, host: str, receive: Receive, send: Send) -> tuple[Session, Link, Bell]:
        handshake = Handshake(self._registry.identity, self._registry.sign, identity.verify, secrets.token_bytes(32))
        hello = handshake.hello(await _message(receive, MAX_GREETING))
        record = await self._registry.find(hello.agent_id)
        await _say(send, handshake.challenge(record.epoch))
        proof = await _message(receive, MAX_GREETING)
        try:
            report = handshake.admit(proof, record.public_key, record.epoch, host)
        except Rejected as no:
            if no.goodbye.code == "locked":
                await self._registry.lock(record.id)
                self._pipeline.lock_worker(record.id)
            raise
        await self._registry.enter(record.id, handshake.epoch)
        await self._linked(record.id)
        bell = Bell()
        bell.link = link = Link(bell.ring, monotonic())
        await _say(send, handshake.welcome(record.name, record.state_admin, __version__, PING_INTERVAL))
        session = self._pipeline.attach(link, record.id, record.name, handshake.epoch, record.state_admin == "active", report)
        log.info("worker %s is connected (session %d)", record.name, handshake.epoch)
        return session, link, bell

    async def _carry(self, session: Session, link: Link, bell: Bell, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(_write(link, bell.ready, send))
        reader = asyncio.create_task(_read(session, link, receive))
        parting = asyncio.create_task(bell.parting.wait())
        try:
            await asyncio.wait([reader, parting], return_when=asyncio.FIRST_COMPLETED)
            # The reader ends when the socket is closed; that of a peer which takes nothing any more may hold for many minutes.
            await asyncio.wait([reader], timeout=PARTING)
            if reader.done():
                reader.result()
        except wire.ProtocolError as wrong:
            log.warning("worker %s broke the protocol: %s", session.worker.name, wrong)
            link.goodbye("protocol", str(wrong))
        finally:
            session.detach()
            log.info("worker %s is gone", session.worker.name)
            await _finish(writer, bell.ready, PARTING if reader.done() else 0)
            reader.cancel()
            parting.cancel()


async def _read(session: Session, link: Link, receive: Receive) -> None:
    """Feeds messages until the socket is gone."""
    while True:
        try:
            message = await _message(receive, wire.MAX_MESSAGE)
        except Gone:
            return
        session.heard()
        link.receive(message, monotonic())


async def _write(link: Link, ready: asyncio.Event, send: Send) -> None:
    """Sends what the link has to say until it says goodbye or the socket is gone."""
    with contextlib.suppress(Gone):
        while True:
            await ready.wait()
            ready.clear()
            while message := link.take():
                await _say(send, message)
            if link.closing is not None:
                await _close(send, NORMAL)
                return


async def _finish(writer: asyncio.Task[None], ready: asyncio.Event, patience: float) -> None:
    """Lets the writer send a goodbye that is waiting, but not for long."""
    ready.set()
    done, _ = await asyncio.wait([writer], timeout=patience)
    if not done:
        writer.cancel()


async def _message(receive: Receive, limit: int) -> bytes:
    event = await receive()
    if event["type"] == "websocket.disconnect":
        raise Gone
    data: bytes | None = event.get("bytes")
    if data is None or len(data) > limit:
        raise wire.ProtocolError("not a binary message of a sane size")
    return data


async def _say(send: Send, message: bytes) -> None:
    try:
        await send({"type": "websocket.send", "bytes": message})
    except (OSError, RuntimeError) as gone:  # each server has its own way to say that the peer is gone
        raise Gone from gone


async def _close(send: Send, code: int) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        await send({"type": "websocket.close", "code": code})
