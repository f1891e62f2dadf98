"""What a request would take: measured numbers make it, absurd ones never win, and of what is about as good two are drawn."""

from math import inf, isfinite, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw.core.score import NEAR, NEARLY, WORST, Candidate, draw, near, score, sound, total

GOOD = Candidate(prefill=0.001, decode=0.01)
#: Whatever an agent, a clock or a division may bring.
ANY = st.one_of(st.floats(), st.sampled_from([nan, inf, -inf, 2.0**63, -1.0, 0.0]), st.floats(0, 10))
CANDIDATES = st.builds(
    Candidate, prefill=ANY, decode=ANY, cold=ANY, ahead=ANY, used=ANY, cached=ANY, errors=ANY, rtt=ANY, pressure=ANY
)  # fmt: skip


@given(CANDIDATES, st.floats(0, 1e7), st.floats(0, 1e7))
def test_whatever_was_measured_a_total_is_a_time(candidate, prompt, answer):
    found = total(candidate, prompt, answer)
    assert 0.0 <= found <= WORST
    parts = score(candidate, prompt, answer)
    assert parts.total == found
    assert all(0.0 <= part <= WORST for part in (parts.ttft, parts.finish, parts.penalty))


@pytest.mark.parametrize("lie", [nan, inf, -inf, -(2.0**63), 2.0**63])
@pytest.mark.parametrize("field", ["prefill", "cold", "ahead", "rtt"])
def test_an_absurd_number_never_wins(field, lie):
    assert total(replace(GOOD, **{field: lie}), 1000.0, 100.0) == WORST > total(GOOD, 1000.0, 100.0)


@pytest.mark.parametrize("field", ["prefill", "decode", "cold", "ahead", "used", "errors", "rtt", "pressure"])
@given(worse=st.floats(0.001, 1.0), prompt=st.floats(1, 1e4), answer=st.floats(1, 1e3))
def test_everything_that_takes_time_makes_it_longer(field, worse, prompt, answer):
    assert total(replace(GOOD, **{field: getattr(GOOD, field) + worse}), prompt, answer) > total(GOOD, prompt, answer)


@given(st.floats(1, 1e4), st.floats(0, 1))
def test_what_is_remembered_is_not_read(prompt, share):
    assert total(replace(GOOD, cached=prompt * share), prompt, 100.0) <= total(GOOD, prompt, 100.0)


def test_the_parts_of_a_score_are_the_seconds_that_they_are_named_after():
    found = score(Candidate(prefill=0.001, decode=0.01, cold=2.0, ahead=1.0, cached=500.0, errors=0.5, rtt=0.1), 1372.0, 100.0)
    assert found.ttft == pytest.approx(0.1 + 2.0 + 1.0 + 1.0)
    assert found.finish == pytest.approx(found.ttft + 1.0)
    assert found.penalty == pytest.approx(0.5 * (10.0 + found.finish))
    assert found.total == pytest.approx(found.ttft + 0.02 * 1.0 + found.penalty)


def test_sound_numbers_stay_and_others_are_the_worst():
    assert (sound(1.5), sound(0.0), sound(WORST)) == (1.5, 0.0, WORST)
    assert [sound(lie, 7.0) for lie in (nan, inf, -1.0, 8.0)] == [7.0] * 4


@given(st.lists(st.floats(0, WORST), min_size=1, max_size=20))
def test_what_is_about_as_good_as_the_best_is_near(totals):
    found = near(totals)
    assert totals.index(min(totals)) in found
    assert all((place in found) == (each <= min(totals) * (1 + NEAR) + NEARLY) for place, each in enumerate(totals))


@given(st.integers(2, 1000), st.integers(0, 2**64))
def test_two_different_ones_are_drawn(count, dice):
    one, other = draw(count, dice)
    assert one != other
    assert 0 <= one < count
    assert 0 <= other < count


def test_every_pair_is_drawn():
    assert {draw(4, dice) for dice in range(100)} == {(one, other) for one in range(4) for other in range(4) if one != other}
    assert isfinite(total(GOOD, 0.0, 0.0))
