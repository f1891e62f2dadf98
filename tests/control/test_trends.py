"""Measurements of workers in both databases: told, summed up when they are old, gone in the end."""

import asyncio
import sqlite3
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import func, select

from mindgw.control import trends
from mindgw.control.trends import DAY, FINE, LONG
from mindgw.core.series import Block, decode
from mindgw.errors import BadRequest, NotFound
from mindgw.gateway.trends import LONG_STEP, STEP
from mindgw.store import fleet, series
from mindgw.store.series import Stored
from mindgw.store.tables import SeriesBlock

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW = int(NOON.timestamp())


class Memory:
    """What the running gateway has and the database has not."""

    def __init__(self, *blocks):
        self.held = blocks

    def blocks(self, worker_id):
        return [block.data for block in self.held if block.worker_id == worker_id]

    def starts(self, worker_id):
        return frozenset(block.start for block in self.held if block.worker_id == worker_id)


@pytest.fixture
async def worker(database):
    async with database.write() as session:
        return (await fleet.add_worker(session, "gpu", b"k" * 32)).id


def stretch(worker, start, values, name="used"):
    """A block that begins at Unix seconds, a value a step."""
    block = Block(start // STEP)
    for place, value in enumerate(values):
        block.append(start // STEP + place, {name: value})
    return Stored(worker, STEP, start // STEP * STEP, block.encode())


async def write(database, *blocks):
    async with database.write() as session:
        await series.keep(session, blocks)


async def count(database, step):
    async with database.read() as session:
        return (await session.exec(select(func.count()).select_from(SeriesBlock).where(SeriesBlock.step == step))).one()


async def told(database, since="1h", step="", *, memory=None, now=NOON):
    return await trends.Past(database, memory or Memory()).trend("gpu", since, step, now)


async def test_what_was_measured_is_told_with_its_gaps_and_what_is_not_written_with_it(database, worker):
    await write(database, stretch(worker, NOW - 60, [1, 3, None, 2]), stretch("other", NOW - 60, [9]))
    fresh = stretch(worker, NOW - 20, [4, 6])
    view = await told(database, "1m", memory=Memory(fresh))
    assert (view.worker, view.step_s, view.since, view.until) == ("gpu", 10, NOON - timedelta(minutes=1), NOON + timedelta(seconds=10))
    assert view.columns["used"].mean == [1, 3, None, 2, 4, 6, None]
    view = await told(database, "1m", "20s", memory=Memory(fresh))
    used = view.columns["used"]
    assert (used.mean, used.low, used.high, used.count) == ([2, 2, 5, None], [1, 2, 4, None], [3, 2, 6, None], [2, 1, 2, 0])


async def test_of_a_block_that_has_grown_since_it_was_written_the_newer_one_counts(database, worker):
    await write(database, stretch(worker, NOW - 60, [1, 3]))
    view = await told(database, "1m", memory=Memory(stretch(worker, NOW - 60, [1, 3, 5])))
    assert view.columns["used"].mean == [1, 3, 5, None, None, None, None]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_what_is_written_while_somebody_looks_is_neither_missing_nor_counted_twice(database, worker, before):
    block = stretch(worker, NOW - 60, [1, 3])

    class Writes(Memory):
        """Its last block is written, before or after it is asked for it."""

        def blocks(self, worker_id):
            found = [] if before else super().blocks(worker_id)
            with sqlite3.connect(database.file) as plain:
                plain.execute("INSERT INTO series_blocks VALUES (?, ?, ?, ?)", (block.worker_id, block.step, block.start, block.data))
            plain.close()
            return found

        def starts(self, worker_id):
            return frozenset() if before else super().starts(worker_id)

    used = (await told(database, "1m", memory=Writes(block))).columns["used"]
    assert (used.mean[:3], used.count[:3]) == ([1, 3, None], [1, 1, 0])


async def test_numbers_have_their_units(database, worker):
    block = Block(NOW // STEP - 1)
    block.append(NOW // STEP - 1, {"tokens": 125, "gpu0.utilisation": 750, "gpu0.memory": 3, "gpu0.temperature": 615, "later": 1})
    await write(database, Stored(worker, STEP, NOW - STEP, block.encode()))
    columns = (await told(database, "10s")).columns
    assert {name: (column.mean[0], column.unit) for name, column in columns.items()} == {
        "tokens": (12.5, "1/s"), "gpu0.utilisation": (0.75, ""), "gpu0.memory": (3 * 2**20, "bytes"), "gpu0.temperature": (61.5, "°C"),
    }  # fmt: skip


async def test_a_block_that_cannot_be_read_is_a_gap(database, worker):
    await write(database, Stored(worker, STEP, NOW - 60, b"\xff"), stretch(worker, NOW - 50, [7]))
    assert (await told(database, "1m")).columns["used"].mean == [None, 7, None, None, None, None, None]


@pytest.mark.parametrize(
    ("since", "step", "wrong"),
    [
        ("soon", "", "since"), ("2026-13-01", "", "since"), ("401d", "", "since"), ("2026-11-20T12:00:00Z", "", "since"),
        ("1h", "x", "step"),        ("1h", "15s", "step"), ("1h", "10500ms", "step"), ("1h", "90m", "step"),
        ("7d", "10s", "step"), ("1h", "-1", "step"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused(database, worker, since, step, wrong):
    with pytest.raises(BadRequest) as refused:
        await told(database, since, step)
    assert refused.value.param == wrong


def wide(worker, columns, start=NOW - 60):
    """A block of one step, of an agent with many GPUs."""
    block = Block(start // STEP)
    block.append(start // STEP, {f"gpu{number}.temperature": number for number in range(columns)})
    return Stored(worker, STEP, start // STEP * STEP, block.encode())


@pytest.mark.parametrize("written", [True, False])
async def test_more_values_than_one_answer_may_have_are_refused(database, worker, monkeypatch, written):
    monkeypatch.setattr(trends, "VALUES", 7 * 3)
    few, many = wide(worker, 3), wide(worker, 4)
    memory = Memory(*(() if written else (many,)))
    await write(database, many if written else few)
    with pytest.raises(BadRequest) as refused:
        await told(database, "1m", memory=memory)
    assert refused.value.param == "step" and "7 steps of 4 measurements" in refused.value.message
    assert len((await told(database, "1m", "30s", memory=memory)).columns) == 4


async def test_while_one_is_told_how_a_worker_was_the_loop_is_free_and_others_wait_without_a_connection(database, worker, monkeypatch):
    await write(database, stretch(worker, NOW - 60, [1, 3]))
    begun, may_end, real = [], threading.Event(), trends._told

    def slow(*those):
        begun.append(1)
        assert may_end.wait(20)
        return real(*those)

    monkeypatch.setattr(trends, "_told", slow)
    past = trends.Past(database, Memory())
    asking = [asyncio.create_task(past.trend("gpu", "1m", "", NOON)) for _ in range(5)]
    async with asyncio.timeout(20):
        while not begun:
            await asyncio.sleep(0.005)
        for _ in range(20):
            async with database.read() as session:
                assert await fleet.find_worker(session, "gpu")
    assert len(begun) == 1
    may_end.set()
    first, *rest = await asyncio.gather(*asking)
    assert rest == [first] * 4 and first.columns["used"].mean[:2] == [1, 3]


async def test_who_is_not_there_has_no_trend(database):
    with pytest.raises(NotFound):
        await told(database)


@pytest.mark.parametrize(
    ("since", "step_s"), [("1h", 10), ("24h", 300), ("7d", 1800), ("2026-11-19", 600), ("2026-11-20T13:30:00+02:00", 10), ("400d", DAY)]
)
async def test_steps_are_as_long_as_they_have_to_be(database, worker, since, step_s):
    assert (await told(database, since)).step_s == step_s


async def test_what_is_older_than_a_week_is_kept_by_the_hour(database, worker):
    day = (NOW - FINE) // DAY * DAY - 3 * DAY
    fine = [stretch(worker, day + hour * 3600 + 3000 * half, [hour, hour + 2 * half]) for hour in range(5) for half in range(2)]
    await write(database, *fine, stretch(worker, NOW - FINE, [8]), stretch("removed", day, [1]))
    before = await told(database, "11d", "1h")
    assert await trends.forget(database, NOON) == 2
    assert await trends.forget(database, NOON) == 0
    assert (await count(database, STEP), await count(database, LONG_STEP)) == (1, 2)
    after = await told(database, "11d", "1h")
    assert after == before
    first = day // 3600 - int(after.since.timestamp()) // 3600
    used = after.columns["used"]
    assert (used.mean[first : first + 6], used.low[first + 1], used.high[first + 1]) == ([0.5, 1.5, 2.5, 3.5, 4.5, None], 1, 3)
    days = (await told(database, "11d", "24h")).columns["used"]
    assert [value for value in days.mean if value is not None] == [2.5, 8]
    finer = (await told(database, "11d", "30m")).columns["used"]
    assert [value for value in finer.mean if value is not None] == [8]  # nothing is made up


async def test_a_day_that_is_written_late_is_added_to_its_sums(database, worker):
    day = (NOW - FINE) // DAY * DAY - DAY
    await write(database, stretch(worker, day, [1, 2]))
    await trends.forget(database, NOON)
    await write(database, stretch(worker, day + 100, [9]))
    await trends.forget(database, NOON)
    async with database.read() as session:
        (block,) = await series.load(session, worker, LONG_STEP, 0, NOW)
    columns = decode(block.data).columns
    assert {name: values[0] for name, values in columns.items()} == {"used/count": 3, "used/total": 12, "used/low": 1, "used/high": 9}


async def test_two_servers_that_sum_up_the_same_day_come_to_the_same(database, worker):
    day = (NOW - FINE) // DAY * DAY - DAY
    await write(database, stretch(worker, day, [1, 2]))
    await trends._fold(database, worker, day)
    await trends._fold(database, worker, day)
    assert (await count(database, STEP), await count(database, LONG_STEP)) == (0, 1)
    async with database.read() as session:
        (block,) = await series.load(session, worker, LONG_STEP, 0, NOW)
    assert decode(block.data).columns["used/count"] == [2]


async def test_sums_go_after_thirteen_months(database, worker):
    old = (NOW - LONG) // DAY * DAY
    await write(database, *(Stored(worker, LONG_STEP, start, b"") for start in (old - DAY, old, old + DAY)))
    await trends.forget(database, NOON)
    async with database.read() as session:
        assert [block.start for block in await series.load(session, worker, LONG_STEP, 0, NOW)] == [old + DAY]


async def test_pages_are_read_to_their_end(database, worker, monkeypatch):
    monkeypatch.setattr(series, "PAGE", 2)
    await write(database, *(stretch(worker, NOW - 100 + 10 * place, [place]) for place in range(7)))
    assert (await told(database, "100s")).columns["used"].mean[:7] == [0, 1, 2, 3, 4, 5, 6]
    async with database.write() as session:
        assert [await series.drop_older(session, STEP, NOW - 60) for _ in range(3)] == [2, 2, 0]
        await series.keep(session, [])
