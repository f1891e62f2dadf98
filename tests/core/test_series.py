"""Blocks of measurements and their sums, held against dictionaries."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import series
from mindgw.core.series import LARGEST, LONGEST, Block, Read, Sum, Sums, decode, whole

NAMES = st.sampled_from(["used", "slots", "gpu0.load", "gpu1.heat", "é"])
VALUES = st.none() | st.integers(0, 3) | st.integers(-LARGEST, LARGEST)
#: Steps from the last one, which may be one that goes back, and what is measured there.
WALKS = st.lists(st.tuples(st.integers(-3, 40), st.dictionaries(NAMES, VALUES, max_size=4)), max_size=40)
STARTS = st.integers(0, 2**40)

Known = dict[str, dict[int, int]]


def grown(start: int, walk) -> tuple[Block, Known]:
    """A block, and what it should hold."""
    block, known, at = Block(start), {}, start
    for passed, values in walk:
        goes = block.append(at + passed, values)
        assert goes == (at + passed >= start + block.count - goes and at + passed >= start)
        if goes:
            at += passed
            for name, value in values.items():
                known.setdefault(name, {})
                if value is not None:
                    known[name][at] = value
    return block, known


def held(read: Read) -> Known:
    return {name: {read.start + i: v for i, v in enumerate(values) if v is not None} for name, values in read.columns.items()}


@given(STARTS, WALKS)
def test_what_goes_in_comes_out_and_a_step_of_the_past_does_not_go_in(start, walk):
    block, known = grown(start, walk)
    read = decode(block.encode())
    assert held(read) == known
    assert (read.start, read.count) == (start, block.count)
    assert all(len(values) == read.count for values in read.columns.values())


@given(STARTS, WALKS, WALKS)
def test_a_block_that_was_read_grows_on(start, walk, more):
    block, _ = grown(start, walk)
    block.encode()
    for passed, values in more:
        block.append(start + block.count + abs(passed), values)
    read, again = decode(block.encode()), Block(start)
    for place, values in enumerate(zip(*read.columns.values(), strict=True)):
        again.append(start + place, dict(zip(read.columns, values, strict=True)))
    assert held(decode(again.encode())) == held(read)


@given(STARTS, st.lists(WALKS, min_size=1, max_size=3), st.integers(1, 50), st.integers(1, 9))
def test_sums_are_those_of_every_value_and_sums_of_sums_too(start, walks, ratio, more):
    blocks = [grown(start + 3 * i, walk) for i, walk in enumerate(walks)]
    first, end = start // ratio // more, (start + LONGEST + 10) // ratio // more + 1
    sums, short = Sums(first, end), Sums(first * more, end * more)
    brute: dict[tuple[str, int], list[int]] = {}
    for block, known in blocks:
        read = decode(block.encode())
        sums.take(read, ratio * more)
        short.take(read, ratio)
        for name, values in known.items():
            for at, value in values.items():
                brute.setdefault((name, at // ratio // more), []).append(value)
    found = {(name, step): sums.at(name, step) for name in sums.names() for step in range(first, end) if sums.at(name, step)}
    assert found == {place: Sum(len(some), sum(some), min(some), max(some)) for place, some in brute.items()}
    assert all(found[place].mean == sum(some) / len(some) for place, some in brute.items())
    if end * more - first * more <= LONGEST:
        whole_again = Sums(first, end)
        whole_again.take_sums(decode(short.encode()), more)
        assert {place: whole_again.at(*place) for place in found} == found
        assert whole_again.names() == sums.names()


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_are_a_block(raw):
    try:
        read = decode(raw)
    except ValueError:
        return
    assert all(len(values) == read.count for values in read.columns.values())


@given(STARTS, WALKS, st.data())
def test_half_a_block_is_none(start, walk, data):
    raw = grown(start, walk)[0].encode()
    with pytest.raises(ValueError, match="."):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(ValueError, match="behind the end"):
        decode(raw + b"\0")


def column(*body: int) -> bytes:
    """A block of one column `u` that says this of two steps."""
    return bytes((1, 0, 2, 1, 1, ord("u"), len(body), *body))


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        (b"\2\0\0\0", "format"), (b"\1\0\x81\x20\0", "too large"), (b"\1\0\0\x81\x08", "too large"), (column(1, 3), "does not fit"),
        (column(0, 0), "does not fit"), (column(1, 2, 1), "behind the end of a column"), (b"\1" + b"\xff" * 11, "does not end"),
        (b"\1\0\0\1\x41" + b"u" * 65, "longer"), (b"\1\0\0\1\1\xff\0", "utf-8"),
    ],
)  # fmt: skip
def test_what_no_block_says_is_refused(raw, wrong):
    with pytest.raises(ValueError, match=wrong):
        decode(raw)
    assert decode(column(1, 1, 5)) == Read(0, 2, {"u": [0, 2]})


def test_what_does_not_change_costs_nothing_and_what_changes_little_a_byte():
    still, moving = Block(10**9), Block(10**9)
    for at in range(360):
        still.append(10**9 + at, {"used": 7})
        moving.append(10**9 + at, {"used": at % 17})
    assert len(still.encode()) < 30
    assert len(moving.encode()) < 400


def test_a_block_is_bounded_in_steps_and_in_columns(monkeypatch):
    monkeypatch.setattr(series, "WIDEST", 2)
    block = Block(5)
    assert not block.append(5 + LONGEST, {"a": 1})
    assert not block.append(4, {"a": 1})
    assert block.append(5, {"a": 1, "": 3, "x" * 65: 4, "b": None, "c": 2})
    assert decode(block.encode()).columns == {"a": [1], "b": [None]}
    assert block.append(4 + LONGEST, {"a": 1})
    assert not block.append(5 + LONGEST, {"a": 1})


def test_columns_that_are_no_sums_are_left_out():
    block = Block(0)
    block.append(0, {"used": 1, "half/count": 1, "zero/count": 0, "zero/total": 0, "zero/low": 0, "zero/high": 0})
    sums = Sums(0, 9)
    sums.take_sums(decode(block.encode()), 1)
    assert (sums.names(), sums.at("used", 0)) == ([], None)


@pytest.mark.parametrize(
    ("value", "scale", "kept"),
    [
        (1.5, 10, 15), (0.0004, 1000, 0), (-2, 1, -2), (2.0**60, 1, LARGEST), (-(2.0**60), 8, -LARGEST), (math.nan, 1, None),
        (math.inf, 1, None), (1e308, 1e9, None),
    ],
)  # fmt: skip
def test_a_measurement_is_kept_as_a_whole_number_or_not_at_all(value, scale, kept):
    assert whole(value, scale) == kept
