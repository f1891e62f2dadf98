from math import ceil, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.hedging import ABOVE, BELOW, ENOUGH, FULL, LEAST, MOST, SHARE, SLACK, STEPS, WORST, Hedging, Lateness

BUCKET = 2 ** (1 / STEPS)
SECONDS = st.floats(0.0, 600.0)


def taught(*pairs: tuple[float | None, float], model: str = "m") -> Hedging:
    made = Hedging()
    for expected, seconds in pairs:
        made.learn(model, expected, seconds)
    return made


@given(st.lists(st.floats(0.02, 4000.0), min_size=1, max_size=int(FULL)))
def test_the_quantile_is_that_of_what_was_seen_or_a_bucket_more(seen):
    known = Lateness()
    for lateness in seen:
        known.add(lateness)
    exact = sorted(seen)[ceil(SHARE * len(seen) - 1e-9) - 1]
    assert exact * (1 - 1e-9) <= known.quantile(SHARE) <= exact * BUCKET * (1 + 1e-9)


@given(st.lists(st.tuples(SECONDS | st.none(), SECONDS), max_size=ENOUGH - 1), SECONDS | st.none())
def test_nothing_is_said_before_enough_was_seen(pairs, expected):
    assert taught(*pairs).patience("m", expected) is None


@given(st.lists(st.tuples(st.floats(0.0, 60.0), SECONDS), min_size=ENOUGH, max_size=300))
def test_no_more_than_one_in_twenty_of_what_was_seen_is_late(pairs):
    made = taught(*pairs)
    late = 0
    for expected, seconds in pairs:
        patience = made.patience("m", expected)
        assert patience is None or patience >= LEAST
        late += patience is not None and seconds > patience * (1 + 1e-9)
    assert late <= (1 - SHARE) * len(pairs)


@given(st.floats(0.3, 8.0), st.lists(st.floats(0.5, 100.0), min_size=ENOUGH, max_size=100), st.floats(0.5, 100.0))
def test_what_was_learned_of_some_sizes_holds_for_all(late, sizes, size):
    made = taught(*((expected, max(0.0, late * (expected + SLACK) - SLACK)) for expected in sizes))
    exact = max(0.0, late * (size + SLACK) - SLACK)
    patience = made.patience("m", size)
    assert patience is not None
    assert exact * (1 - 1e-9) <= patience <= max(exact * BUCKET + SLACK * (BUCKET - 1), LEAST) * (1 + 1e-9)


def test_short_prompts_that_are_often_late_do_not_have_long_ones_wait_for_long():
    # 20 ms more than nothing is nothing: a tenth of a second for what should take 20 ms
    made = taught(*[(0.02, 0.1), (10.0, 11.0)] * ENOUGH)
    assert made.patience("m", 10.0) == pytest.approx(13.0, abs=1.5)
    assert made.patience("m", 0.02) < 0.15


def test_where_nothing_was_expected_plain_seconds_count_and_are_kept_apart():
    made = taught(*[(None, 2.0)] * ENOUGH)
    assert made.patience("m", 5.0) is None
    assert 2.0 <= made.patience("m", None) <= (2.0 + SLACK) * BUCKET
    assert made.patience("other", None) is None


def test_what_was_long_ago_is_forgotten():
    made = taught(*[(1.0, 30.0)] * 2000, *[(1.0, 1.0)] * 6 * int(FULL))
    assert 1.0 <= made.patience("m", 1.0) <= 1.3


def test_what_came_of_late_counts_when_all_becomes_slow():
    made = taught(*[(1.0, 1.0)] * 5000, *[(1.0, 5.0)] * int(FULL / 10))
    assert made.patience("m", 1.0) >= 5.0


@given(st.lists(st.sampled_from([nan, inf, -inf, -1.0, 0.0, 1e-300, 1e300, WORST, 2.0]), min_size=2, max_size=200))
def test_nonsense_is_survived(numbers):
    made = Hedging()
    for place in range(max(ENOUGH, len(numbers))):
        made.learn("m", numbers[place % len(numbers)], numbers[(place + 1) % len(numbers)])
    for expected in numbers:
        found = made.patience("m", expected)
        assert found is None or LEAST <= found <= WORST


def test_who_is_beyond_all_measure_is_not_hedged():
    assert taught(*[(0.0, WORST)] * ENOUGH).patience("m", 0.0) is None


def test_the_buckets_reach_as_far_as_they_should():
    low, high = Lateness(), Lateness()
    low.add(2.0 ** -(BELOW + 3))
    high.add(2.0 ** (ABOVE + 1))
    assert (low.quantile(SHARE), high.quantile(SHARE)) == (2.0 ** (1 / STEPS - BELOW), inf)
    assert Lateness().quantile(SHARE) == 2.0**-BELOW


def test_so_many_models_are_remembered_those_learned_of_last():
    made = Hedging()
    for number in range(MOST + 500):
        for _ in range(ENOUGH if number in (0, MOST + 499) else 1):
            made.learn(f"m{number}", 1.0, 1.0)
    assert len(made) == MOST
    assert made.patience("m0", 1.0) is None
    assert made.patience(f"m{MOST + 499}", 1.0) is not None
