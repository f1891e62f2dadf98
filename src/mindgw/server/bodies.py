"""Reading a request body from an ASGI server: never more than the limit, nothing at all when its length is over it.

The pace that a body must keep is the connection's affair (`protocol.Guarded`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from mindgw import errors
from mindgw.clock import monotonic

Receive = Callable[[], Awaitable[dict[str, Any]]]
Headers = list[tuple[bytes, bytes]]

#: Bytes that are left for the server to skip when nobody read them, so that the connection can be kept.
SKIPPED = 64 * 1024
#: Seconds for which the rest of a body is taken in after its request was refused; and without a byte of it.
LINGER = 30.0
SILENCE = 5.0


class Hungup(Exception):
    """The client left before its request was complete."""


class Answered(Exception):
    """Nobody will read what is still to come."""


async def read_body(receive: Receive, headers: Headers, limit: int, answers: Sequence[object] = ()) -> bytes:
    """The whole body; raises BodyTooLarge over `limit` bytes, Hungup when the client leaves, Answered once there are `answers` while more
    of it is to come."""
    if _length(headers) > limit:
        raise too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body") and len(message.get("body", b"")) <= limit:
        return bytes(message.get("body", b""))
    parts = bytearray()
    while message["type"] != "http.disconnect":
        parts += message.get("body", b"")
        if len(parts) > limit:
            raise too_large(limit)
        if not message.get("more_body"):
            return bytes(parts)
        if answers:
            raise Answered
        message = await receive()
    raise Hungup


def unread(headers: Headers) -> bool:
    """True when a body may follow that is too large to be skipped: its request is refused on a connection that closes."""
    return _length(headers) > SKIPPED or any(name in (b"transfer-encoding", b"expect") for name, _ in headers)


async def linger(receive: Receive, headers: Headers) -> None:
    """Takes in what the client still sends and drops it: closed on earlier, it would see a reset and not the answer before it.

    To be called when the whole answer was sent but its end. One who asked before sending (`Expect`) has its answer and sends nothing.
    """
    if any(name == b"expect" for name, _ in headers):
        return
    end = monotonic() + LINGER
    with suppress(TimeoutError):
        while monotonic() < end:
            message = await asyncio.wait_for(receive(), SILENCE)
            if not message.get("more_body"):
                return


def declared(value: bytes) -> int:
    """What a Content-Length says; 0 for nonsense, and for b""."""
    return int(value[:20]) if value.isdigit() else 0


def _length(headers: Headers) -> int:
    return declared(next((value for name, value in headers if name == b"content-length"), b""))


def too_large(limit: int) -> errors.BodyTooLarge:
    """The refusal of a larger body."""
    return errors.BodyTooLarge(f"The request body is larger than {limit} bytes.")
