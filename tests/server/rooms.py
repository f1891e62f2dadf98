"""An application around a door: rooms beside it, for what is asked of uvicorn itself."""

from typing import Any


class Rooms:
    """`/echo` reads a body to its end, `/flood` sends more than anybody reads at once, `/deaf` answers before it reads; a WebSocket is
    never answered in `/silence`, and heard to its end in `/parlour`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket" and scope["path"] in ("/silence", "/parlour"):
            await _hear(scope["path"] == "/parlour", receive, send)
        elif scope["path"] == "/echo":
            size = await _read(receive)
            if size is not None:
                await _say(send, b"%d" % size)
        elif scope["path"] == "/flood":
            await _flood(send)
        elif scope["path"] == "/deaf":
            await _say(send, b"deaf")
        else:
            await self._inner(scope, receive, send)


async def _hear(accepts: bool, receive: Any, send: Any) -> None:
    await receive()
    if accepts:
        await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def _read(receive: Any) -> int | None:
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            return size
    return None


async def _say(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _flood(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for _ in range(4096):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
