"""What a request would take: measured numbers make it, absurd ones never win, and of what is about as good two are drawn."""

from math import inf, isfinite, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw.core.score import FAILURE, NEAR, NEARLY, OTHERS, REST, WORST, Candidate, draw, near, sound, total

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


def test_a_total_is_the_sum_of_what_each_part_takes():
    bare = Candidate(prefill=0.001, decode=0.0, cached=500.0)
    reading, ttft, writing = 1.0, 0.1 + 2.0 + 1.0 + 1.0, 1.0
    slow = replace(bare, rtt=0.1, cold=2.0, ahead=1.0)
    parts = {
        "reading": (bare, reading),
        "ttft": (slow, ttft),
        "writing": (replace(slow, decode=0.01), ttft + REST * writing),
        "others": (replace(slow, decode=0.01, used=3.0), ttft + REST * writing + OTHERS * 3.0 * reading),
        "errors": (replace(slow, decode=0.01, errors=0.5), ttft + REST * writing + 0.5 * (FAILURE + ttft + writing)),
        "pressure": (replace(slow, decode=0.01, pressure=0.5), ttft + REST * writing + 0.5 * (ttft + writing)),
        "all": (
            replace(slow, decode=0.01, used=3.0, errors=0.5, pressure=0.5),
            ttft + REST * writing + OTHERS * 3.0 * reading + 0.5 * (FAILURE + ttft + writing) + 0.5 * (ttft + writing),
        ),
    }
    assert {name: total(of, 1372.0, 100.0) for name, (of, _) in parts.items()} == pytest.approx(
        {name: seconds for name, (_, seconds) in parts.items()}
    )


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
