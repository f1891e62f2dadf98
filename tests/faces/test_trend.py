"""`mindgw workers show --trend`, in front of the real server."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import clock
from mindgw.cli import trend
from mindgw.core.series import Block
from mindgw.gateway.trends import STEP
from mindgw.store import series
from mindgw.store.series import Stored
from mindgw.store.tables import Worker
from tests.faces.test_queue import read


@pytest.fixture(scope="module")
def worker(gateway):
    """A worker that is away, and was measured in the last hour: three steps, none, and one more."""

    async def add() -> None:
        async with gateway.server.database.write() as session:
            row = Worker(name="measured", public_key=b"k" * 32)
            session.add(row)
            await session.flush()
            start = int(clock.wall()) // STEP - 60
            block = Block(start)
            for place, used in ((0, 0), (1, 2), (2, 4), (50, 2)):
                gpu = {"gpu0.utilisation": 250 * used, "gpu0.memory": 1024 * used, "gpu0.temperature": 400 + used, "gpu10.temperature": 1}
                block.append(start + place, {"slots": 4, "used": used, "tokens": 10 * used, **gpu})
            await series.keep(session, [Stored(row.id, STEP, start * STEP, block.encode())])

    asyncio.run_coroutine_threadsafe(add(), gateway.loop).result(30)
    return "measured"


def test_a_trend_is_drawn(admin, worker, monkeypatch):
    monkeypatch.setenv("COLUMNS", "122")
    done = admin("workers", "show", worker, "--trend", "1h")
    assert done.code == 0, done.err
    head, *rows = done.out.splitlines()
    assert head.split() == ["MEASURE", "TREND", "MIN", "MEAN", "MAX", "LAST"]
    assert [row.split()[0] for row in rows] == [
        "used", "slots", "tokens", "gpu0.memory", "gpu0.temperature", "gpu0.utilisation", "gpu10.temperature",
    ]  # fmt: skip
    assert rows[0].split()[-4:] == ["0", "2", "4", "2"]
    assert rows[3].split()[-3:] == ["2.0GiB", "4.0GiB", "2.0GiB"]
    assert rows[5].split()[-2:] == ["100%", "50%"]
    assert set(rows[1].split()[1]) <= set(trend.BARS)
    assert "a bar is 1m" in done.err


def test_without_a_span_it_is_a_week_and_of_plain_characters_where_nothing_else_is_wanted(admin, worker, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = admin("workers", "show", worker, "--trend", "--ascii")
    assert (done.code, "a bar is 10h" in done.err) == (0, True)
    bars = {char for row in done.out.splitlines()[1:4] for char in row.split()[1]}
    assert bars <= set(trend.ASCII)
    monkeypatch.setenv("TERM", "dumb")
    assert not set(admin("workers", "show", worker, "--trend").out) & set(trend.BARS)


def test_numbers_are_given_as_json(admin, worker):
    told = read(admin("workers", "show", worker, "--trend", "1h", "-o", "json"))
    assert (told["worker"], told["step_s"]) == ("measured", 10)
    used = told["columns"]["used"]["mean"]
    assert [value for value in used if value is not None] == [0, 2, 4, 2]
    assert [i for i, value in enumerate(used) if value == 2][1] - used.index(4) == 48
    names = admin("workers", "show", worker, "--trend", "-q").out.split()
    assert names == [*sorted(told["columns"], key=lambda name: trend._rank((name, None)))]


@pytest.mark.parametrize(("words", "code"), [(["--trend", "x"], 2), (["--trend", "401d"], 2), (["1h"], 2), (["--ascii"], 2)])
def test_what_makes_no_sense_is_refused(admin, worker, words, code):
    done = admin("workers", "show", worker, *words)
    assert (done.code, done.out) == (code, "")


def test_who_was_never_measured_has_no_lines(admin, gateway):
    async def add() -> None:
        async with gateway.server.database.write() as session:
            session.add(Worker(name="new", public_key=b"n" * 32))

    asyncio.run_coroutine_threadsafe(add(), gateway.loop).result(30)
    done = admin("workers", "show", "new", "--trend", "1h")
    assert (done.code, done.out) == (0, "")
    assert json.loads(admin("workers", "show", "new", "--trend", "1h", "--json").out)["columns"] == {}
    assert admin("workers", "show", "absent", "--trend").code == 6


@given(st.lists(st.none() | st.floats(-10, 10), max_size=20), st.floats(-5, 5), st.floats(-5, 5))
def test_higher_numbers_have_higher_bars(numbers, low, high):
    bars = trend.spark(numbers, low, high)
    assert len(bars) == len(numbers)
    drawn = sorted((number, trend.BARS.index(bar)) for number, bar in zip(numbers, bars, strict=True) if number is not None)
    assert [bar for _, bar in drawn] == sorted(bar for _, bar in drawn)
    assert all((number is None) == (bar == " ") for number, bar in zip(numbers, bars, strict=True))


@given(st.integers(1, 400 * 86_400), st.integers(12, 96))
def test_a_span_fits_on_the_line(length, columns):
    step = trend._step(length, columns)
    assert step % 10 == 0
    assert step <= 3600 or step % 3600 == 0
    assert -(-length // step) <= columns
