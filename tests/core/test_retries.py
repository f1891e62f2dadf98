from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.retries import MOST, REGAIN, Retries


def taken(budget: Retries, tries: int, now: float = 0.0) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_a_few_are_there_for_who_asks_rarely():
    assert taken(Retries(0.2, 3), 100) == 3


def test_each_request_adds_its_share():
    budget = Retries(0.2, 3)
    for _ in range(100):
        budget.offer()
    assert 22 <= taken(budget, 1000) <= 23


def test_the_least_comes_back_with_time_and_no_more():
    budget = Retries(0.2, 3)
    assert taken(budget, 9) == 3
    assert taken(budget, 9, REGAIN / 6) == 0
    assert taken(budget, 9, REGAIN / 3) == 1
    assert taken(budget, 9, 100 * REGAIN) == 3


def test_no_more_than_so_many_are_saved():
    budget = Retries(1.0, 3)
    for _ in range(3 * round(MOST)):
        budget.offer()
    assert taken(budget, 2 * round(MOST)) == MOST


def test_a_budget_of_nothing_allows_nothing():
    budget = Retries(0.0, 0)
    budget.offer()
    assert not budget.take(1e9)


def test_a_clock_that_goes_back_gives_nothing():
    budget = Retries(0.0, 3, 100.0)
    assert taken(budget, 9, 100.0) == 3
    assert taken(budget, 9, 0.0) == 0
    assert taken(budget, 9, 100.0) == 0


@given(st.lists(st.tuples(st.sampled_from(["offer", "take"]), st.floats(0, 30)), max_size=300), st.sampled_from([0.0, 0.2, 0.5]))
def test_no_order_of_events_spends_more_than_there_is(steps, share):
    budget, now, offered, spent = Retries(share, 3), 0.0, 0, 0
    for what, seconds in steps:
        now += seconds
        if what == "offer":
            budget.offer()
            offered += 1
        else:
            spent += budget.take(now)
        assert spent <= offered * share + 3 * (1 + now / REGAIN) + 1e-6
