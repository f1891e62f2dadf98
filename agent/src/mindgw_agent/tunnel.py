"""The way to the server and back again: `keep_connected` tries for ever, `connect_once` is one try.

The delay before a try is drawn evenly from a range that doubles (full jitter), so that a thousand agents that lost one server do
not come back as one. Only a link that lived for a while brings the range back to its start: a server that lets everybody in and
drops them is not hammered.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from websockets.exceptions import InvalidStatus, WebSocketException

from mindgw_agent import __version__, errors, identity, wire
from mindgw_agent.address import Address
from mindgw_agent.door import issuer_at
from mindgw_agent.link import Link
from mindgw_agent.offer import Offer
from mindgw_agent.orders import Orders
from mindgw_agent.outbox import Outbox
from mindgw_agent.session import Parties, Session
from mindgw_agent.settings import Settings
from mindgw_agent.websocket import WebSocket, dial
from mindgw_agent.wire import Goodbye

log = logging.getLogger("mindgw.agent")

#: Seconds: the first range to draw a delay from, and the last.
FIRST_DELAY = 1.0
LAST_DELAY = 20.0
#: Seconds that a link must have carried requests to count as a good one.
LIVED = 5.0
#: Seconds for the TCP connection, TLS and the upgrade; and for the end of a connection.
OPEN_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0

#: Words of the server after which trying again would do harm or no good.
_FINAL: dict[str, tuple[type[errors.AgentError], str]] = {
    "revoked": (errors.Dismissed, "to come back, run `mindgw agent leave`, then join with a new token"),
    "locked": (errors.Dismissed, "on the server: `mindgw workers remove NAME`; then join here with a new token"),
    "replaced": (errors.Occupied, "a copy of this state directory serves elsewhere; every machine must join by itself"),
}


class Ended(msgspec.Struct, frozen=True):
    """How one try ended."""

    #: Seconds for which the link carried requests.
    lived: float = 0.0
    #: The server's last word, if it said one.
    goodbye: Goodbye | None = None
    #: What went wrong, for people; empty when nothing did.
    error: str = ""


class Tunnel:
    """What outlives a single link."""

    def __init__(self, settings: Settings, key: bytes, offer: Offer[Any], outbox: Outbox, save_epoch: Callable[[int], None]) -> None:
        #: Newest epoch that is on the disk.
        self.last_epoch = settings.last_epoch
        # Who speaks to whom.
        self.agent_id = settings.agent_id
        self.server_identity = settings.server_identity
        self._key = key
        self.offer = offer
        #: What requests cost and the server does not know yet; open.
        self.outbox = outbox
        #: Writes an epoch to the disk; blocks.
        self._save_epoch = save_epoch
        #: The connection of this moment.
        self.link: Link | None = None
        #: Where it leads, or where the last try led.
        self.address: Address | None = None
        #: What last went wrong; empty once a link is up.
        self.error = ""
        #: Carries out commands of the server; None: nobody does.
        self.orders: Orders | None = None
        #: Set when the operator ends this agent.
        self.leaving = asyncio.Event()
        #: Set when something changed that a status shows.
        self.changed = asyncio.Event()

    def session(self, address: Address, now: float) -> Session:
        parties = Parties(
            agent_id=self.agent_id,
            host=address.netloc,
            server_identity=self.server_identity,
            last_epoch=self.last_epoch,
            sign=partial(identity.sign, self._key),
            verify=identity.verify,
            software=f"mindgw-agent/{__version__}",
        )
        return Session(parties, self.offer.report(now))

    async def keep_epoch(self, epoch: int) -> None:
        """On the disk when this returns: an agent that remembers less than the server is taken for a copy."""
        await asyncio.to_thread(self._save_epoch, epoch)
        self.last_epoch = epoch

    def leave(self) -> None:
        """Take no more requests and come to an end; `keep_connected` returns when what runs is done."""
        self.leaving.set()
        self.offer.draining = True
        if self.link is not None:
            self.link.leave()
        self.changed.set()

    def stand(self, drained: bool) -> None:
        """An operator of the server wants nothing new here, or does again."""
        if self.link is not None:
            self.link.standing = "draining" if drained else "active"
        self.changed.set()

    def note(self, ended: Ended) -> None:
        self.link = None
        self.error = ended.error
        self.changed.set()


def delay(tries: int, roll: float, retry_after: float | None = None) -> float:
    """Seconds to wait before the next try, after `tries` failures in a row; `roll` is random in [0, 1).

    Without a word of the server it is anything up to 1, 2, 4 … 20 s. A server that said when to come back is taken at its word,
    and those it sent away together come back spread over as long again.
    """
    if retry_after is not None:
        return retry_after + roll * min(max(retry_after, FIRST_DELAY), LAST_DELAY)
    return float(roll * min(LAST_DELAY, FIRST_DELAY * 2 ** min(tries, 16)))


async def keep_connected(
    tunnel: Tunnel, addresses: list[Address], context: ssl.SSLContext | None, roll: Callable[[], float] = random.random
) -> None:
    """Connect, and connect again, until `tunnel.leave` was called and what ran then is done.

    Raises `Dismissed` when the server revoked or locked this agent, `Occupied` when another process took its place.
    """
    turn = failures = 0
    while not tunnel.leaving.is_set():
        ended = await connect_once(tunnel, addresses[turn % len(addresses)], context)
        tunnel.note(ended)
        if tunnel.leaving.is_set():
            return
        _stop_if_final(ended.goodbye)
        if ended.lived >= LIVED:
            failures = 0
        else:
            failures += 1
            turn += 1
        pause = delay(failures, roll(), ended.goodbye.retry_after if ended.goodbye else None)
        log.warning("%s; next try in %.1f s", ended.error or "the connection ended", pause)
        await _happens(tunnel.leaving.wait(), within=pause)


async def connect_once(tunnel: Tunnel, address: Address, context: ssl.SSLContext | None) -> Ended:
    """One connection from its first byte to its last. Never raises for what a network or a server does."""
    tunnel.address = address
    if address.secure and context is None:  # the system's authorities are nobody's word for this server
        return Ended(error=f"this agent has no pinned CA for {address.root}: it joined without TLS")
    try:
        socket = await dial(
            address,
            context if address.secure else None,
            wire.SUBPROTOCOL,
            f"mindgw-agent/{__version__}",
            most=wire.MAX_MESSAGE,
            timeouts=(OPEN_TIMEOUT, CLOSE_TIMEOUT),
        )
    except ssl.SSLCertVerificationError as error:
        issuer = await asyncio.to_thread(issuer_at, address)
        return Ended(error=_who_else(address, error, issuer))
    except (OSError, WebSocketException) as error:
        return Ended(error=_why_not(address, error))
    except errors.Misuse as error:  # a proxy that cannot be used
        return Ended(error=error.message)
    try:
        return await _speak(tunnel, address, socket)
    finally:
        socket.close()
        await asyncio.shield(socket.lost)


async def _speak(tunnel: Tunnel, address: Address, socket: WebSocket) -> Ended:
    """What happens on a connection, from its upgrade to its end."""
    if socket.subprotocol != wire.SUBPROTOCOL:
        return Ended(error=f"{address.root} does not speak {wire.SUBPROTOCOL}")
    loop = asyncio.get_running_loop()
    session = tunnel.session(address, loop.time())
    link = tunnel.link = Link(socket, session, tunnel.offer, tunnel.outbox, tunnel.keep_epoch, tunnel.changed.set)
    link.orders = tunnel.orders
    if tunnel.leaving.is_set():
        return Ended()
    try:
        await link.run()
    except errors.BadState as error:  # a disk that is full now need not be full for ever
        return Ended(error=error.message)
    lived = 0.0 if link.ready_at is None else loop.time() - link.ready_at
    return Ended(lived, link.goodbye, _last_words(link))


def _stop_if_final(goodbye: Goodbye | None) -> None:
    """The word of a server is its own: its pin was checked, or it is on this machine."""
    if goodbye is None or goodbye.code not in _FINAL:
        return
    kind, hint = _FINAL[goodbye.code]
    raise kind(goodbye.message or f"the server said: {goodbye.code}", hint=hint, code=goodbye.code)


def _last_words(link: Link) -> str:
    if link.goodbye is not None:
        return f"the server said {link.goodbye.code}: {link.goodbye.message}"
    return link.error


def _who_else(address: Address, error: ssl.SSLCertVerificationError, issuer: str) -> str:
    seen = f" (issued by {issuer})" if issuer else ""
    what = f"{address.netloc} is not the server that this agent joined: its certificate{seen} is refused: {error.verify_message}"
    return f"{what}; a proxy that opens TLS looks like this. Nothing secret was sent"


def _why_not(address: Address, error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        return f"{address.root} refused the connection with status {error.response.status_code}"
    if isinstance(error, TimeoutError):
        return f"{address.root} did not answer within {OPEN_TIMEOUT:.0f} s"
    return f"cannot reach {address.root}: {(error.strerror if isinstance(error, OSError) else None) or error}"


async def _happens(event: Awaitable[object], *, within: float) -> bool:
    """Whether it happened in that many seconds."""
    try:
        async with asyncio.timeout(within):
            await event
    except TimeoutError:
        return False
    return True
