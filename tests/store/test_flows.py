"""Counters of flows: kept, replaced, dropped, and read back whatever stands in the table."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from mindgw.store import flows

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = NOON - timedelta(days=30)


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


async def put(session, path, counter, at=NOON):
    statement = text("INSERT INTO flow_counters (path, counter, updated_at) VALUES (:path, :counter, :at)")
    moment = at if session.get_bind().dialect.name == "postgresql" else at.strftime("%Y-%m-%d %H:%M:%S.%f")
    await (await session.connection()).execute(statement, {"path": path, "counter": counter, "at": moment})


async def test_what_was_kept_is_there_parents_first(session):
    kept = {("o", "t", "ü\n\0\udc00"): 7.0, ("o",): 0.0, ("o", "t"): 12.5}
    await flows.keep(session, kept, NOON)
    found = await flows.load(session, LONG_AGO, 100)
    assert found == kept
    assert [len(path) for path in found] == [1, 2, 3]


async def test_a_counter_takes_the_place_of_an_older_one(session):
    await flows.keep(session, {("o",): 1.0, ("p",): 2.0}, NOON)
    await flows.keep(session, {("o",): 3.0}, NOON + timedelta(hours=1))
    assert await flows.load(session, LONG_AGO, 100) == {("o",): 3.0, ("p",): 2.0}
    assert await flows.load(session, NOON, 100) == {("o",): 3.0}


async def test_flows_are_dropped_by_name_and_by_age(session):
    await flows.keep(session, {("old",): 1.0}, LONG_AGO)
    await flows.keep(session, {("o",): 1.0, ("p",): 2.0}, NOON)
    await flows.drop(session, [("o",), ("nobody",)])
    await flows.drop(session, [])
    await flows.keep(session, {}, NOON)
    await flows.drop_older(session, LONG_AGO)
    assert await flows.load(session, datetime(2000, 1, 1, tzinfo=UTC), 100) == {("p",): 2.0}


async def test_no_more_are_read_than_are_wanted_and_none_without_its_parent(session):
    await flows.keep(session, {("o", f"t{number}"): 9.0 for number in range(9)} | {("o",): 0.0}, NOON)
    found = await flows.load(session, LONG_AGO, 4)
    assert len(found) == 4 and ("o",) in found


async def test_a_path_that_no_index_could_hold_is_not_kept(session):
    await flows.keep(session, {("x" * flows.LONGEST,): 1.0, ("o", "ü" * 300): 1.0, ("o",): 2.0}, NOON)
    assert await flows.load(session, LONG_AGO, 100) == {("o", "ü" * 300): 1.0, ("o",): 2.0}


@pytest.mark.parametrize("path", ["", "o", "{}", "[]", "[1]", '["o", null]', '"o"', "[" * 100_000, '["o"', "\x7f"])
async def test_what_is_no_path_is_left_out(session, path):
    await put(session, path[:2500], 5.0)
    await put(session, '["good"]', 6.0)
    assert await flows.load(session, LONG_AGO, 100) == {("good",): 6.0}


@pytest.mark.parametrize("counter", [-1.0, float("inf"), float("-inf"), float("nan")])
async def test_what_is_no_counter_is_left_out(session, counter):
    if counter != counter and session.get_bind().dialect.name == "sqlite":
        pytest.skip("SQLite itself refuses it")
    await put(session, '["bad"]', counter)
    await put(session, '["good"]', 6.0)
    assert await flows.load(session, LONG_AGO, 100) == {("good",): 6.0}


async def test_text_in_the_place_of_a_counter_is_left_out(session):
    if session.get_bind().dialect.name == "postgresql":
        pytest.skip("Postgres itself refuses it")
    await put(session, '["bad"]', "much")
    await put(session, '["good"]', 6.0)
    assert await flows.load(session, LONG_AGO, 100) == {("good",): 6.0}
