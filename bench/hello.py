"""The yardstick, a program of its own: the smallest answer that ASGI on uvicorn can give, with the loop and parser that the server uses.

`python -m bench.hello` prints its root URL on its own line and serves until SIGTERM.
"""

import socket
from typing import Any

import uvicorn

from bench import program

_BODY = b"hello"
_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"5")]}
_REST = {"type": "http.response.body", "body": _BODY}


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send(_START)
    await send(_REST)


async def _serve() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        program.announce(listener)
        config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", access_log=False, log_level="warning")
        await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    program.run(_serve())
