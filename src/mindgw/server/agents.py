"""The door that agents dial: one WebSocket each, greeted as plain ASGI, then carried in the transport's callbacks.

What arrives is heard by the link in the same stack. What is said within one turn of the event loop leaves in one message, at its end;
only the middle of large requests waits for longer, a millisecond or two, when many streams are open: whatever else is said takes it
along.
"""

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mindgw import __version__, errors
from mindgw.clock import monotonic
from mindgw.gateway.handshake import Handshake, Rejected, goodbye
from mindgw.gateway.pipeline import Pipeline
from mindgw.gateway.registry import Registry
from mindgw.gateway.session import Session, Standing
from mindgw.gateway.tunnel import PING_INTERVAL, Link
from mindgw.server.chores import summary
from mindgw.server.socket import EXTENSION, WebSocket
from mindgw.store import faults
from mindgw.store.tables import Worker as Record
from mindgw_agent import identity, wire

log = logging.getLogger("mindgw.agents")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Seconds that an agent may take for its part of the greeting, and bytes of its messages.
GREETING = 5.0
MAX_GREETING = 8 * 1024 + wire.MAX_PAYLOAD

#: Agents that are looked up, and agents that are let in, at the same time. When a thousand come back at once the others wait for their
#: turn: whoever asks the database for the sake of a request must not stand behind them all.
AT_ONCE = 2

#: Seconds that a link which must close has to say what is left; then its socket is given up, whether the agent read it or not.
PARTING = 2.0

#: Bytes of one message: less than may be, so that what is urgent never waits behind much.
MESSAGE = 256 * 1024
#: With so many open streams what is not urgent may wait, and for so many seconds after the message before; with very many for longer.
BUSY, VERY_BUSY = 16, 500
WAIT, LONG_WAIT = 0.001, 0.002

#: WebSocket close codes.
NORMAL, BROKEN, TRY_LATER = 1000, 1011, 1013


class Gone(Exception):
    """The socket is closed."""


def reached_as(scheme: str, host: str, plain: str) -> str:
    """The name under which an agent reached us, as it signs it, given the Host header and HOST:PORT of the plain listener.

    Empty, which nobody signs, for the plain listener's name over TLS: an agent dials that on its own machine only, so somebody there
    stands in between, takes the agent's words without TLS and passes them on with it.
    """
    host = host.lower()
    return "" if scheme in {"https", "wss"} and host == plain.lower() else host


