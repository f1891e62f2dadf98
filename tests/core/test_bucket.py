"""Rates: held against the same rules in fractions, and against what a limit promises over any stretch of time."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.bucket import MINUTE, MOST, Bucket

limits = st.one_of(st.integers(1, 100), st.integers(1, MOST))
pauses = st.one_of(st.integers(0, 1000), st.integers(0, 3 * MINUTE))
pieces = st.one_of(st.integers(0, 5), st.integers(0, 2 * MOST))


def test_a_full_bucket_lets_a_minutes_worth_in_at_once_and_then_one_at_a_time():
    bucket = Bucket(60, 0)
    for _ in range(60):
        assert bucket.left(0) >= 1
        bucket.take(1, 0)
    assert bucket.left(0) == 0
    assert bucket.wait(1, 0) == MINUTE // 60
    assert bucket.left(MINUTE // 60 - 1) == 0
    assert bucket.left(MINUTE // 60) == 1
    assert bucket.full_in(MINUTE // 60) == MINUTE * 59 // 60


def test_what_was_not_used_goes_back_but_a_full_bucket_stays_full():
    bucket = Bucket(100, 0)
    bucket.take(90, 0)
    bucket.give(50, 0)
    assert bucket.left(0) == 60
    bucket.give(1000, 0)
    assert (bucket.left(0), bucket.full_in(0)) == (100, 0)


def test_what_nobody_foresaw_is_paid_by_waiting():
    bucket = Bucket(100, 0)
    bucket.take(250, 0)
    assert bucket.left(0) == -150
    assert bucket.wait(1, 0) == MINUTE * 151 // 100
    assert bucket.left(MINUTE) == -50


def test_another_limit_leaves_the_time_until_it_is_full_as_it_is():
    bucket = Bucket(1000, 0)
    bucket.take(1000, 0)
    bucket.resize(1, 0)
    assert (bucket.left(0), bucket.full_in(0)) == (0, MINUTE)
    bucket.resize(500, MINUTE // 2)
    assert (bucket.left(MINUTE // 2), bucket.full_in(MINUTE // 2)) == (250, MINUTE // 2)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    bucket = Bucket(10, 5 * MINUTE)
    bucket.take(10, 5 * MINUTE)
    assert bucket.left(4 * MINUTE) == 0
    assert bucket.left(5 * MINUTE) == 0
    assert bucket.left(6 * MINUTE) == 10


@given(limits, st.lists(st.tuples(pauses, pieces, st.booleans()), max_size=20))
def test_it_is_exact(limit, steps):
    """Nothing is lost to rounding: the same rules in fractions of a piece come to the same."""
    bucket, owed, now = Bucket(limit, 0), Fraction(0), 0
    for pause, some, back in steps:
        now += pause
        owed = max(Fraction(0), owed - Fraction(pause * limit, MINUTE))
        if back:
            bucket.give(some, now)
            owed = max(Fraction(0), owed - some)
        else:
            bucket.take(some, now)
            owed += some
        assert bucket.left(now) == (limit - owed) // 1
        assert bucket.full_in(now) == -(-owed * MINUTE // limit)


@given(limits, st.lists(st.tuples(pauses, st.integers(0, MOST)), min_size=1, max_size=30))
def test_no_stretch_of_time_sees_more_than_the_limit_allows(limit, steps):
    """Of those who take only what is there."""
    bucket, now, taken = Bucket(limit, 0), 0, []
    for pause, wish in steps:
        now += pause
        if bucket.left(now) >= wish:
            bucket.take(wish, now)
            taken.append((now, wish))
    for start, (begin, _) in enumerate(taken):
        total = 0
        for end, some in taken[start:]:
            total += some
            assert total * MINUTE <= limit * (MINUTE + end - begin)


@given(limits, st.integers(0, 3 * MOST), pauses, st.data())
def test_who_waits_as_long_as_he_is_told_finds_it_there_and_not_before(limit, used, pause, data):
    bucket = Bucket(limit, 0)
    bucket.take(used, 0)
    wish = data.draw(st.integers(0, limit))
    told = bucket.wait(wish, pause)
    assert bucket.left(pause + told) >= wish
    again = Bucket(limit, 0)
    again.take(used, 0)
    assert told == 0 or again.left(pause + told - 1) < wish


@given(limits, limits, st.integers(0, 3 * MOST), pauses)
def test_resizing_gives_nobody_more(limit, other, used, pause):
    bucket = Bucket(limit, 0)
    bucket.take(used, 0)
    before = bucket.full_in(pause)
    bucket.resize(other, pause)
    assert bucket.full_in(pause) <= before < bucket.full_in(pause) + 2 + MINUTE // other
    assert bucket.left(pause) <= other
