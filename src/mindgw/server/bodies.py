"""Reading a request body from an ASGI server: never more than the limit, nothing at all when its length is over it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from mindgw import errors
from mindgw.clock import monotonic

Receive = Callable[[], Awaitable[dict[str, Any]]]
Headers = list[tuple[bytes, bytes]]

#: Seconds for a body, and bytes that buy one more: whoever sends slower than that is cut off.
PATIENCE = 60.0
SLOWEST = 1024
#: Bytes that are left for the server to skip when nobody read them, so that the connection can be kept.
SKIPPED = 64 * 1024
#: Seconds for which the rest of a body is taken in after its request was refused; and without a byte of it.
LINGER = 30.0
SILENCE = 5.0


class Hungup(Exception):
    """The client left before its request was complete."""


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole body; raises BodyTooLarge over `limit` bytes, RequestTimeout when it drips, Hungup when the client leaves."""
    if _declared(headers) > limit:
        raise _too_large(limit)
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(started + PATIENCE) as patience:
            return await _collect(receive, limit, lambda size: patience.reschedule(started + PATIENCE + size / SLOWEST))
    except TimeoutError:
        raise errors.RequestTimeout from None


async def _collect(receive: Receive, limit: int, grown: Callable[[int], None]) -> bytes:
    """The parts together; tells `grown` how many bytes there are so far."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Hungup
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
        grown(size)


def unread(headers: Headers) -> bool:
    """True when a body may follow that is too large to be skipped: its request is refused on a connection that closes."""
    return _declared(headers) > SKIPPED or any(name in (b"transfer-encoding", b"expect") for name, _ in headers)


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


def _declared(headers: Headers) -> int:
    value = next((value for name, value in headers if name == b"content-length"), b"")
    return int(value[:20]) if value.isdigit() else 0


def _too_large(limit: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"The request body is larger than {limit} bytes.")
