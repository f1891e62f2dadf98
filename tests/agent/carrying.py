"""What the tests of engines and exchanges share: an outlet that keeps what it is given, and requests in one line."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from mindgw_agent import sse, wire
from mindgw_agent.engines import Engine, Place, recognise
from mindgw_agent.engines.client import open_session
from mindgw_agent.exchange import carry
from mindgw_agent.wire import Close

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello there"}]
#: Seconds that a step of a test may take on a loaded machine.
PATIENCE = 20.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Kept:
    """An outlet that keeps everything. `gate` cleared makes it full."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self.pieces: list[bytes] = []
        self.closed: Close | None = None
        #: What was written down before the end.
        self.billed: Close | None = None
        self.news = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def head(self, status: int, content_type: str, data: bytes) -> None:
        assert not self.status, "a second head"
        self.status, self.content_type = status, content_type
        self.data(data)

    def data(self, data: bytes) -> None:
        assert self.status, "data before the head"
        assert self.closed is None, "data after the close"
        self.pieces.append(data)
        self.news.set()

    def bill(self, close: Close) -> None:
        assert self.closed is None, "a receipt after the close"
        assert self.billed is None, "a second receipt"
        self.billed = close

    def close(self, close: Close) -> None:
        assert self.closed is None, "a second close"
        self.closed = close
        self.news.set()

    @property
    def is_full(self) -> bool:
        return not self.gate.is_set()

    async def writable(self) -> None:
        await self.gate.wait()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[Any]:
        """The JSON of every event but the end mark."""
        return [json.loads(data) for data in sse.events(self.body) if data != sse.DONE]

    @property
    def end(self) -> Any:
        """How it was closed; untyped, for tests know which of its optional parts are there."""
        assert self.closed is not None, "not closed"
        return self.closed

    async def until(self, done: Callable[["Kept"], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not done(self):
                self.news.clear()
                await self.news.wait()


class Ask:
    """A request as it came through a tunnel."""

    def __init__(self, path: str, body: dict[str, Any] | bytes, **meta: Any) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = body if isinstance(body, dict) else {}
        given = {"model": fields.get("model", "m"), "stream": bool(fields.get("stream")), "tag": b"tag", "request_id": "req-1"}
        self.meta = wire.Meta(path=path, length=len(self.body), **(given | meta))


async def ask(engine: Engine, path: str, body: dict[str, Any] | bytes, **meta: Any) -> Kept:
    """Carry one request to its end."""
    out = Kept()
    async with asyncio.timeout(PATIENCE):
        await carry(engine, Ask(path, body, **meta), out)
    assert out.end.tag == b"tag"
    assert engine.running == engine.answering == 0
    return out


@asynccontextmanager
async def in_front_of(url: str, **place: Any) -> AsyncIterator[Engine]:
    """The engine at a URL, recognised and probed."""
    async with open_session() as session:
        engine = await recognise(session, Place(url, **place))
        await engine.probe()
        yield engine


@asynccontextmanager
async def fake_engine(routes: dict[str, Handler], *, server: str = "fake") -> AsyncIterator[str]:
    """A FAKE engine on loopback that answers these `METHOD /path` routes and 404 elsewhere; gives its URL."""

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = server

    app = web.Application(client_max_size=2**26)
    app.on_response_prepare.append(sign)
    for route, handler in routes.items():
        method, path = route.split(" ")
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def says(document: Any, status: int = 200) -> Handler:
    """A handler that always gives this JSON."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(document, status=status)

    return handler


def streams(*parts: bytes, content_type: str = "text/event-stream") -> Handler:
    """A handler that sends these bytes, each part on its own, and ends."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0)
        return response

    return handler


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream."""
    delta = {} if text is None else {"content": text}
    return event({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}})
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}
