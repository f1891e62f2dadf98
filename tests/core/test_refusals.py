"""Refusals are told soon, counted when they repeat, and never more than a bounded number of lines."""

from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import refusals
from mindgw.core.refusals import BURST, MOST, OTHERS, QUIET, RATE, Kind, Refusals


def kind(number=0, **more):
    return Kind(**{"actor": "", "address": f"192.0.2.{number}", "code": "invalid_api_key", "what": "GET /api/v1/keys", **more})


def test_the_first_one_is_told_at_once_and_repeats_are_counted():
    found = Refusals()
    found.note(kind())
    assert found.due(100.0) == [(kind(), 1)]
    for _ in range(5):
        found.note(kind())
    assert found.due(100.0 + QUIET - 1) == []
    assert found.rest() == [(kind(), 5)]
    assert found.due(100.0 + QUIET) == [(kind(), 5)]
    assert found.due(200.0 + QUIET) == []
    found.note(kind())
    assert found.due(201.0 + QUIET) == [(kind(), 1)]


def test_kinds_beyond_the_bound_are_told_as_one():
    found = Refusals()
    for number in range(MOST + 50):
        found.note(kind(number))
    told = dict(found.rest())
    assert (len(told), told[OTHERS]) == (MOST + 1, 50)


def test_what_could_not_be_told_is_told_later():
    found = Refusals()
    found.note(kind())
    told = found.due(1.0)
    found.note(kind())
    found.keep(told)
    assert found.due(2.0) == [(kind(), 2)]
    found.keep([(kind(1), 3)])
    assert found.due(3.0) == [(kind(1), 3)]


@given(st.lists(st.tuples(st.integers(0, 2 * MOST), st.integers(1, 50), st.floats(0, 5)), max_size=60))
def test_nothing_is_lost_and_lines_are_bounded(steps):
    """`steps`: kind, how often, seconds until the next look."""
    found, now, begun, lines = Refusals(), 1000.0, 1000.0, 0
    noted = told = 0
    for number, times, pause in steps:
        for offset in range(times):
            found.note(kind(number + offset))
        noted += times
        for _, count in found.due(now):
            lines += 1
            told += count
        now += pause
        assert lines <= BURST + (now - begun) * RATE
    assert told + sum(count for _, count in found.rest()) == noted
    assert len(found.rest()) <= refusals.MOST + 1
