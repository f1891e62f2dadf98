"""Connections to engines that wait for the next request, the one used last in front: the others grow old and are closed.

An engine closes a connection that idles for too long, and may do so at the moment at which a request is sent on it. So they are kept for
less than the 5 s of llama.cpp, vLLM and SGLang; and a request on a kept connection that is closed at once, without a byte of an answer,
is sent once more on a new one.
"""

import asyncio
import ssl
from functools import partial
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

from mindgw_agent.engines.connection import Connection
from mindgw_agent.engines.reply import Lost, NoConnection, Reply

#: Seconds that a connection is kept, and that it may take to end an answer whose last word was said.
IDLE: Final = 3.0
#: Connections that are kept, per engine.
MOST: Final = 256
#: Seconds after sending within which a closed connection means that it had been closed before.
STALE: Final = 1.0
#: Seconds between looks at those that are kept.
_SWEEP: Final = 1.0
_PORTS: Final = {"http": 80, "https": 443}


class Origin:
    """One engine's address and the connections to it."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        """`url` is a root, see `client.root_of`. Must be made in the event loop that it is used in."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._port = parts.port or _PORTS[parts.scheme]
        #: None without TLS.
        self._context = context
        self._loop = asyncio.get_running_loop()
        #: All that are open.
        self._open: set[Connection] = set()
        #: Those that wait for a request, the oldest first; at most MOST.
        self._idle: list[Connection] = []
        #: The next look at them; None while there is nothing to look at.
        self._sweeping: asyncio.TimerHandle | None = None
        #: Done when the last one is gone; None before `close`.
        self._empty: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def ask(self, head: bytes, body: bytes, patience: float) -> Reply:
        """Send a request, within `patience` seconds if there must be a connection first. The caller calls `end` of what it gets."""
        reply = Reply(self._loop, head, body, patience)
        if self._idle:
            connection = self._idle.pop()
            connection.since = self._loop.time()
            connection.carry(reply)
        else:
            self._dial(reply)
        return reply

    async def close(self) -> None:
        """Close all connections, whatever they carry."""
        self._empty = self._loop.create_future()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in self._open:
            connection.abort()
        if self._open:
            await self._empty

    def _dial(self, reply: Reply) -> None:
        if self._empty is not None:
            reply.fail(_failure(reply, "the agent ends"))
            return
        reply.dialling = self._loop.create_task(self._connect(reply))

    async def _connect(self, reply: Reply) -> None:
        wrong: str | OSError = ""
        try:
            async with asyncio.timeout(reply.patience):
                await self._loop.create_connection(partial(Connection, self, reply), self._host, self._port, ssl=self._context)
        except TimeoutError:
            wrong = f"no answer within {reply.patience:g} s"
        except OSError as error:
            wrong = error
        finally:
            reply.dialling = None
        if wrong:
            reply.fail(_failure(reply, wrong))

    # -- what connections call -------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        connection.since = self._loop.time()
        if self._empty is not None:
            connection.abort()

    def rests(self, connection: Connection) -> None:
        if self._empty is not None or len(self._idle) >= MOST:
            connection.abort()
            return
        connection.since = self._loop.time()
        self._idle.append(connection)
        self._look_later()

    def gone(self, connection: Connection, reply: Reply | None, error: Exception | None) -> None:
        self._open.discard(connection)
        if self._empty is not None and not self._open and not self._empty.done():
            self._empty.set_result(None)
        if connection in self._idle:
            self._idle.remove(connection)
        if reply is None:
            return
        if error is not None and not isinstance(error, OSError):
            reply.fail(error)  # a defect at this end
        elif connection.used and connection.is_silent and self._loop.time() - connection.since < STALE:
            self._dial(reply)
        else:
            reply.fail(Lost(str(error) if error is not None else "it closed the connection"))

    def lingers(self, connection: Connection) -> None:
        connection.since = self._loop.time()
        self._look_later()

    # -- the sweep -------------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP, self._sweep)

    def _sweep(self) -> None:
        """One look a second for all of them costs less than a timer for each."""
        self._sweeping = None
        limit = self._loop.time() - IDLE
        for connection in self._open:
            if connection.is_free and connection.since <= limit:
                connection.abort()
        self._idle = [connection for connection in self._idle if connection.since > limit]
        if self._open:
            self._look_later()


def _failure(reply: Reply, wrong: str | OSError) -> NoConnection | Lost:
    """A request that was sent before may be at work, whether or not there is a second connection for it."""
    failure = Lost("it closed the connection") if reply.sent else NoConnection(str(wrong))
    failure.__cause__ = wrong if isinstance(wrong, OSError) else None
    return failure


class Connections:
    """All of an agent's, by engine. A context: leaving it closes them."""

    def __init__(self) -> None:
        #: By root URL; as many as the operator names engines.
        self._origins: dict[str, Origin] = {}
        #: For engines behind TLS, made when there is the first: it reads the system's certificates.
        self._context: ssl.SSLContext | None = None

    async def __aenter__(self) -> "Connections":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for origin in self._origins.values():
            await origin.close()

    def origin(self, url: str) -> Origin:
        """The engine at a root URL."""
        found = self._origins.get(url)
        if found is None:
            found = self._origins[url] = Origin(url, self._tls() if url.startswith("https:") else None)
        return found

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context
