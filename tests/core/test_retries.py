from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.retries import MOST, REGAIN, TENANTS, Retries, Shares


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


# -- tenants --------------------------------------------------------------------------------------------------------------


def offers(budget: Shares, tenant: str, count: int) -> None:
    for _ in range(count):
        budget.offer(tenant, 0.0)


def takes(budget: Shares, tenant: str, tries: int = 1000, now: float = 0.0) -> int:
    return sum(budget.take(tenant, now) for _ in range(tries))


def test_no_tenant_takes_what_others_saved():
    budget = Shares(0.2, 3)
    offers(budget, "many", 500)
    offers(budget, "few", 10)
    assert takes(budget, "few") == 5
    assert budget.left("few", 0.0) < 1.0
    assert takes(budget, "many") >= 99


def test_many_tenants_take_no_more_than_there_is():
    budget = Shares(0.2, 3)
    assert sum(takes(budget, str(tenant)) for tenant in range(20)) == 3
    assert takes(budget, "0", now=REGAIN / 3) == 1


def test_an_only_tenant_has_all_of_it():
    budget = Shares(0.2, 3)
    offers(budget, "one", 100)
    assert 22 <= takes(budget, "one") <= 23


def test_only_so_many_tenants_are_known():
    budget = Shares(0.2, 3)
    offers(budget, "first", 100)
    for number in range(TENANTS):
        offers(budget, str(number), 1)
    assert len(budget._each) == TENANTS
    assert budget.left("first", 0.0) == 3.0


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.floats(0, 30)), max_size=300))
def test_neither_all_nor_one_spend_more_than_there_is(steps):
    budget, now, offered, spent = Shares(0.2, 3), 0.0, dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    for is_offer, tenant, seconds in steps:
        now += seconds
        if is_offer:
            budget.offer(tenant, now)
            offered[tenant] += 1
        else:
            spent[tenant] += budget.take(tenant, now)
        least = 3 * (1 + now / REGAIN) + 1e-6
        assert all(spent[each] <= offered[each] * 0.2 + least for each in "abc")
        assert sum(spent.values()) <= sum(offered.values()) * 0.2 + least
