"""What a request holds: enough for all that it may use, of all that it falls under or of nothing, and nothing of it is ever lost."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgw.core import price
from mindgw.core.ceiling import Ceiling
from mindgw.core.price import Price
from mindgw.core.quota import ALERT, BLOCK, MODES, QUEUE_LOW, SHADOW, SOFT, TOKENS, USD, Budget, Claim, Leases, Settled
from mindgw.core.usage import Tokens
from mindgw.gateway.reservation import REFUSING, Reservation, Sizes, Terms

FREE = Price(0, 0)
#: A dollar for a million tokens of the prompt, three of the answer: millionths for each token.
DEAR = Price(10**6, 3 * 10**6)
KEY, TEAM, ORG = (Budget(scope, TOKENS, "total") for scope in ("key:k", "team:t", "org:o"))
MONEY = Budget("org:o", USD, "total")


def claim(budget, mode=BLOCK, limit=10**6):
    return Claim(budget, "total", mode, limit)


def lent(**amounts):
    """Leases of the budgets that are named in capitals above."""
    leases = Leases()
    for name, amount in amounts.items():
        leases.lend(globals()[name], amount, 0, amount, 10**6)
    return leases


def terms(*claims, tariff=DEAR):
    return Terms.of(claims, tariff)


def hard(leases, *claims, prompt=10, answers=1, output=100, tariff=DEAR, usual=50):
    return Reservation(leases, terms(*claims, tariff=tariff), Sizes(tariff, usual, prompt, answers, output, Ceiling(prompt)))


def easy(leases, *claims, usual=50, tariff=DEAR):
    return Reservation(leases, terms(*claims, tariff=tariff), Sizes(tariff, usual))


def used(prompt, completion):
    return Tokens(prompt, completion, 0, "engine")


# -- what is wanted ----------------------------------------------------------------------------------------------------


def test_a_hard_limit_wants_the_ceiling_of_the_prompt_and_the_longest_answer():
    reservation = hard(lent(), claim(KEY), claim(MONEY), answers=2)
    assert reservation.most == {TOKENS: 210, USD: 610}
    assert reservation.least == {TOKENS: 12, USD: 16}
    assert reservation.hard and reservation.held == 0 and reservation.budgets == ()


def test_others_want_what_is_usual_and_need_the_smallest_step():
    reservation = easy(lent(), claim(KEY, SOFT), claim(MONEY, SOFT))
    assert reservation.most == {TOKENS: 50, USD: 150}
    assert reservation.least == {TOKENS: 1, USD: 1}
    assert not reservation.hard


@pytest.mark.parametrize(("tariff", "usd"), [(Price(10**6, 0), 50), (Price(0, 10**6), 50), (Price(1, 0), 1), (Price(0, 1), 1)])
def test_a_price_of_either_kind_of_tokens_counts(tariff, usd):
    """An answer that costs something while its prompt is free would else pass every limit of money for ever."""
    assert easy(lent(), claim(MONEY, SOFT), tariff=tariff).most[USD] == usd


def test_money_is_not_counted_where_nothing_limits_it():
    assert hard(lent(), claim(KEY)).most == {TOKENS: 110}
    assert easy(lent(), claim(KEY, SOFT)).most == {TOKENS: 50}


def test_embeddings_reserve_their_prompt_alone():
    leases = lent(KEY=10, MONEY=10)
    reservation = hard(leases, claim(KEY), claim(MONEY), answers=0, output=0)
    assert reservation.most == reservation.least == {TOKENS: 10, USD: 10}
    assert reservation.reserve()
    assert (reservation.held, reservation.cap, reservation.paid) == (10, 0, 0)
    assert reservation.settle(used(7, 0)).draws == ((KEY, 7), (MONEY, 7))


def test_embeddings_are_not_squeezed():
    reservation = hard(lent(KEY=9), claim(KEY), answers=0, output=0)
    assert not reservation.reserve() and not reservation.squeeze()
    assert hard(lent(KEY=10), claim(KEY), answers=0, output=0).squeeze()


# -- holding -----------------------------------------------------------------------------------------------------------


def test_all_budgets_are_held_or_none():
    leases = lent(KEY=1000, ORG=109)
    reservation = hard(leases, claim(KEY), claim(ORG))
    assert not reservation.reserve()
    assert (leases.free(KEY), leases.free(ORG)) == (1000, 109)
    leases.lend(ORG, 1, 0, 110, 10**6)
    assert reservation.reserve()
    assert (reservation.held, reservation.cap, reservation.paid, reservation.budgets) == (110, 100, 100, (KEY, ORG))
    assert (leases.free(KEY), leases.free(ORG)) == (890, 0)


def test_holding_twice_is_no_error():
    leases = lent(KEY=1000)
    reservation = hard(leases, claim(KEY))
    assert reservation.reserve() and reservation.reserve() and reservation.squeeze()
    assert leases.free(KEY) == 890


@pytest.mark.parametrize("mode", [QUEUE_LOW, ALERT, SHADOW])
def test_limits_that_refuse_nobody_are_held_as_far_as_they_go(mode):
    leases = lent(KEY=1000, ORG=10)
    for make in (hard, easy):
        reservation = make(leases, claim(KEY, BLOCK if make is hard else SOFT), claim(ORG, mode))
        assert reservation.reserve()
        assert reservation.budgets == (KEY,)
        reservation.release()
    leases.lend(ORG, 1000, 0, 1010, 10**6)
    reservation = hard(leases, claim(KEY), claim(ORG, mode))
    assert reservation.reserve()
    assert reservation.budgets == (KEY, ORG)


@pytest.mark.parametrize("mode", [QUEUE_LOW, ALERT, SHADOW])
def test_a_request_under_such_limits_alone_holds_nothing_and_passes(mode):
    reservation = easy(lent(), claim(KEY, mode))
    assert reservation.reserve()
    assert (reservation.held, reservation.budgets, reservation.cap) == (50, (), 0)
    assert reservation.settle(used(10, 10)) == Settled()


def test_who_would_refuse_is_named():
    leases = lent(KEY=5)
    reservation = hard(leases, claim(KEY), claim(ORG, ALERT), claim(MONEY))
    assert [short.budget for short in reservation.short(reservation.most)] == [KEY, MONEY]


def test_limits_that_are_gone_do_not_count():
    leases = lent(ORG=1000)
    gone, stays, soft = claim(KEY), claim(ORG), claim(TEAM, SOFT)
    reservation = hard(leases, gone, stays, soft)
    assert reservation.keep({ORG}) == [gone, soft]
    assert reservation.reserve()
    assert reservation.budgets == (ORG,)
    assert hard(leases, gone).keep(()) == [gone]


def test_without_any_limit_left_it_just_passes():
    reservation = hard(lent(), claim(KEY))
    reservation.keep(())
    assert reservation.reserve()
    assert reservation.settle(used(10, 10)) == Settled()


# -- soft beside hard --------------------------------------------------------------------------------------------------


def test_a_soft_limit_beside_a_hard_one_does_not_refuse_what_might_be_used():
    """Soft means: until more was used. One token is left to the team, and the key may have all it wants."""
    leases = lent(KEY=1000, TEAM=1)
    reservation = hard(leases, claim(KEY), claim(TEAM, SOFT))
    assert not reservation.reserve()
    assert leases.free(KEY) == 1000
    assert reservation.squeeze()
    assert (reservation.cap, reservation.held, reservation.budgets) == (100, 110, (KEY, TEAM))
    assert (leases.free(KEY), leases.free(TEAM)) == (890, 0)
    settled = reservation.settle(used(10, 20))
    assert settled.draws == ((KEY, 30), (TEAM, 1))
    assert settled.over == 29
    assert (leases.free(KEY), leases.drawn(TEAM)) == (970, 1)


def test_a_soft_limit_that_is_used_up_refuses_beside_a_hard_one_too():
    leases = lent(KEY=1000, TEAM=0)
    reservation = hard(leases, claim(KEY), claim(TEAM, SOFT))
    assert not reservation.reserve() and not reservation.squeeze()
    assert leases.free(KEY) == 1000
    assert [[short.budget for short in part.short(part.least)] for part in reservation.parts] == [[], [TEAM]]


def test_a_soft_limit_takes_what_is_usual_beside_a_hard_one():
    leases = lent(KEY=1000, TEAM=1000)
    reservation = hard(leases, claim(KEY), claim(TEAM, SOFT), claim(ORG, ALERT))
    assert reservation.reserve()
    assert (leases.free(KEY), leases.free(TEAM)) == (890, 950)
    assert reservation.budgets == (KEY, TEAM)
    reservation.release()
    assert (leases.free(KEY), leases.free(TEAM)) == (1000, 1000)
    assert reservation.reserve()
    reservation.end()
    assert (leases.free(KEY), leases.free(TEAM)) == (1000, 1000)


@given(st.lists(st.tuples(st.sampled_from([KEY, TEAM, ORG, MONEY]), st.sampled_from(MODES)), unique_by=lambda pair: pair[0]))
def test_terms_lose_no_claim(pairs):
    claims = [claim(budget, mode) for budget, mode in pairs]
    made = terms(*claims)
    parts = [made] if made.beside is None else [made, made.beside]
    assert sorted(itertools.chain(*(part.claims for part in parts)), key=lambda one: one.budget) == sorted(
        claims, key=lambda one: one.budget
    )
    for part in parts:
        assert part.budgets == tuple(one.budget for one in part.claims) == tuple(sorted(part.budgets))
        assert part.hard == any(one.mode == BLOCK for one in part.claims)
        assert part.dear == (MONEY in part.budgets)
    assert made.hard == any(mode == BLOCK for _, mode in pairs)
    assert made.beside is None or {one.mode for one in made.beside.claims} == {SOFT}
    assert made.beside is None or made.beside.beside is None


# -- squeezing ---------------------------------------------------------------------------------------------------------


@given(
    free=st.integers(0, 2000), money=st.integers(0, 5000), prompt=st.integers(0, 300), answers=st.integers(1, 8),
    output=st.integers(1, 300), tariff=st.builds(Price, st.integers(0, 3 * 10**6), st.integers(0, 3 * 10**6)),
)  # fmt: skip
def test_the_longest_answer_that_tokens_and_money_allow_is_held(free, money, prompt, answers, output, tariff):
    leases = lent(KEY=free, MONEY=money)
    reservation = hard(leases, claim(KEY), claim(MONEY), prompt=prompt, answers=answers, output=output, tariff=tariff)

    def fits(length):
        total = answers * length
        return prompt + total <= free and price.cost(tariff, prompt, total) <= money

    held = reservation.squeeze()
    longest = max((length for length in range(1, output + 1) if fits(length)), default=0)
    assert held == bool(longest)
    assert reservation.cap == longest
    if held:
        assert reservation.held == prompt + answers * longest
        assert leases.free(KEY) == free - prompt - answers * longest
        assert leases.free(MONEY) == money - price.cost(tariff, prompt, answers * longest)
    else:
        assert (leases.free(KEY), leases.free(MONEY)) == (free, money)


@given(st.integers(0, 200), st.integers(0, 200))
def test_soft_limits_are_held_as_far_as_there_is_something(free, money):
    leases = lent(KEY=free, MONEY=money)
    reservation = easy(leases, claim(KEY, SOFT), claim(MONEY, SOFT))
    assert reservation.squeeze() == (free > 0 and money > 0)
    taken = (min(free, 50), min(money, 150)) if free and money else (0, 0)
    assert (free - leases.free(KEY), money - leases.free(MONEY)) == taken


def test_limits_that_refuse_nobody_shorten_no_answer():
    leases = lent(KEY=60, ORG=12)
    reservation = hard(leases, claim(KEY), claim(ORG, ALERT))
    assert reservation.squeeze()
    assert (reservation.cap, reservation.budgets) == (50, (KEY,))


# -- ends --------------------------------------------------------------------------------------------------------------


def test_what_was_used_is_drawn_and_the_rest_is_free_again():
    leases = lent(KEY=1000, MONEY=1000)
    reservation = hard(leases, claim(KEY), claim(MONEY))
    assert reservation.reserve()
    settled = reservation.settle(used(8, 20))
    assert settled.draws == ((KEY, 28), (MONEY, 68))
    assert settled.over == 0
    assert (leases.free(KEY), leases.drawn(KEY), leases.free(MONEY), leases.drawn(MONEY)) == (972, 28, 932, 68)
    assert (reservation.held, reservation.budgets) == (0, ())


def test_more_than_was_held_is_drawn_as_far_as_the_lease_goes():
    leases = lent(KEY=120)
    reservation = hard(leases, claim(KEY))
    assert reservation.reserve()
    settled = reservation.settle(used(100, 100))
    assert (settled.draws, settled.over) == (((KEY, 120),), 80)


def test_a_loan_that_comes_after_the_end_holds_nothing():
    for end in (lambda one: one.end(), lambda one: one.settle(used(1, 1))):
        leases = lent()
        reservation = hard(leases, claim(KEY))
        assert not reservation.reserve()
        end(reservation)
        leases.lend(KEY, 1000, 0, 1000, 10**6)
        assert reservation.is_over and not reservation.reserve() and not reservation.squeeze()
        assert leases.free(KEY) == 1000


def test_what_was_released_may_be_held_again():
    leases = lent(KEY=110)
    reservation = hard(leases, claim(KEY))
    for _ in range(3):
        assert reservation.reserve()
        assert leases.free(KEY) == 0
        reservation.release()
        reservation.release()
        assert leases.free(KEY) == 110


def test_a_second_end_changes_nothing():
    leases = lent(KEY=1000)
    reservation = hard(leases, claim(KEY))
    assert reservation.reserve()
    reservation.settle(used(10, 10))
    assert reservation.settle(used(10, 10)) == Settled()
    reservation.end()
    reservation.release()
    assert (leases.free(KEY), leases.drawn(KEY)) == (980, 20)


def test_a_limit_that_goes_away_meanwhile_draws_nothing():
    leases = lent(KEY=1000, ORG=1000)
    reservation = hard(leases, claim(KEY), claim(ORG))
    assert reservation.reserve()
    leases.forget(KEY)
    assert reservation.settle(used(10, 10)).draws == ((ORG, 20),)


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["reserve", "squeeze", "release", "settle", "end", "lend"]), st.integers(0, 400)),
    max_size=60,
)


@settings(deadline=None)
@given(
    modes=st.lists(st.sampled_from(MODES), min_size=4, max_size=4),
    shapes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3), st.integers(0, 60)), min_size=4, max_size=4),
    steps=STEPS,
)
def test_in_any_order_what_was_lent_is_free_held_or_drawn(modes, shapes, steps):
    """The model: what each request holds of each budget, and sums."""
    budgets = [KEY, TEAM, ORG, MONEY]
    claims = [claim(budget, mode) for budget, mode in zip(budgets, modes, strict=True)]
    leases = Leases()
    requests = [hard(leases, *claims, prompt=prompt, answers=n, output=length if n else 0) for prompt, n, length in shapes]
    total, drawn = dict.fromkeys(budgets, 0), dict.fromkeys(budgets, 0)
    ended = set()
    for which, step, amount in steps:
        request = requests[which]
        if step == "lend":
            budget = budgets[which]
            leases.lend(budget, amount, 0, 0, 10**6)
            total[budget] += amount
        elif step == "settle":
            settled = request.settle(used(amount // 2, amount - amount // 2))
            assert which not in ended or settled == Settled()
            for budget, n in settled.draws:
                assert 0 < n <= (amount if budget.unit == TOKENS else 3 * amount)
                drawn[budget] += n
            ended.add(which)
        elif step in {"release", "end"}:
            getattr(request, step)()
            ended |= {which} if step == "end" else set()
        else:
            before = bool(request._hold)
            held = getattr(request, step)()
            assert held or not before or which in ended
            assert not (held and which in ended)
            refused = any(one.mode in REFUSING for part in request.parts for one in part.short(part.least))
            assert held or refused or which in ended or step == "reserve"
        for budget in budgets:
            held = sum(n for one in requests for part in one.parts if part._hold for lease, n in part._hold.taken if lease.budget == budget)
            assert leases.drawn(budget) == drawn[budget]
            assert leases.free(budget) >= 0 and held >= 0
            assert leases.free(budget) + held + drawn[budget] == total[budget]
    for one in requests:
        one.end()
    assert all(leases.free(budget) + drawn[budget] == total[budget] for budget in budgets)
