"""The other yardstick, a program of its own: a pass-through that does the least one can do with uvicorn and a client library.

It reads the body, sends it on and copies the answer: no key is checked, nothing is parsed or counted.
`python -m bench.passthrough aiohttp|httpx ENGINE` prints its root URL on its own line and serves until SIGTERM.
"""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import httpx
import uvicorn

from bench import program

_HEADERS = {"content-type": "application/json"}


class Upstream(Protocol):
    async def carry(self, path: str, body: bytes, send: Any) -> None:
        """Sends the body on and copies the answer."""


class Aiohttp:
    def __init__(self, session: aiohttp.ClientSession, root: str) -> None:
        self._session = session
        self._root = root

    async def carry(self, path: str, body: bytes, send: Any) -> None:
        async with self._session.post(self._root + path, data=body, headers=_HEADERS) as answer:
            await send(_start(answer.status, answer.headers))
            if "content-length" in answer.headers:
                await send({"type": "http.response.body", "body": await answer.read()})
                return
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class Httpx:
    def __init__(self, client: httpx.AsyncClient, root: str) -> None:
        self._client = client
        self._root = root

    async def carry(self, path: str, body: bytes, send: Any) -> None:
        async with self._client.stream("POST", self._root + path, content=body, headers=_HEADERS) as answer:
            await send(_start(answer.status_code, answer.headers))
            if "content-length" in answer.headers:
                await send({"type": "http.response.body", "body": await answer.aread()})
                return
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _start(status: int, headers: Any) -> dict[str, Any]:
    kept = [(name.encode(), headers[name].encode()) for name in ("content-type", "content-length") if name in headers]
    return {"type": "http.response.start", "status": status, "headers": kept}


@asynccontextmanager
async def _opened(kind: str, root: str) -> AsyncIterator[Upstream]:
    """The client without a limit of connections or of time: whoever is slow here is slow, not refused."""
    if kind == "aiohttp":
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(), auto_decompress=False
        ) as session:
            yield Aiohttp(session, root)
    else:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as client:
            yield Httpx(client, root)


async def _serve(kind: str, root: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        async with _opened(kind, root) as upstream:

            async def app(scope: Any, receive: Any, send: Any) -> None:
                body, more = b"", True
                while more:
                    event = await receive()
                    body += event.get("body", b"")
                    more = event.get("more_body", False)
                await upstream.carry(scope["path"], body, send)

            program.announce(listener)
            config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", access_log=False, log_level="warning")
            await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    program.run(_serve(sys.argv[1], sys.argv[2]))
