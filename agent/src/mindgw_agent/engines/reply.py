"""A request to an engine and the answer on its way, as whoever asked sees it.

Whoever asks waits in one place, for the head, for the whole body, or for the end of a stream; the pieces of a stream are handed over
in the callback that read them, so that no task is woken for each.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

#: What whoever takes pieces wants next: more as it comes, a pause, or nothing more.
READ_ON: Final = 0
HOLD: Final = 1
STOP: Final = 2

Take = Callable[[bytes], int]


class NoConnection(Exception):
    """Nothing was sent."""


class Lost(Exception):
    """The connection ended before the answer did."""


class Garbled(Exception):
    """What came is no HTTP that could be followed."""


class Line(Protocol):
    """The connection that carries a request."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def let_go(self, linger: bool) -> None:
        """Nobody wants the rest of the answer. With `linger` the engine has said its last word: what is left is its end."""


class Reply:
    """One request and its answer. Whoever asks calls `end` in any case; that is what stops an engine in the middle of an answer."""

    __slots__ = (
        *("_error", "_loop", "_parts", "_size", "_take", "_verdict", "_waiter", "_want"),
        *("body", "content_type", "dialling", "head", "is_over", "is_paused", "line", "patience", "sent", "server", "status", "whole"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, head: bytes, body: bytes, patience: float) -> None:
        self._loop = loop
        #: The request, as it goes on the wire.
        self.head = head
        self.body = body
        #: Seconds to connect.
        self.patience = patience
        #: The attempt to connect, while it goes on.
        self.dialling: asyncio.Task[None] | None = None
        #: Carries it, from the first byte sent to the last one received.
        self.line: Line | None = None
        #: Nobody wants it any more.
        self.is_over = False
        #: Anything may have reached the engine.
        self.sent = False
        #: The head of the answer, 0 before it came; headers as the engine wrote them, "" without.
        self.status = 0
        self.content_type = ""
        self.server = ""
        #: The answer came to its end.
        self.whole = False
        #: Body that nobody has taken, and its size.
        self._parts: list[bytes] = []
        self._size = 0
        #: Whoever asked wakes up once there is more of it than that.
        self._want = -1
        #: Takes pieces as they come; None while nobody does.
        self._take: Take | None = None
        #: Its last word.
        self._verdict = READ_ON
        #: The line was asked to read no more.
        self.is_paused = False
        #: Why there is no whole answer.
        self._error: BaseException | None = None
        #: What whoever asked waits for.
        self._waiter: asyncio.Future[None] | None = None

    # -- whoever asked ---------------------------------------------------------------------------------------------

    async def begun(self) -> None:
        """Returns when the head is here. Raises NoConnection, Lost, Garbled, or what `fail` was given."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self, limit: int) -> bytes:
        """The whole body, or `limit` bytes and one when it is longer. Raises Lost, Garbled, or what `fail` was given."""
        self._want = limit
        while not self.whole and self._size <= limit:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._taken()[: limit + 1]

    async def each(self, take: Take) -> bool:
        """Hands the body over, all that one read brought at once, until `take` says STOP or there is no more of it.

        True after a HOLD: nothing is read until this is called again. A connection that breaks is an end too. Raises what `fail` was
        given, and what `take` raises.
        """
        verdict = take(self._taken()) if self._parts else READ_ON
        while verdict == READ_ON and not self.whole and self._error is None:
            self._take, self._verdict = take, READ_ON
            self._resume()
            try:
                await self._wait()
            finally:
                self._take = None
            verdict = self._verdict
        if verdict == HOLD:
            self._pause()
            return True
        if verdict == READ_ON and self._error is not None and not isinstance(self._error, (Lost, Garbled)):
            raise self._error
        return False

    def fail(self, error: BaseException) -> None:
        """End the waiting with an exception; of several the first counts."""
        if self._error is None:
            self._error = error
            self._wake()

    def end(self, *, linger: bool = False) -> None:
        """Whoever asked wants nothing more: a connection that still carries the answer is closed. `linger`: see Line."""
        self.is_over = True
        self._error = None  # it holds the frames that raised it, and they hold this
        if self.dialling is not None:
            self.dialling.cancel()
        if self.line is not None:
            self.line.let_go(linger)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _taken(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._size = 0
        return data

    def _pause(self) -> None:
        if self.line is not None and not self.is_paused:
            self.is_paused = True
            self.line.pause()

    def _resume(self) -> None:
        if self.line is not None and self.is_paused:
            self.is_paused = False
            self.line.resume()

    # -- the line --------------------------------------------------------------------------------------------------

    def began(self, status: int, content_type: str, server: str) -> None:
        """The head of the answer; `came` follows."""
        self.status = status
        self.content_type = content_type
        self.server = server

    def came(self, data: bytes, whole: bool) -> None:
        """What one read brought; `whole` when it was the last."""
        take = self._take
        if data and take is not None:
            self._hand(take, data)
        elif data:
            self._parts.append(data)
            self._size += len(data)
        self.whole = whole
        if whole or self._verdict != READ_ON or (take is None and self._size > self._want):
            self._wake()

    def _hand(self, take: Take, data: bytes) -> None:
        try:
            self._verdict = take(data)
        except Exception as error:
            self.fail(error)
            raise
        if self._verdict != READ_ON:
            self._take = None
            self._pause()
