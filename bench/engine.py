"""A mock OpenAI engine, a program of its own: no framework, so that on a small machine most of the CPU is left to what is measured.

`python -m bench.engine [PORT]` prints its root URL on its own line and serves until SIGTERM.
"""

import asyncio
import sys
from functools import cache
from math import ceil
from time import perf_counter_ns
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
#: What stands before and after the moment at which a word leaves.
_PARTS = [_part(answers.event(index)).split(b"%0*x" % (answers.DIGITS, 0), 1) for index in range(answers.MOST_CHUNKS)]


@cache
def _ending(chunks: int, with_usage: bool) -> bytes:
    return _part(answers.ending(chunks, with_usage=with_usage)) + b"0\r\n\r\n"


class _Wheel:
    """Calls streams when their time has come, all those of one millisecond together: a timer of the loop for each would cost as much as
    the word that it sends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: Millisecond -> streams that are due at its end; bounded: each stream stands there once.
        self._due: dict[int, list[_Stream]] = {}

    def call(self, stream: "_Stream", when: float) -> None:
        slot = ceil(when * 1000)
        if slot in self._due:
            self._due[slot].append(stream)
        else:
            self._due[slot] = [stream]
            self._loop.call_at(slot / 1000, self._ring, slot)

    def _ring(self, slot: int) -> None:
        for stream in self._due.pop(slot):
            stream.advance()


class _Stream:
    """One running answer: a word when its time has come. `stop` must be called when nobody reads it any more."""

    __slots__ = ("_chunks", "_ending", "_is_waiting", "_loop", "_next", "_pace", "_paused", "_start", "_transport", "_wheel")

    def __init__(self, wheel: _Wheel, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, asked: Asked) -> None:
        options = asked.stream_options
        self._wheel = wheel
        self._loop = loop
        self._transport = transport
        #: Words in all; -1 once nobody reads them.
        self._chunks = asked.max_tokens
        self._ending = _ending(asked.max_tokens, options is not None and options.include_usage)
        #: Seconds from word to word.
        self._pace = asked.bench_pace_ms / 1000
        #: Number of the next word, due at `_start + _next * _pace`: lateness is made up for.
        self._next = 0
        self._start = loop.time()
        #: True while the reader is behind.
        self._paused = False
        #: The wheel will call.
        self._is_waiting = False
        transport.write(_STREAM)
        self.advance()

    def advance(self) -> None:
        """Writes all that is due, then waits for the next."""
        self._is_waiting = False
        now = self._loop.time()
        while self._next < self._chunks and not self._paused:
            due = self._start + self._next * self._pace
            if due > now + _HALF_TICK:
                self._is_waiting = True
                self._wheel.call(self, due)
                return
            before, after = _PARTS[self._next]
            self._transport.write(b"%b%016x%b" % (before, perf_counter_ns(), after))
            self._next += 1
        if self._next == self._chunks:
            self._next += 1
            self._transport.write(self._ending)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if not self._is_waiting:
            self.advance()

    def stop(self) -> None:
        self._chunks = -1


class _Connection(asyncio.Protocol):
    """A keep-alive connection; callers send a request when they have the answer to the one before."""

    def __init__(self, wheel: _Wheel) -> None:
        self._wheel = wheel
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
            self._stream = _Stream(self._wheel, self._loop, self._transport, asked)
        else:
            self._transport.write(_REFUSED)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    wheel = _Wheel(loop)
    server = await loop.create_server(lambda: _Connection(wheel), "127.0.0.1", port, backlog=4096)
    await program.until_terminated(server.sockets[0])
    server.close()


if __name__ == "__main__":
    program.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
