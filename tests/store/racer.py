"""One of two processes that race for the same limit: 64 at once ask for one token each, again and again, until there is none left.

    python -m tests.store.racer DATABASE SEED

Says "ready", begins when it is told a line, and ends with the number of those that got one. On SQLite they are threads, each with a
connection of its own; on Postgres tasks that share the pool of a process.
"""

import asyncio
import contextlib
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from mindgw.core.quota import Budget
from mindgw.errors import Draining
from mindgw.store.database import Database
from tests.store.books import Books, entry

RACERS = 64
BUDGET = Budget("key:k", "tokens", "2026-11")


class Racer:
    """A process's half of the race."""

    def __init__(self, url, seed):
        self.url = url
        self.random = random.Random(seed)
        self.books = Books(Database(url), instance=f"racer {seed}")
        #: What was used and is not in the ledger yet; of one chain there is one writer at a time.
        self.used = []
        self.writing = threading.Lock()

    async def race(self, database):
        """How many one racer gets, one after the other. What it gets it uses up."""
        books, got = Books(database), 0
        books.writer = self.books.writer
        while True:
            await asyncio.sleep(self.random.random() / 100)
            (lent,) = await patiently(lambda: books.borrow(BUDGET, least=1, want=1))
            if not lent.amount:
                return got
            got += lent.amount
            self.used.append(entry(f"{books.epoch}-{id(books)}-{got}", draws=[(BUDGET, 1)], prompt_tokens=1, completion_tokens=0, cost=0))
            if self.writing.acquire(blocking=False):
                try:
                    await self.write(books)
                finally:
                    self.writing.release()

    async def write(self, books):
        batch = self.used[:]
        await patiently(lambda: books.commit(*batch))
        del self.used[: len(batch)]

    def in_a_thread(self):
        async def alone():
            database = Database(self.url)
            try:
                return await self.race(database)
            finally:
                await database.close()

        return asyncio.run(alone())

    async def all_of_them(self):
        if not self.books.database.file:
            return sum(await asyncio.gather(*(self.race(self.books.database) for _ in range(RACERS))))
        with ThreadPoolExecutor(RACERS) as threads:
            loop = asyncio.get_running_loop()
            return sum(await asyncio.gather(*(loop.run_in_executor(threads, self.in_a_thread) for _ in range(RACERS))))


async def patiently(work):
    """Who waits for his turn too long is told so; on a busy machine that may happen to the last of 128."""
    while True:
        with contextlib.suppress(Draining):
            return await work()


async def main(url, seed):
    racer = Racer(url, seed)
    await racer.books.begin()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    got = await racer.all_of_them()
    await racer.write(racer.books)
    await racer.books.database.close()
    print(got)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
