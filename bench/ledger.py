"""How fast entries are settled: batches of the size that the gateway writes, each one transaction, with limits that all of them count in.

Postgres is measured where `--postgres` names an empty database.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from mindgw.core.quota import MONTH, TOKENS, USD, Budget, Draw
from mindgw.store import epochs, ledger, quotas
from mindgw.store.database import Database
from mindgw.store.ledger import Entry
from mindgw.store.tables import Quota

#: Entries of a batch, and batches of a round; the best round is the one that the machine disturbed least.
BATCH, BATCHES, ROUNDS = 1000, 20, 3
#: Keys that the entries belong to, and organisations of those.
KEYS, ORGS = 50, 5
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LIMIT = 2**50


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description="Entries that are settled in a second.")
    parser.add_argument("--quick", action="store_true", help="one small round: a smoke test")
    parser.add_argument("--postgres", metavar="URL", help="an empty database to measure too")
    options = parser.parse_args(words)
    batches, rounds = (2, 1) if options.quick else (BATCHES, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="mindgw-bench-") as folder:
        urls = {"sqlite": f"sqlite:///{Path(folder) / 'mindgw.db'}"} | ({"postgres": options.postgres} if options.postgres else {})
        print("database  limits  entries/s   ms a batch")
        for name, url in urls.items():
            for limits in (False, True):
                seconds = asyncio.run(measured(url, limits, batches, rounds))
                print(f"{name:8}  {'yes' if limits else 'no':>6}  {batches * BATCH / seconds:9.0f}  {seconds / batches * 1000:11.1f}")
    return 0


async def measured(url: str, limits: bool, batches: int, rounds: int) -> float:
    """Seconds of the best round."""
    async with _database(url) as database:
        writer = await _begin(database, limits)
        times = []
        for number in range(rounds):
            made = [_entries(f"{writer.epoch}-{number}-{batch}", limits) for batch in range(batches)]
            began = time.perf_counter()
            for entries in made:
                async with database.write() as session:
                    done = await ledger.commit(session, writer, entries)
                writer.advance(done)
            times.append(time.perf_counter() - began)
        return min(times)


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.migrate()
    yield database
    await database.close()


async def _begin(database: Database, limits: bool) -> ledger.Writer:
    """A writer, with limits for each key and organisation and all of it on loan."""
    wants = [
        quotas.Want(Budget(scope, unit, "2026-11"), MONTH, 1, LIMIT // 10)
        for scope in (*(f"key:k{i}" for i in range(KEYS)), *(f"org:o{i}" for i in range(ORGS)))
        for unit in (TOKENS, USD)
    ]
    async with database.write() as session:
        begun = await epochs.begin(session, "bench", NOON)
        for want in wants if limits else ():
            await quotas.put(session, Quota(scope=want.budget.scope, unit=want.budget.unit, period=MONTH, lim=LIMIT), "2026-11-21")
        await quotas.borrow(session, begun.id, wants if limits else [])
    return ledger.Writer(begun.id, b"k" * 32, 0, begun.genesis)


def _entries(name: str, limits: bool) -> list[Entry]:
    return [_entry(f"01J{name}-{i:06}", f"k{i % KEYS}", f"o{i % ORGS}", limits) for i in range(BATCH)]


def _entry(request_id: str, key: str, org: str, limits: bool) -> Entry:
    drawn = [(scope, unit, amount) for scope in (f"key:{key}", f"org:{org}") for unit, amount in ((TOKENS, 500), (USD, 75))]
    return Entry(
        request_id=request_id,
        key_id=key,
        user_id=f"user-of-{key}",
        team_id=f"team-of-{org}",
        org_id=org,
        model="llama3.1:8b",
        worker_id="01JWORKER",
        endpoint="/v1/chat/completions",
        stream=True,
        status=200,
        outcome="done",
        prompt_tokens=400,
        completion_tokens=100,
        source="engine",
        ttft_ms=120,
        total_ms=2400,
        bytes_out=9000,
        cost=75,
        price_version="p1",
        day="2026-11-21",
        started_at=NOON,
        draws=tuple(Draw(Budget(scope, unit, "2026-11"), amount) for scope, unit, amount in drawn) if limits else (),
    )


if __name__ == "__main__":
    sys.exit(main())
