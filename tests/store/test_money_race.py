"""Two processes, 64 at once in each, one limit of 100: exactly 100 get something, and nobody ever sees more than that."""

import asyncio
import sys
from contextlib import suppress

import pytest

from mindgw.store import quotas
from tests.house import ROOT
from tests.store.books import TODAY, Books
from tests.store.racer import BUDGET

LIMIT = 100
SEEDS = [pytest.param(seed, marks=[pytest.mark.real_install] if seed > 1 else [], id=str(seed)) for seed in range(1, 51)]


@pytest.mark.parametrize("seed", SEEDS)
async def test_exactly_as_many_are_admitted_as_the_limit_allows(database, url, seed):
    books = Books(database)
    await books.limit(BUDGET, LIMIT)
    racers = [await started(url, seed * 2 + number) for number in range(2)]
    try:
        for racer in racers:
            assert await racer.stdout.readline() == b"ready\n"
        for racer in racers:
            racer.stdin.write(b"go\n")
        async with asyncio.timeout(120):
            results = asyncio.gather(*(racer.communicate() for racer in racers))
            samples = [await sampled(database)]
            while not results.done():
                samples.append(await sampled(database))
                await asyncio.sleep(0.005)
        got = [int(said) for said, _ in await results]
    finally:
        for racer in racers:
            with suppress(ProcessLookupError):
                racer.kill()
            await racer.wait()
    assert sum(got) == LIMIT
    assert all(racer.returncode == 0 for racer in racers)
    assert all(used + reserved <= LIMIT for used, reserved in samples)
    assert len(set(samples)) > 1
    assert await sampled(database) == (LIMIT, 0)
    assert len(await books.rows()) == LIMIT
    assert await books.broken() == []


async def started(url, seed):
    words = [sys.executable, "-m", "tests.store.racer", url, str(seed)]
    return await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


async def sampled(database):
    async with database.read() as session:
        (one,) = await quotas.standings(session, TODAY)
    return one.used, one.reserved
