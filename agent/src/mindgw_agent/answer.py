"""The way of one answer to the server, and what it cost into the outbox."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from mindgw_agent import clock, events
from mindgw_agent.outbox import Outbox
from mindgw_agent.session import Session
from mindgw_agent.wire import Close, Meta, Receipt, Usage


class Line(Protocol):
    """What carries answers, all of them together."""

    @property
    def is_jammed(self) -> bool:
        """Whatever the streams may still send, nothing leaves now: no engine should be read on."""

    def say(self) -> None:
        """Something is to leave."""

    def say_soon(self) -> None:
        """Something is to leave that may wait for others."""


class Answer:
    """The way of one answer to the server; see `exchange.Outlet`."""

    __slots__ = ("_heard", "_line", "_outbox", "_room", "_session", "closed", "meta", "stream", "task")

    def __init__(self, session: Session, outbox: Outbox, line: Line, heard: Callable[[Close], None], request: events.Request) -> None:
        self._session = session
        #: Takes what the request cost.
        self._outbox = outbox
        self._line = line
        #: Told how the request ended.
        self._heard = heard
        self.stream = request.stream
        self.meta: Meta = request.meta
        #: Done when the server has taken enough for the engine to be read on; None while nobody waits for that.
        self._room: asyncio.Future[None] | None = None
        #: The request has been closed.
        self.closed = False
        #: Drives the engine; set when it has begun.
        self.task: asyncio.Task[None] | None = None

    def head(self, status: int, content_type: str, data: bytes) -> None:
        self._session.head(self.stream, status, content_type, data)
        self._line.say()

    def data(self, data: bytes) -> None:
        self._session.data(self.stream, data)
        self._line.say_soon()

    def bill(self, close: Close) -> None:
        """Keeps the receipt, whether the link still stands or not; a server that gave no tag wants none."""
        if close.outcome == "busy" or not self.meta.tag or self.closed:
            return
        usage = close.usage or Usage(source="counted")
        self._outbox.append(
            Receipt(
                tag=self.meta.tag,
                outcome=close.outcome,
                prompt=usage.prompt,
                completion=usage.completion,
                cached=usage.cached,
                source=usage.source,
                events=close.events,
                bytes=close.bytes,
                at=clock.unix_ms(),
            )
        )

    def close(self, close: Close) -> None:
        """Ends the request; only the first call counts."""
        if self.closed:
            return
        self.closed = True
        self._heard(close)
        self._session.close(self.stream, close if close.tag else msgspec.structs.replace(close, tag=self.meta.tag))
        self._line.say()

    @property
    def is_full(self) -> bool:
        return self._line.is_jammed or not self._session.writable(self.stream)

    async def writable(self) -> None:
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def resume(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
