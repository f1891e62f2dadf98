"""Work beside the requests: what is done again and again, each piece by itself, so that one that fails stops no other."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import asdict

from mindgw.store import faults

log = logging.getLogger("mindgw.server")


class Chore:
    """One piece of work. It must keep what it could not do for the next time."""

    def __init__(self, name: str, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        #: What it does, for the log.
        self.name = name
        #: Seconds between two times.
        self.seconds = seconds
        self._work = work
        #: Set when nothing more is to be begun.
        self._over = asyncio.Event()
        #: Why it failed the last time; empty when it did not.
        self._trouble = ""

    async def forever(self) -> None:
        """Until it is stopped, or cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    await self._over.wait()
                return
            await self.once()

    def stop(self) -> None:
        """Ends `forever`, at once when nothing is being done and else when that is done: work that is cut off in the middle may leave a
        connection behind."""
        self._over.set()

    async def once(self) -> bool:
        """True when it went well. A trouble that lasts is logged when it begins, when it changes and when it is over."""
        try:
            await self._work()
        except Exception as wrong:  # the top of a task: the database may be away for a while, and the work is kept
            trouble = summary(wrong)
            if trouble != self._trouble:
                log.exception("%s failed; it is tried again", self.name)
            self._trouble = trouble
            return False
        if self._trouble:
            log.info("%s works again", self.name)
            self._trouble = ""
        return True


def summary(wrong: Exception) -> str:
    """What went wrong, without the values that it happened to: they differ each time."""
    cause = getattr(wrong, "orig", None) or wrong
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"


R = TypeVar("R", bound=Struct)
Append = Callable[[Sequence[R]], Awaitable[None]]


def all_but_the_bad(append: Append[R], what: str = "usage row", hidden: Collection[str] = ()) -> Append[R]:
    """`append`, which writes all rows or none, made to write every row that can be written. One that never can is set aside: the log
    has it whole, but for fields that are `hidden`. Raises what `append` raises when the rows are not at fault; they may be sent again
    then."""

    async def write(rows: Sequence[R]) -> None:
        try:
            await append(rows)
        except faults.FAULTS as wrong:
            if not faults.in_the_data(wrong):
                raise
            if len(rows) == 1:
                # as ASCII: what the database could not take, the log might not either
                shown = {name: value for name, value in asdict(rows[0]).items() if name not in hidden}
                log.critical("a %s cannot be written and is set aside: %a (%a)", what, shown, summary(wrong))
                return
            half = len(rows) // 2
            await write(rows[:half])
            await write(rows[half:])

    return write
