"""A mock OpenAI engine, a program of its own: no framework, so that on a small machine most of the CPU is left to what is measured.

`python -m bench.engine` prints its root URL on its own line and serves until SIGTERM.
"""

import asyncio
from functools import cache
from typing import cast

import httptools
import msgspec

from bench import answers, program
from bench.answers import Asked

#: uvloop's clock ticks in milliseconds: what is due within half a tick is due.
_HALF_TICK = 0.0005
_asked = msgspec.json.Decoder(Asked)


def _whole(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _part(data: bytes) -> bytes:
    """One part of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_UNARY = _whole("200 OK", answers.UNARY)
_MODELS = _whole("200 OK", answers.MODELS)
_ABSENT = _whole("404 Not Found", b'{"error":{"message":"not here"}}')
_REFUSED = _whole("400 Bad Request", b'{"error":{"message":"cannot read that"}}')
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_PARTS = [_part(answers.event(index)) for index in range(answers.MOST_CHUNKS)]


@cache
def _ending(chunks: int, with_usage: bool) -> bytes:
    return _part(answers.ending(chunks, with_usage=with_usage)) + b"0\r\n\r\n"


class _Stream:
    """One running answer: a word when its time has come. `stop` must be called when nobody reads it any more."""

    __slots__ = ("_chunks", "_ending", "_loop", "_next", "_pace", "_paused", "_start", "_timer", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, asked: Asked) -> None:
        options = asked.stream_options
        self._loop = loop
        self._transport = transport
        self._chunks = asked.max_tokens
        self._ending = _ending(asked.max_tokens, options is not None and options.include_usage)
        #: Seconds from word to word.
        self._pace = asked.bench_pace_ms / 1000
        #: Number of the next word, due at `_start + _next * _pace`: lateness is made up for.
        self._next = 0
        self._start = loop.time()
        #: True while the reader is behind.
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        transport.write(_STREAM)
        self._advance()

    def _advance(self) -> None:
        """Writes all that is due, then waits for the next."""
        self._timer = None
        now = self._loop.time()
        while self._next < self._chunks and not self._paused:
            due = self._start + self._next * self._pace
            if due > now + _HALF_TICK:
                self._timer = self._loop.call_at(due, self._advance)
                return
            self._transport.write(_PARTS[self._next])
            self._next += 1
        if self._next == self._chunks:
            self._next += 1
            self._transport.write(self._ending)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._timer is None:
            self._advance()

    def stop(self) -> None:
        self._chunks = -1
        if self._timer is not None:
            self._timer.cancel()


class _Connection(asyncio.Protocol):
    """A keep-alive connection; callers send a request when they have the answer to the one before."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        #: Of the request that is being read.
        self._path = b""
        self._body = b""
        #: The newest stream, over or not.
        self._stream: _Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.stop()

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.pause()

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.resume()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    # -- what the parser calls -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._path == b"/v1/chat/completions":
            self._chat()
        else:
            self._transport.write(_MODELS if self._path == b"/v1/models" else _ABSENT)

    def _chat(self) -> None:
        try:
            asked = _asked.decode(self._body)
        except msgspec.MsgspecError:
            self._transport.write(_REFUSED)
            return
        if not asked.stream:
            self._transport.write(_UNARY)
        elif 0 < asked.max_tokens <= answers.MOST_CHUNKS and asked.bench_pace_ms >= 0:
            self._stream = _Stream(self._loop, self._transport, asked)
        else:
            self._transport.write(_REFUSED)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=2048)
    await program.until_terminated(server.sockets[0])
    server.close()


if __name__ == "__main__":
    program.run(_serve())
