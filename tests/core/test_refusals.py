"""Refusals are told soon, counted when they repeat, and never more than a bounded number of lines."""

from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import refusals
from mindgw.core.refusals import BURST, MOST, QUIET, RATE, REST, SHARE, Kind, Refusals


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
    assert (len(told), told[found.others]) == (MOST + 1, 50)


def test_one_actor_has_a_share_of_the_kinds_and_stays_named():
    found = Refusals("o")
    for number in range(2 * MOST):
        found.note(kind(number, actor="k1", org_id="o"))
    found.note(kind(actor="k2", org_id="o"))
    told = dict(found.rest())
    assert told[Kind("k1", "", REST, "", "o")] == 2 * MOST - SHARE
    assert told[kind(actor="k2", org_id="o")] == 1
    assert len(told) == SHARE + 2


def test_what_there_was_no_room_for_keeps_its_organisation():
    found = Refusals("o")
    for number in range(MOST + 5):
        found.note(kind(actor=f"k{number}", org_id="o"))
    assert dict(found.rest())[Kind("", "", REST, "", "o")] == 5


def test_what_there_was_no_room_for_is_told_first():
    found, lines, noted = Refusals(), 0, 0
    for second in range(600):
        for number in range(MOST + 1):
            found.note(kind(number))
        noted += 1
        lines += dict(found.due(float(second))).get(found.others, 0)
    assert lines >= noted - QUIET


def test_turns_go_round():
    found, told = Refusals(), []
    for second in range(900):
        for number in range(MOST):
            found.note(kind(number))
        told += [one for one, _ in found.due(float(second))]
    assert set(told) == {kind(number) for number in range(MOST)}
    assert max(map(told.count, set(told))) - min(map(told.count, set(told))) <= 1


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
