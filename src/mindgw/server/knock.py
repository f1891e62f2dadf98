"""Connections over TLS before they are any: a client counts, and is watched, from the moment it is accepted, not from its first words."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

# what `create_server(ssl=…)` puts between a transport and its protocol, without a word about who came
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

from mindgw.server.guard import Guard
from mindgw.server.socket import CLOSING

#: Seconds for a handshake; and when most places are taken.
HANDSHAKE = 10.0
HURRIED = 2.0
#: Bytes that the transport beneath TLS takes before what is above it must wait.
BENEATH = 16 * 1024


class Knock(asyncio.Protocol):
    """One connection until its handshake is done; what it is from then on, `make` makes."""

    def __init__(self, guard: Guard, tls: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        self._guard = guard
        self._tls = tls
        self._make = make
        #: Who it is counted as, and since when by the guard's clock.
        self._group = ""
        self._since = 0.0
        #: The transport beneath TLS; None until it is accepted.
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when it is accepted, and with the transport over TLS when the handshake is done."""
        if self.transport is None:
            self.transport = transport
            self._accept(cast(asyncio.Transport, transport))
            return
        self._guard.leave(self, self._group)
        made = self._make()
        cast(asyncio.Transport, transport).set_protocol(made)
        made.connection_made(transport)

    def look(self, now: float) -> None:
        """Called by the guard now and then."""
        if now - self._since >= HURRIED and (self._guard.is_stopping or self._guard.is_pressed) and self.transport is not None:
            self.transport.abort()

    def _accept(self, transport: asyncio.Transport) -> None:
        """Begins the handshake. Who is one too many hears nothing: words would cost one, too."""
        peer: Any = transport.get_extra_info("peername")
        self._group = self._guard.counted_as(peer[0]) if peer else ""
        crowded = self._guard.enter(self, self._group)
        self._since = self._guard.now
        if crowded is not None:
            self._guard.leave(self, self._group)
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        done.add_done_callback(self._ended)
        between = SSLProtocol(
            loop, self, self._tls, done, True, call_connection_made=True, ssl_handshake_timeout=HANDSHAKE, ssl_shutdown_timeout=CLOSING
        )
        transport.set_write_buffer_limits(BENEATH)
        transport.set_protocol(between)
        between.connection_made(transport)

    def _ended(self, done: asyncio.Future[None]) -> None:
        """The handshake is over, well or not."""
        self._guard.leave(self, self._group)
        if not done.cancelled():
            done.exception()  # nobody else asks
