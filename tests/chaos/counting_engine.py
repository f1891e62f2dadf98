"""A FAKE engine for load: it speaks vLLM's dialect, answers with numbered events, and knows what it delivered of each request.

What a request is answered with stands in its last message: `NAME COUNT PAUSE [FIRST]`, so many events, so many milliseconds between two
and so many before the first; any other fourth word only makes it longer. It has as many tokens as the gateway's ceiling says at most, so
that a hard limit can be met to the token.
Every request that was sent to it is noted, even when nobody waits for its answer any more.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

#: Tokens that stand for a message beside its own bytes.
AROUND = 16

_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
_MODELS = {"object": "list", "data": [{"id": "fake", "object": "model", "created": 5, "owned_by": "vllm", "max_model_len": 4096}]}
_PAGES = {"/v1/models": _MODELS, "/version": {"version": "0.0-fake"}, "/health": {}}


class Delivered:
    """What one request got."""

    __slots__ = ("completion", "events", "finish", "first", "is_whole", "name", "pause", "prompt")

    def __init__(self, body: dict[str, Any]) -> None:
        said = [text for message in body["messages"] for text in message.values()]
        name, count, pause, *first = body["messages"][-1]["content"].split()[:4]
        cap = body.get("max_tokens") or body.get("max_completion_tokens") or int(count)
        #: The first word of its message, which no other one has.
        self.name: str = name
        #: Tokens that the engine reports when it comes to its end.
        self.prompt = sum(len(text.encode()) for text in said) + AROUND * len(body["messages"])
        self.completion: int = min(int(count), cap)
        self.finish = "stop" if cap >= int(count) else "length"
        #: Seconds between two events.
        self.pause = float(pause) / 1000
        #: Seconds in which it reads its prompt, and says nothing.
        self.first = float(first[0]) / 1000 if first and first[0].isdecimal() else 0.0
        #: Events with text that left so far.
        self.events = 0
        #: Whether all of it left, the report too.
        self.is_whole = False

    @property
    def usage(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class CountingEngine:
    """What the tests see of it."""

    def __init__(self) -> None:
        #: The gateway's id of a request -> what it got, each time that it came here.
        self.delivered: dict[str, list[Delivered]] = {}
        #: Events that left, of all requests.
        self.sent = 0
        self.url = ""
        #: Connections that are served.
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def requests(self) -> int:
        return len(self.delivered)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which is closed after its first request."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            # who connects and says nothing, or hangs up in the middle, is nobody's loss
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = first.split(" ")[1]
        if path != "/v1/chat/completions":
            writer.write(_whole(_PAGES.get(path)))
            await writer.drain()
            return
        document = json.loads(body)
        mine = Delivered(document)
        self.delivered.setdefault(headers["x-request-id"], []).append(mine)
        async for piece in self._stream(mine) if document.get("stream") else self._in_one_piece(mine):
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(piece)
            await writer.drain()
        mine.is_whole = True

    async def _stream(self, mine: Delivered) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"
        await asyncio.sleep(mine.first)  # as fast as this engine is
        yield _event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for number in range(mine.completion):
            await asyncio.sleep(mine.pause)  # as above
            mine.events += 1
            self.sent += 1
            yield _event([{"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}])
        end = _event([{"index": 0, "delta": {}, "finish_reason": mine.finish}]) + _event([], usage=mine.usage)
        yield end + b"data: [DONE]\n\n"

    async def _in_one_piece(self, mine: Delivered) -> AsyncIterator[bytes]:
        await asyncio.sleep(mine.first + mine.pause * mine.completion)  # as above
        mine.events = mine.completion
        self.sent += mine.completion
        text = "".join(f"{number} " for number in range(mine.completion))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": mine.finish}
        yield _whole({**_CHUNK, "object": "chat.completion", "choices": [choice], "usage": mine.usage})


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    return b"data: " + json.dumps({**_CHUNK, "choices": choices, **more}).encode() + b"\n\n"


def _whole(document: object) -> bytes:
    status, body = "200 OK" if document is not None else "404 Not Found", json.dumps(document or {}).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


@contextmanager
def loop_aside() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def counting_engine(loop: asyncio.AbstractEventLoop) -> Iterator[CountingEngine]:
    """A FAKE engine on a free port, in a loop that runs elsewhere."""
    engine = CountingEngine()
    server = asyncio.run_coroutine_threadsafe(_listen(engine), loop).result(30)
    try:
        yield engine
    finally:
        asyncio.run_coroutine_threadsafe(_end(engine, server), loop).result(30)


async def _listen(engine: CountingEngine) -> asyncio.Server:
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = "http://{}:{}".format(*server.sockets[0].getsockname())
    return server


async def _end(engine: CountingEngine, server: asyncio.Server) -> None:
    server.close()
    for task in engine.tasks:
        task.cancel()
    if engine.tasks:
        await asyncio.wait(engine.tasks)
    await server.wait_closed()
