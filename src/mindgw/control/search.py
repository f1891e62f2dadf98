"""A search through the database that takes long, such as a check of all its rows: in a thread with a loop and connections of its own,
because requests must not wait while it hashes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.database import Database

#: Seconds of silence after which it is said that the search goes on.
PERIOD = 1.0
#: Things that may have been found and not been taken yet.
AHEAD = 1000

T = TypeVar("T")
#: Yields what it finds. It runs in the other thread: what it changes is to be read once it is over, or is a plain count.
Look = Callable[[AsyncSession], AsyncIterator[T]]


async def follow(database: Database, look: Look[T]) -> AsyncGenerator[T | None]:
    """What is found, and None whenever nothing was for PERIOD seconds. Raises what `look` raises. Closing it ends the search."""
    found: asyncio.Queue[T] = asyncio.Queue(AHEAD)
    search = Search(database, look, found)
    looking = asyncio.create_task(asyncio.to_thread(search.run))
    try:
        while not (looking.done() and found.empty()):
            one = await _next(found, looking)
            if one is not None or not looking.done():
                yield one
        await looking
    finally:
        search.stop()
        await asyncio.wait([looking])


class Search(Generic[T]):
    """A search at work."""

    def __init__(self, database: Database, look: Look[T], found: "asyncio.Queue[T]") -> None:
        self._url = database.url.render_as_string(hide_password=False)
        self._look = look
        #: Where it puts what it finds, and the loop of whoever takes it out.
        self._found = found
        self._theirs = asyncio.get_running_loop()
        #: Its own loop and task, once it is at work.
        self._at_work: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        #: Whether nobody wants to know any more.
        self._stopped = False

    def run(self) -> None:
        """Until all is looked at, or until it is stopped."""
        with suppress(asyncio.CancelledError):
            asyncio.run(self._work())

    def stop(self) -> None:
        """Ends it soon, from the other thread."""
        self._stopped = True
        if self._at_work is not None:
            loop, task = self._at_work
            with suppress(RuntimeError):  # it has ended, and its loop is closed
                loop.call_soon_threadsafe(task.cancel)

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._at_work = asyncio.get_running_loop(), task
        if self._stopped:
            return
        database = Database(self._url)
        try:
            async with database.read() as session:
                async for one in self._look(session):
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._found.put(one), self._theirs))
        finally:
            await database.close()


async def _next(found: "asyncio.Queue[T]", looking: "asyncio.Task[None]") -> T | None:
    """The next thing; None when there was none for PERIOD seconds, or when the search is over."""
    getting = asyncio.ensure_future(found.get())
    try:
        await asyncio.wait([getting, looking], timeout=PERIOD, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()
