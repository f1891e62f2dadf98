"""Reading a request body from an ASGI server: never more than the limit, nothing at all when its length is over it."""

from collections.abc import Awaitable, Callable
from typing import Any

from mindgw import errors

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Hungup(Exception):
    """The client left before its request was complete."""


async def read_body(receive: Receive, headers: list[tuple[bytes, bytes]], limit: int) -> bytes:
    """The whole body; raises BodyTooLarge over `limit` bytes, Hungup when the client leaves."""
    declared = next((value for name, value in headers if name == b"content-length"), b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
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


def _too_large(limit: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"The request body is larger than {limit} bytes.")
