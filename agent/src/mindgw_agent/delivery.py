"""Brings receipts to the server, over one link: first what waited, then what comes.

They leave in batches, a few of them ahead of the server's word. What it does not acknowledge is sent again after a while, and on the
next link; it knows them by their numbers.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from mindgw_agent.outbox import Outbox, nothing
from mindgw_agent.wire import Receipts

#: Batches that may be on their way at once.
AHEAD = 4
#: Seconds without an acknowledgement after which everything is sent again.
AGAIN = 30.0


class Delivery:
    """The outbox on one link. Make it when the link is up, `run` it until the link ends."""

    def __init__(self, outbox: Outbox, older: Iterable["asyncio.Task[Any]"], send: Callable[[Receipts], None]) -> None:
        self._outbox = outbox
        #: Says a batch, to be signed.
        self._send = send
        #: Number and hash of the newest receipt that was sent, in this chain of the outbox.
        self._sent, self._hash = outbox.acked, outbox.acked_hash
        self._chain = outbox.chain
        #: Last numbers of the batches that are on their way.
        self._flying: deque[int] = deque(maxlen=AHEAD)
        #: Requests of earlier links whose engine is not known to be free: their receipts are still to come.
        self._older = set(older)
        #: The last receipt from before this link; None while it may not have been written.
        self._before: int | None = None
        #: The server was told that it has everything from before.
        self._told = False
        #: Set when there may be something to do.
        self._due = asyncio.Event()

    async def run(self) -> None:
        """Send until cancelled. Raises ProtocolError when the server does not read."""
        self._outbox.on_news = self._due.set
        for task in self._older:
            task.add_done_callback(self._ended)
        try:
            while True:
                self._due.clear()
                self._deliver()
                await self._wait()
        finally:
            self._outbox.on_news = nothing

    def received(self, seq: int) -> None:
        """The server has kept all receipts up to this one."""
        self._outbox.acknowledged(seq)
        self._due.set()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN if self._flying else None):
                await self._due.wait()
                return
        self._start_over()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._older.discard(task)
        self._due.set()

    def _start_over(self) -> None:
        outbox = self._outbox
        if self._chain != outbox.chain and self._before is not None:
            self._before = outbox.last  # what waits has new numbers
        self._sent, self._hash, self._chain = outbox.acked, outbox.acked_hash, outbox.chain
        self._flying.clear()

    def _deliver(self) -> None:
        outbox = self._outbox
        if self._chain != outbox.chain or self._sent < outbox.acked:
            self._start_over()
        while self._flying and self._flying[0] <= outbox.acked:
            self._flying.popleft()
        while len(self._flying) < AHEAD and (batch := outbox.batch(self._sent, self._hash)) is not None:
            self._flying.append(batch.last)
            self._say(batch)
        if self._is_clear() and not self._told:
            self._say(outbox.blank(self._sent, self._hash))

    def _say(self, batch: Receipts) -> None:
        self._told = self._is_clear()
        self._send(msgspec.structs.replace(batch, clear=self._told))
        self._sent, self._hash = batch.last, batch.head

    def _is_clear(self) -> bool:
        """Whether nothing from before this link is left."""
        if self._before is None and not self._older and self._outbox.is_settled:
            self._before = self._outbox.last
        return self._before is not None and self._before <= self._outbox.acked