class Carriage:
    """Carries one link over its socket, from `begin` to the end of `over`."""

    def __init__(self, socket: WebSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self.link = Link(self._wake, monotonic())
        #: None before `begin`, and once it was told that the link is gone.
        self._session: Session | None = None
        #: A flush comes at the end of this turn; or at a moment, when that is not None.
        self._is_due = False
        self._later: asyncio.TimerHandle | None = None
        #: When the last message left, on the loop's clock.
        self._flushed_at = 0.0
        #: Gives up a socket whose peer does not take the last words; None while there are none.
        self._parting: asyncio.TimerHandle | None = None
        #: Done when the socket is gone.
        self.over: asyncio.Future[None] = self._loop.create_future()

    def begin(self, session: Session) -> None:
        """Carries from now on; the session is told when the link is gone."""
        self._session = session
        self._socket.carry(self)
        self._wake()

    # -- what the socket calls -------------------------------------------------------------------------------------

    def message(self, message: bytes | str) -> None:
        if self._session is None:
            return  # this end has given up
        self._session.heard()
        try:
            self.link.receive(message, monotonic())
        except wire.ProtocolError as wrong:
            log.warning("worker %s broke the protocol: %s", self._session.worker.name, wrong)
            self.link.goodbye("protocol", str(wrong))
            self._detach()

    def room(self) -> None:
        self._flush()

    def lost(self) -> None:
        self._settle()
        if self._parting is not None:
            self._parting.cancel()
        self._detach()
        if not self.over.done():
            self.over.set_result(None)

    # -- what leaves -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """The link has something to say."""
        if self._is_due:
            return
        streams = self.link.streams
        if streams >= BUSY and not self.link.is_urgent:
            wait = WAIT if streams < VERY_BUSY else LONG_WAIT
            left = self._flushed_at + wait - self._loop.time()
            if left > 0:
                self._later = self._later or self._loop.call_later(left, self._flush)
                return
        self._is_due = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Everything that was said and can leave does."""
        self._settle()
        link, socket = self.link, self._socket
        while not socket.is_full and (message := link.take(MESSAGE)):
            socket.say(message)
        self._flushed_at = self._loop.time()
        if link.closing is not None:
            self._part()

    def _settle(self) -> None:
        """No flush is due any more."""
        self._is_due = False
        if self._later is not None:
            self._later.cancel()
            self._later = None

    # -- the end ---------------------------------------------------------------------------------------------------

    def _part(self) -> None:
        """Closes once all is said; a peer that takes nothing any more may hold a socket for many minutes, and is given up."""
        if not self._socket.is_full:
            self._socket.finish(NORMAL)
        if self._parting is None and not self.over.done():
            self._parting = self._loop.call_later(PARTING, self._give_up)

    def _give_up(self) -> None:
        self._detach()
        self._socket.abort()

    def _detach(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.detach()
            log.info("worker %s is gone", session.worker.name)


class AgentsDoor:
    """`/agent/v1/link`."""

    def __init__(self, pipeline: Pipeline, registry: Registry, plain: str, linked: Callable[[str], Awaitable[None]]) -> None:
        """`linked` is told of every worker before it is given its first request."""
        self._pipeline = pipeline
        self._linked = linked
        self._registry = registry
        #: HOST:PORT of the listener without TLS.
        self._plain = plain
        #: Turns at the database, in the order in which agents came: to be looked up, and to be let in.
        self._lookups, self._entries = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serves one WebSocket, from the upgrade to its end."""
        if scope["type"] != "websocket":
            await send({"type": "http.response.start", "status": 426, "headers": [(b"upgrade", b"websocket"), (b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await receive()
        headers, socket = dict(scope["headers"]), (scope.get("extensions") or {}).get(EXTENSION)
        if socket is None:
            log.error(
                "an agent cannot be served: its WebSocket is not that of `mindgw serve` (uvicorn's ws=mindgw.server.socket.WebSocket)"
            )
            await send({"type": "websocket.close", "code": BROKEN})  # before the upgrade: HTTP 403
            return
        if b"origin" in headers or wire.SUBPROTOCOL not in scope.get("subprotocols", ()) or self._pipeline.draining:
            await send({"type": "websocket.close", "code": TRY_LATER})  # before the upgrade: HTTP 403
            return
        await send({"type": "websocket.accept", "subprotocol": wire.SUBPROTOCOL})
        with contextlib.suppress(Gone):
            host = headers.get(b"host", b"").decode("latin-1")
            await self._talk(reached_as(scope["scheme"], host, self._plain), socket, receive, send)

    async def _talk(self, host: str, socket: WebSocket, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(GREETING) as limit:
                carriage = await self._greet(host, socket, (receive, send), limit)
        except Rejected as no:
            log.warning("an agent was turned away: %s", no)
            await _part(send, NORMAL, goodbye(no.goodbye))
        except errors.MindGWError as wrong:
            log.warning("a greeting failed: %s", wrong)
            await _part(send, TRY_LATER)
        except (wire.ProtocolError, TimeoutError) as wrong:
            # the socket goes without a closing handshake: whoever did not greet would not take part in that either
            log.warning("a greeting failed: %s", str(wrong) or "too slow")
        else:
            await carriage.over

    async def _greet(self, host: str, socket: WebSocket, talk: tuple[Receive, Send], limit: asyncio.Timeout) -> Carriage:
        receive, send = talk
        handshake = Handshake(self._registry.identity, self._registry.sign, identity.verify, secrets.token_bytes(32))
        hello = handshake.hello(await _message(receive, MAX_GREETING))
        async with _turn(self._lookups, limit, socket):
            record = await self._registry.find(hello.agent_id)
        await _say(send, handshake.challenge(record.epoch))
        proof = await _message(receive, MAX_GREETING)
        with self._pipeline.expect(record.id) as arrival:
            async with _turn(self._entries, limit, socket):
                report, record, unwritten = await self._admit(handshake, proof, record, host)
            await _say(send, handshake.welcome(record.name, record.state_admin, __version__, PING_INTERVAL))
            # nothing is awaited from here to the end: a link that the pipeline knows is carried
            if arrival.goodbye is not None:
                raise Rejected(arrival.goodbye.code, arrival.goodbye.message)
            carriage = Carriage(socket)
            carriage.link.version = handshake.version
            standing = _standing(record, unwritten).amended(arrival)
            session = self._pipeline.attach(carriage.link, record.id, record.name, handshake.epoch, standing, report)
        if handshake.charge:
            session.lied(handshake.charge)
        log.info("worker %s is connected (session %d)", record.name, handshake.epoch)
        carriage.begin(session)
        return carriage

    async def _admit(self, handshake: Handshake, proof: bytes, record: Record, host: str) -> tuple[wire.Report, Record, str]:
        """Checks who it is and writes its session down; its first report, and what `Registry.enter` knows. Raises Rejected."""
        try:
            report = handshake.admit(proof, record.public_key, record.epoch, host)
        except Rejected as no:
            if no.goodbye.code == "locked":
                await self._registry.lock(record.id)
                self._pipeline.lock_worker(record.id)
            raise
        record, unwritten = await self._registry.enter(record.id, handshake.epoch)
        await self._linked(record.id)
        return report, record, unwritten


@contextlib.asynccontextmanager
async def _turn(turns: asyncio.Semaphore, limit: asyncio.Timeout, socket: WebSocket) -> AsyncIterator[None]:
    """Where the database is asked. How long that takes is not the agent's fault: its time stands still meanwhile. Raises Gone for one that
    has not waited, and Draining for what no database should answer."""
    loop = asyncio.get_running_loop()
    left = (limit.when() or math.inf) - loop.time()
    limit.reschedule(None)
    async with turns:
        if socket.disconnected:
            raise Gone
        try:
            yield
        except faults.OF_DATABASES as wrong:
            raise errors.Draining(f"The database cannot do what it should: {summary(wrong)}", code="database_unavailable") from wrong
    limit.reschedule(loop.time() + left)


def _standing(record: Record, unwritten: str) -> Standing:
    state = record.state_admin
    return Standing(state != "pending", record.drained, record.reason if state == "quarantined" else "", unwritten)


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


async def _part(send: Send, code: int, word: bytes = b"") -> None:
    """Says a last word to whoever still reads, and closes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PARTING):
            if word:
                await _say(send, word)
            await _close(send, code)


async def _close(send: Send, code: int) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        await send({"type": "websocket.close", "code": code})
