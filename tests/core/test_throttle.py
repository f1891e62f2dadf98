from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.throttle import Throttle

#: Quarters of a second: sums of them are exact.
pauses = st.lists(st.integers(0, 12).map(lambda quarters: quarters / 4), max_size=60)


@given(st.integers(1, 5), pauses)
def test_no_more_pass_than_the_burst_and_one_each_interval(burst, gaps):
    throttle, now, passed = Throttle(burst, 1.0), 100.0, []
    for gap in gaps:
        now += gap
        if throttle.lets(now):
            passed.append(now)
    for first, begin in enumerate(passed):
        for number, end in enumerate(passed[first:], start=1):
            assert number <= burst + (end - begin)


@given(st.integers(1, 5), pauses)
def test_who_comes_at_an_even_pace_or_slower_always_passes(burst, gaps):
    throttle, now = Throttle(burst, 1.0), 0.0
    for gap in gaps:
        now += 1.0 + gap
        assert throttle.lets(now)


def test_a_burst_passes_and_what_is_refused_is_not_counted():
    throttle = Throttle(3, 1.0)
    assert [throttle.lets(0.0) for _ in range(9)] == [True] * 3 + [False] * 6
    assert not throttle.lets(0.75)
    assert throttle.lets(1.0)
    assert not throttle.lets(1.75)
