"""The server's feed of events: a picture of queue and workers, then what changes, over a WebSocket that is found again when it is lost.

Importing it is slow (`ssl`, `websockets`), so faces import it when they watch.
"""

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Response
from websockets.sync.client import ClientConnection, connect

from mindgw import __version__
from mindgw.client import api
from mindgw.client.errors import ClientError, NotAllowed, NotLoggedIn, NotMindGW, Unreachable
from mindgw.client.transport import MAX_ANSWER, Server, asked, connection_to, refusal, unreachable

Item = dict[str, Any]
Items = dict[str, Item]

#: Seconds without a message after which the caller has its turn, to show that time goes by.
TICK = 1.0
#: Seconds before another attempt: the first, and the longest.
SOON, LATER = 0.5, 10.0
#: Seconds for a polite end.
CLOSING = 1.0

#: How a server ends a feed of a key that is no longer good, and of one that is no longer an admin's.
_NO_KEY, _NO_ADMIN = 4401, 4403


class Gap(Exception):
    """Messages are missing."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of the server after a message."""

    seq: int
    #: RFC 3339: when it was so, by the server's clock.
    at: str
    #: By id.
    queue: Items = field(default_factory=dict)
    workers: Items = field(default_factory=dict)
    budgets: Items = field(default_factory=dict)
    stats: Item = field(default_factory=dict)


def told(picture: Picture | None, message: Item) -> Picture:
    """The picture after a message. Raises TypeError for one that is none, Gap for one that does not follow on the picture's."""
    seq, at = message.get("seq"), message.get("at")
    if not isinstance(seq, int) or not isinstance(at, str):
        raise TypeError("a message has a number and a time")
    if message.get("type") == "snapshot":
        known = {"budgets": [], **message}  # servers of an older release say nothing of budgets
        sections = {name: merged({}, {"set": known.get(name)}) for name in ("queue", "workers", "budgets")}
        return Picture(seq, at, **sections, stats=_mapping(message.get("stats")))
    if picture is None or seq != picture.seq + 1:
        raise Gap
    return replace(
        picture,
        seq=seq,
        at=at,
        queue=merged(picture.queue, _mapping(message.get("queue", {}))),
        workers=merged(picture.workers, _mapping(message.get("workers", {}))),
        budgets=merged(picture.budgets, _mapping(message.get("budgets", {}))),
        stats={**picture.stats, **_mapping(message.get("stats", {}))},
    )


def merged(items: Mapping[str, Item], changes: Mapping[str, Any]) -> Items:
    """The items after `{"set": [...], "removed": [...]}`, removals first. Raises TypeError for anything else."""
    different, removed = changes.get("set", []), changes.get("removed", [])
    if not isinstance(different, list) or not isinstance(removed, list):
        raise TypeError("changes are lists")
    found = {id: item for id, item in items.items() if id not in removed}
    for said in different:
        id = _mapping(said).get("id")
        if not isinstance(id, str):
            raise TypeError("an item has an id")
        found[id] = {**found.get(id, {}), **said}
    return found


def _mapping(value: Any) -> Item:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def follow(
    server: Server, lost: Callable[[str], None], wait: Callable[[float], object] | None = None
) -> Generator[tuple[Item, Picture] | None]:
    """Each message with the picture after it, and None after each second without one. A connection that is lost is made again, with `wait`
    (seconds) before each attempt, and the picture begins anew; `lost` hears why, once for each time. Never ends by itself; close it.

    Raises ClientError: when the first attempt fails, when the key is refused, when who answers is no MindGateway.
    """
    wait = wait or threading.Event().wait
    delay, silent, first = SOON, False, True
    while True:
        try:
            with _left_politely(_dialled(server)) as socket:
                delay, silent, first = SOON, False, False
                why = yield from _heard(server, socket)
        except Unreachable as problem:
            if first or isinstance(problem, NotMindGW):
                raise
            why = problem.message
        if not silent:
            lost(why)
        silent = True
        wait(delay)
        delay = min(2 * delay, LATER)


@contextmanager
def _left_politely(socket: ClientConnection) -> Iterator[ClientConnection]:
    """Closes it in the end, and waits for that no longer than a peer may take. A Ctrl-C may come at any moment, also while `websockets`
    holds a lock of its own; closing it would then wait without end for the thread that reads."""
    try:
        yield socket
    finally:
        closing = threading.Thread(target=socket.close, name="feed-close", daemon=True)
        closing.start()
        closing.join(CLOSING)


def _heard(server: Server, socket: ClientConnection) -> Generator[tuple[Item, Picture] | None, None, str]:
    """Until the connection is lost; returns why."""
    picture: Picture | None = None
    while True:
        try:
            text = socket.recv(timeout=TICK)
        except TimeoutError:
            yield None
            continue
        except ConnectionClosed as closed:
            return _parted(server, closed)
        try:
            message = _mapping(json.loads(text))
            picture = told(picture, message)
        except Gap:
            return f"{server.url} left something out"
        except (ValueError, TypeError, RecursionError) as problem:
            raise NotMindGW(server.url, f"its feed is not one ({problem})") from problem
        yield message, picture


def _parted(server: Server, closed: ConnectionClosed) -> str:
    """Why the connection is lost, for people. Raises when there is no use in another attempt."""
    code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (0, "")
    if code == _NO_KEY:
        raise NotLoggedIn("the key is no longer good", code=reason, hint="set MINDGW_TOKEN to another admin key")
    if code == _NO_ADMIN:
        raise NotAllowed("the key is no longer an admin's", code=reason)
    return f"{server.url} went away{f' ({code})' if code else ''}"


def _dialled(server: Server) -> ClientConnection:
    """A WebSocket over a connection like those of all other calls. Raises ClientError."""
    request = api.events()
    server.note(asked(server, request))
    plain = connection_to(server)
    parts = urlsplit(server.url)
    try:
        plain.connect()
        plain.sock.settimeout(None)
        return connect(
            f"ws://{parts.netloc}{request.path}",  # TLS, where there is any, is below it already
            sock=plain.sock,
            additional_headers={"authorization": f"Bearer {server.token}"},
            user_agent_header=f"mindgw/{__version__}",
            compression=None,
            open_timeout=server.timeout,
            close_timeout=CLOSING,
            max_size=MAX_ANSWER,
        ).__enter__()
    except (OSError, HTTPException, WebSocketException, ValueError, EOFError) as problem:
        plain.close()
        raise _failed(server, problem) from problem


def _failed(server: Server, problem: Exception) -> ClientError:
    """What a handshake that failed means."""
    refused = problem if isinstance(problem, InvalidStatus) else problem.__context__  # a redirect, which is not followed
    if isinstance(refused, InvalidStatus):
        return refusal(server, api.events(), _Refused(refused.response))
    if isinstance(problem, OSError | HTTPException):
        return unreachable(server, problem)
    return NotMindGW(server.url, f"it speaks no WebSocket ({type(problem).__name__})")


class _Refused:
    """An answer in place of the upgrade, as the other transport knows answers."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status_code
        self.reason = response.reason_phrase

    def getheader(self, name: str) -> str | None:
        with suppress(LookupError):  # there may be several of them, too
            return self._response.headers[name]
        return None

    def read(self, amount: int) -> bytes:
        return bytes(self._response.body or b"")[:amount]
