"""How long it takes: lengths, speed and shares are measured, and nothing absurd comes out of what clocks and counts may say."""

from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.eta import MEMORY, UNKNOWN, Lengths, Shares, Speed, free, wait

UNITS = st.floats(0, 1e9)
TIMES = st.floats(-1e9, 1e9)


def test_a_length_is_known_by_the_most_particular_name_that_is_known():
    lengths = Lengths()
    assert lengths.expected("key", "model") == UNKNOWN
    lengths.learn(100.0, "model")
    assert lengths.expected("key", "model") == 100.0
    lengths.learn(300.0, "key", "model")
    assert lengths.expected("key", "model") == 300.0
    assert lengths.expected("another key", "model") == 120.0
    assert lengths.expected() == UNKNOWN


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_an_expected_length_lies_between_those_that_were_seen(seen):
    lengths = Lengths()
    for tokens in seen:
        lengths.learn(tokens, "name")
    assert min(seen) - 1e-6 <= lengths.expected("name") <= max(seen) + 1e-6


def test_names_that_nobody_uses_are_forgotten():
    lengths = Lengths()
    lengths.learn(7.0, "first")
    lengths.learn(8.0, "used")
    for n in range(9_999):
        lengths.learn(1.0, n)
        lengths.learn(8.0, "used")
    assert lengths.expected("first") == UNKNOWN
    assert lengths.expected("used") == 8.0


def test_speed_is_units_by_seconds_in_which_slots_were_busy():
    speed = Speed()
    assert speed.known is None
    speed.measure(units=0.0, busy=5.0, passed=5.0)
    assert speed.known is None
    speed.measure(units=500.0, busy=5.0, passed=5.0)
    assert speed.known is not None
    assert 50.0 < speed.known < 100.0


def test_old_speeds_fade_but_not_while_nothing_runs():
    speed = Speed()
    speed.measure(1000.0, 10.0, 10.0)
    speed.measure(0.0, 0.0, 1e6)
    assert speed.known == 100.0
    for _ in range(20):
        speed.measure(200.0, 10.0, MEMORY)
    assert speed.known == pytest.approx(20.0, rel=0.01)


@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9).map(lambda ms: ms / 1000), TIMES), max_size=30))
def test_no_measurement_makes_a_speed_that_is_absurd(measurements):
    """Refunds, and clocks that jump."""
    speed = Speed()
    for units, busy, passed in measurements:
        speed.measure(units, busy, passed)
    assert speed.known is None or (speed.known > 0 and isfinite(speed.known))


def test_a_share_is_presumed_until_it_was_measured():
    shares = Shares()
    assert shares.expected("flow", 0.25, 0.0) == 0.25
    shares.joined("flow", 0.0)
    assert shares.expected("flow", 0.25, 0.0) == 0.25
    now = 0.0
    for _ in range(3000):
        now += 0.2
        shares.served("flow", 10.0, 100.0, now)
    assert shares.expected("flow", 0.25, now) == pytest.approx(0.5, abs=0.05)


def test_what_a_flow_gets_while_nothing_of_it_waits_says_nothing():
    shares = Shares()
    shares.served("flow", 1000.0, 1.0, 0.0)
    shares.joined("flow", 0.0)
    shares.left("flow", 0.0)
    shares.served("flow", 1000.0, 1.0, 5.0)
    shares.left("flow", 9.0)
    shares.left("nobody", 9.0)
    assert shares.expected("flow", 0.25, 10.0) == 0.25


def test_a_clock_that_jumps_back_is_one_that_stands():
    shares = Shares()
    shares.joined("flow", 100.0)
    shares.served("flow", 50.0, 10.0, 110.0)
    known = shares.expected("flow", 0.1, 110.0)
    assert shares.expected("flow", 0.1, -1e9) == known
    assert shares.expected("flow", 0.1, -1e9 + 10) < known, "time goes on from there"


def test_flows_that_are_touched_last_are_remembered():
    shares = Shares()
    shares.joined("first", 0.0)
    shares.served("first", 100.0, 1.0, 10.0)
    shares.joined("kept", 10.0)
    shares.served("kept", 100.0, 1.0, 20.0)
    for n in range(9_999):
        shares.joined(n, 20.0)
        shares.joined("kept", 20.0)
    assert shares.expected("first", 0.125, 20.0) == 0.125
    assert shares.expected("kept", 0.125, 20.0) > 0.125


EVENTS = st.lists(st.tuples(st.sampled_from(["joined", "left", "served"]), st.sampled_from("ab"), st.floats(-1e9, 1e9), TIMES), max_size=40)


@given(events=EVENTS, presumed=st.floats(0, 1), now=TIMES)
def test_a_share_lies_between_none_and_all(events, presumed, now):
    shares = Shares()
    for event, flow, units, at in events:
        if event == "served":
            shares.served(flow, units, 100.0, at)
        else:
            (shares.joined if event == "joined" else shares.left)(flow, at)
    assert 0 <= shares.expected("a", presumed, now) <= 1


@given(ahead=UNITS, own=UNITS, share=st.floats(0, 1), rate=st.floats(1e-3, 1e6), first=st.floats(0, 1e6))
def test_a_wait_is_what_stands_before_by_the_rate_and_longer_with_a_small_share(ahead, own, share, rate, first):
    alone = wait(ahead, 0.0, 1.0, rate, first)
    assert alone == pytest.approx(ahead / rate + first)
    assert wait(ahead, own, share, rate, first) >= alone
    assert isfinite(wait(ahead, own, max(share, 1e-6), rate, first))
    assert wait(ahead, own, 0.0, rate, first) == alone, "a share that is not known says nothing"


def test_the_first_slot_is_free_when_what_is_expected_to_end_first_does():
    assert free([300.0, 100.0, 200.0], slots=3, speed=50.0) == 2.0
    assert free([300.0, -5.0], slots=2, speed=50.0) == 0.0
    assert free([300.0], slots=2, speed=50.0) == 0.0
    assert free([], slots=1, speed=50.0) == 0.0
    assert free([300.0], slots=0, speed=50.0) == 0.0
