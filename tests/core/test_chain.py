"""Chains: the same rows give the same link, everything else another."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mindgw.core import chain

KEY = b"k" * 32
START = chain.genesis("test")
VALUES = st.tuples() | st.lists(
    st.text(max_size=5) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none() | st.binary(max_size=5), max_size=4
).map(tuple)
ROWS = st.lists(st.binary(max_size=6), max_size=4)


def test_each_kind_of_record_starts_from_somewhere_else():
    assert chain.genesis("ledger") != chain.genesis("audit")
    assert len(chain.genesis("ledger")) == chain.SIZE == len(chain.link(KEY, START, 1, []))


@given(VALUES, VALUES)
def test_rows_have_the_same_form_when_they_are_the_same(one, other):
    same = [(type(value), value) for value in one] == [(type(value), value) for value in other]
    assert (chain.canonical(one) == chain.canonical(other)) == same


def test_a_moment_is_the_same_in_every_zone():
    noon = datetime(2026, 11, 21, 12, 0, 0, 7, tzinfo=UTC)
    assert chain.canonical((noon,)) == chain.canonical((noon.astimezone(timezone(timedelta(hours=5))),))
    assert chain.canonical((noon,)) != chain.canonical((noon + timedelta(microseconds=1),))


@pytest.mark.parametrize("bad", ["\udc00", 2**64, object()])
def test_what_has_no_form_is_refused(bad):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        chain.canonical((bad,))


@given(ROWS, ROWS)
def test_other_rows_give_another_link(one, other):
    """Also where one row ends and the next begins matters."""
    assume(one != other)
    assert chain.link(KEY, START, 1, one) != chain.link(KEY, START, 1, other)


@given(ROWS)
def test_a_link_depends_on_all_that_is_before_it(rows):
    link = chain.link(KEY, START, 1, rows)
    assert link == chain.link(KEY, START, 1, iter(rows))
    assert len({link, chain.link(b"other", START, 1, rows), chain.link(KEY, link, 1, rows), chain.link(KEY, START, 2, rows)}) == 4
