"""What is learned of workers: that it comes to what was measured, and that no single measurement makes it absurd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.learned import DECODE, FASTEST, PREFILL, SLOWEST, Learned

ANY = st.one_of(st.floats(-1e12, 1e12), st.sampled_from([0.0, -1.0, 2.0**63]))


def test_nothing_is_known_in_the_beginning_but_what_holds_elsewhere():
    assert (Learned().prefill(), Learned().decode()) == (PREFILL, DECODE)
    assert (Learned().prefill(0.5), Learned().decode(0.25)) == (0.5, 0.25)


@given(st.floats(1e-4, 1.0), st.floats(2e-3, 1.0))
def test_speeds_come_to_what_is_measured(prefill, decode):
    learned = Learned()
    for _ in range(200):
        learned.has_read(1000.0, 1000.0 * prefill, 1000.0 * learned.prefill())
        learned.has_written(200.0, 200.0 * decode, 200.0 * learned.decode())
    assert learned.prefill() == pytest.approx(prefill, rel=0.1)
    assert learned.decode() == pytest.approx(decode, rel=0.1)


def test_one_measurement_that_is_off_counts_for_four_times_what_was_expected():
    spoilt, fourfold = Learned(), Learned()
    for learned, seconds in ((spoilt, 1e9), (fourfold, 4.0)):
        learned.has_read(1000.0, seconds, 1.0)
        learned.has_written(1000.0, seconds, 1.0)
    assert spoilt == fourfold


STEPS = st.lists(
    st.tuples(st.sampled_from(["has_read", "has_written", "has_loaded", "has_remembered", "ended", "fade"]), ANY, ANY), max_size=40
)


@given(STEPS)
def test_whatever_is_measured_what_is_known_can_be_computed_with(steps):
    learned = Learned()
    for step, one, other in steps:
        if step in {"has_read", "has_written"}:
            getattr(learned, step)(min(one, 1e9), other, abs(other) / 2)
        elif step == "has_remembered":
            learned.has_remembered(one, max(1.0, other))
        elif step == "ended":
            learned.ended(one > 0)
        else:
            getattr(learned, step)(one)
        assert FASTEST <= learned.prefill() <= SLOWEST
        assert FASTEST <= learned.decode() <= SLOWEST
        assert 0.0 <= learned.load <= 3600.0
        assert 0.0 <= learned.trust <= 1.0
        assert 0.0 <= learned.errors <= 1.0


def test_loading_is_the_mean_of_the_last_times():
    learned = Learned()
    learned.has_loaded(8.0)
    assert learned.load == 8.0
    learned.has_loaded(4.0)
    assert learned.load == 6.0


def test_who_fails_is_blamed_and_forgiven_with_time():
    learned = Learned()
    for _ in range(30):
        learned.ended(failed=True)
    assert learned.errors > 0.9
    learned.fade(60.0)
    assert learned.errors == pytest.approx(0.36, abs=0.03)
    for _ in range(60):
        learned.ended(failed=False)
    assert learned.errors == 0.0


def test_what_is_old_gives_way_to_what_holds_elsewhere():
    learned = Learned()
    for _ in range(100):
        learned.has_read(1000.0, 100.0, 100.0)
        learned.has_remembered(0.0, 100.0)
    assert learned.prefill(0.001) > 0.09
    assert learned.trust < 0.01
    learned.fade(1e5)
    assert learned.prefill(0.001) == pytest.approx(0.001)
    assert learned.trust == pytest.approx(1.0)
    learned.fade(0.0)  # a clock that goes back
    assert learned.prefill(0.001) == pytest.approx(0.001)
