"""How long an engine may be silent, and how long an answer may take: one timer a request, which is not moved for every piece."""

import asyncio
import math

from mindgw_agent.engines.reply import Reply
from mindgw_agent.wire import Meta


class Silent(Exception):
    """Nothing came from the engine for as long as it may take."""


class Patience:
    """The limits of one request. `begin` and `end` come in pairs around each call of the engine."""

    __slots__ = ("_due", "_first", "_heard", "_is_held", "_loop", "_meta", "_reply", "_timer", "over_at")

    def __init__(self, meta: Meta) -> None:
        self._loop = asyncio.get_running_loop()
        self._meta = meta
        #: The moment on the loop's clock at which the answer must be whole.
        self.over_at = self._loop.time() + meta.timeout
        #: The moment by which the answer must say something.
        self._first = math.inf
        #: The moment of the last word; None before the first.
        self._heard: float | None = None
        #: It is not the engine that is waited for.
        self._is_held = False
        #: Who is told when patience ends.
        self._reply: Reply | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: When the timer is due.
        self._due = math.inf

    def begin(self, reply: Reply, first: float) -> None:
        """`first`: seconds until the answer must say something, infinite for one that is silent until it is whole."""
        self._reply = reply
        self._first = self._loop.time() + first
        self._heard = None
        self._is_held = False
        self._arm(self._first)

    def end(self) -> None:
        self._reply = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard(self) -> None:
        """The engine said something: from now on it may not be silent for longer than its idle limit."""
        first = self._heard is None
        self._heard = self._loop.time()
        if first:
            self._arm(self._heard + self._meta.idle)

    def hold(self) -> None:
        """The engine is not being read."""
        self._is_held = True

    def go_on(self) -> None:
        """It is again."""
        self._is_held = False
        if self._heard is not None:
            self.heard()
            self._arm(self._heard + self._meta.idle)

    def _arm(self, limit: float) -> None:
        due = min(limit, self.over_at)
        if self._timer is not None:
            if self._due <= due:
                return  # it looks again then
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._reply is None:
            return
        now = self._loop.time()
        limit = self._first if self._heard is None else math.inf if self._is_held else self._heard + self._meta.idle
        if now >= self.over_at:
            self._reply.fail(TimeoutError())
        elif now >= limit:
            waited = f"within {self._meta.first_token:g} s" if self._heard is None else f"for {self._meta.idle:g} s"
            self._reply.fail(Silent(f"nothing came from the engine {waited}"))
        else:
            self._arm(limit)
