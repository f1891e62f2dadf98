"""Limits, windows and leases; the state machine holds the leases against a bank of a few lines."""

from collections import Counter
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench import quota as bench
from mindgw.core import quota
from mindgw.core.quota import DAY, GRACE, IDLE, MONTH, MOST, PERIODS, TOKENS, TOTAL, UNITS, USD, Budget, Claim, Leases, Row, Settled

TODAY, TOMORROW = "2026-11-21", "2026-11-22"
BUDGET = Budget("key:k", TOKENS, "2026-11")
SPEND = Budget("key:k", USD, "2026-11")
days = st.dates(date(1, 1, 1), date(9998, 12, 31)).map(str)


def claim(budget: Budget = BUDGET, limit: int = 10_000) -> Claim:
    return Claim(budget, MONTH, quota.BLOCK, limit)


def lent(*grants: tuple[Budget, int], limit: int = 10_000, used: int = 0) -> Leases:
    leases = Leases()
    for budget, amount in grants:
        leases.lend(budget, amount, used, amount, limit)
    return leases


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unit", "limit"),
    [
        ("5M/month", TOKENS, (5_000_000, MONTH)),
        ("2.5k/day", TOKENS, (2_500, DAY)),
        ("1_000/day", TOKENS, (1_000, DAY)),
        ("100/total", TOKENS, (100, TOTAL)),
        ("0/total", TOKENS, (0, TOTAL)),
        ("1.50/day", USD, (1_500_000, DAY)),
        ("12.50/month", USD, (12_500_000, MONTH)),
        ("0.000001/total", USD, (1, TOTAL)),
        ("1.5k/month", USD, (1_500_000_000, MONTH)),
        (" 7 g / month ".replace(" g", "g"), TOKENS, (7_000_000_000, MONTH)),
        ("1B/day", TOKENS, (10**9, DAY)),
        ("2.0/day", TOKENS, (2, DAY)),
        ("9007199254740992/total", TOKENS, (MOST, TOTAL)),
        ("000000000000000000000000001/day", TOKENS, (1, DAY)),
    ],
)
def test_a_limit_is_an_amount_and_a_period(text, unit, limit):
    assert quota.parse_limit(text, unit) == limit


@pytest.mark.parametrize(
    ("text", "unit", "says"),
    [
        ("", TOKENS, "such as 5M/month"),
        ("5M", TOKENS, "such as 5M/month, not '5M'"),
        ("12.5", USD, "such as 12.50/month"),
        ("5M/week", TOKENS, "5M/day, /month or /total, not 'week'"),
        ("5M/Month", TOKENS, "not 'Month'"),
        ("5M/", TOKENS, "not ''"),
        ("/day", TOKENS, "a plain number"),
        ("-5/day", TOKENS, r"\(and not less than 0\)"),
        ("NaN/day", TOKENS, "a plain number"),
        ("inf/day", TOKENS, "a plain number"),
        ("1e6/day", TOKENS, "a plain number"),
        ("5T/day", TOKENS, "may end in k, M or G"),
        ("1,000/day", TOKENS, "a plain number"),
        ("1__000/day", TOKENS, "a plain number"),
        ("_1/day", TOKENS, "a plain number"),
        ("0x10/day", TOKENS, "a plain number"),
        ("٣/day", TOKENS, "a plain number"),
        ("$5/day", USD, "such as 12.50/month"),
        ("0.5/day", TOKENS, "one token: '0.5' is finer"),
        ("1.2345k/day", TOKENS, "one token"),
        ("0.0000001/day", USD, "a millionth of a dollar"),
        ("9007199254740993/total", TOKENS, "the largest limit is 9007199254740992"),
        ("9007199255/total", USD, "the largest limit is 9007199254, "),
        ("9" * 500_000 + "/day", TOKENS, "the largest limit"),
        ("1." + "1" * 500_000 + "/day", TOKENS, "is finer"),
    ],
)
def test_what_is_no_limit_is_told_what_one_is(text, unit, says):
    with pytest.raises(ValueError, match=says) as refused:
        quota.parse_limit(text, unit)
    assert len(str(refused.value)) < 200


@given(st.text(max_size=12) | st.text("0123456789._kMG/daymonthtl-", max_size=14), st.sampled_from(UNITS))
def test_any_text_is_a_limit_or_a_reason(text, unit):
    try:
        limit, period = quota.parse_limit(text, unit)
    except ValueError:
        return
    assert 0 <= limit <= MOST
    assert period in PERIODS


@given(st.integers(0, MOST), st.sampled_from(PERIODS))
def test_every_limit_can_be_written(limit, period):
    assert quota.parse_limit(f"{limit}/{period}") == (limit, period)
    dollars = f"{limit // 10**6}.{limit % 10**6:06}"
    assert quota.parse_limit(f"{dollars}/{period}", USD) == (limit, period)


# -- windows -----------------------------------------------------------------------------------------------------------


@given(days)
def test_a_day_lies_in_its_windows(day):
    assert [quota.window(period, day) for period in PERIODS] == [day, day[:7], "total"]


@given(days, st.sampled_from([DAY, MONTH]))
def test_a_window_is_over_on_the_day_that_it_resets_and_not_the_day_before(day, period):
    window, end = quota.window(period, day), quota.resets(period, day)
    last = str(date.fromisoformat(end) - timedelta(days=1))
    assert quota.window(period, last) == window
    assert not quota.is_over(window, last)
    assert quota.is_over(window, end)
    assert not quota.is_over(quota.window(period, end), day), "a clock that went back ends nothing"


@given(days)
def test_a_total_never_ends(day):
    assert quota.resets(TOTAL, day) == ""
    assert not quota.is_over(quota.window(TOTAL, day), day)


@pytest.mark.parametrize(
    "day", ["", "2026-11", "2026-11-31", "2026-13-01", "2026-00-01", "2026-11-00", "0000-01-01", "2026-11-21x", "٢026-11-21"]
)
def test_what_is_no_day_has_no_end(day):
    with pytest.raises(ValueError, match="there is no day"):
        quota.resets(DAY, day)


def test_there_are_three_periods():
    with pytest.raises(ValueError, match="no period 'week': day, month or total"):
        quota.window("week", TODAY)


# -- grants ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "unit", "amount"),
    [(0, TOKENS, 1), (100, TOKENS, 1), (6400, TOKENS, 100), (10**12, TOKENS, 200_000), (10**12, USD, 2_000_000)],
)
def test_a_quantum_is_a_small_part_of_a_limit(limit, unit, amount):
    assert quota.quantum(limit, unit) == amount


@pytest.mark.parametrize(
    ("left", "least", "want", "granted"),
    [
        (6400, 10, 50, 100),  # plenty: a quantum
        (6400, 10, 700, 700),  # plenty, for one who needs more than a quantum
        (420, 10, 50, 100),  # as much as 5 % stays
        (419, 10, 50, 50),  # less would stay: only what is wanted
        (30, 10, 50, 30),  # the rest
        (10, 10, 50, 10),
        (9, 10, 50, 0),  # which is too little
        (0, 0, 50, 0),
        (-5, 0, 50, 0),
    ],
)
def test_a_grant_is_large_only_while_there_is_plenty(left, least, want, granted):
    assert quota.scarce(6400) == 320
    assert quota.grant(left, 6400, TOKENS, least, want) == granted


@given(st.integers(-10, 10**6), st.integers(0, 10**6), st.sampled_from(UNITS), st.integers(0, 10**5), st.integers(0, 10**5))
def test_a_grant_never_exceeds_what_is_left(left, limit, unit, least, more):
    granted = quota.grant(left, limit, unit, least, least + more)
    assert granted == 0 or least <= granted <= left


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_request_holds_uses_a_part_and_frees_the_rest():
    leases = lent((BUDGET, 1000), (SPEND, 500))
    claims = [claim(), claim(SPEND)]
    assert leases.cover(claims, {TOKENS: 1000, USD: 500}) == ()
    hold = leases.hold(claims, {TOKENS: 900, USD: 0})
    assert hold.amounts == {TOKENS: 900, USD: 0}
    assert hold.budgets == (BUDGET, SPEND)
    assert (leases.free(BUDGET), leases.free(SPEND)) == (100, 500)
    settled = leases.settle(hold, {TOKENS: 300, USD: 20})
    assert settled == Settled(((BUDGET, 300), (SPEND, 20)))
    assert (leases.free(BUDGET), leases.free(SPEND)) == (700, 480)
    assert leases.row(BUDGET) == Row(0, 1000, 10_000)
    leases.written(settled.draws)
    assert leases.row(BUDGET) == Row(300, 700, 10_000)
    assert leases.row(BUDGET).left == 9_000


def test_claims_whose_lease_is_too_small_are_named():
    leases = lent((BUDGET, 100))
    assert leases.cover([claim(), claim(SPEND)], {TOKENS: 100}) == ()
    assert leases.cover([claim(), claim(SPEND)], {TOKENS: 101, USD: 1}) == (claim(), claim(SPEND))
    assert leases.free(SPEND) == 0
    assert leases.row(SPEND) is None


def test_what_does_not_fit_in_one_lease_is_held_in_none():
    leases = lent((BUDGET, 100), (SPEND, 5))
    assert leases.hold([claim(), claim(SPEND)], {TOKENS: 60, USD: 6}) is None
    assert leases.hold([claim()], {TOKENS: -1}) is None
    assert leases.hold([claim(), claim()], {TOKENS: 60}) is None  # the same budget twice
    assert (leases.free(BUDGET), leases.free(SPEND)) == (100, 5)


def test_a_hold_is_settled_once():
    leases = lent((BUDGET, 100))
    hold = leases.hold([claim()], {TOKENS: 60})
    assert leases.settle(hold, {}) == Settled()
    assert leases.settle(hold, {TOKENS: 60}) == Settled()
    assert leases.free(BUDGET) == 100


def test_more_than_was_held_comes_out_of_what_is_free_and_the_rest_is_over():
    leases = lent((BUDGET, 100), (SPEND, 100))
    hold = leases.hold([claim(), claim(SPEND)], {TOKENS: 60, USD: 10})
    assert leases.settle(hold, {TOKENS: 130, USD: 500}) == Settled(((BUDGET, 100), (SPEND, 100)), over=30)
    assert leases.free(BUDGET) == 0


def test_the_largest_of_several_overs_counts():
    other = Budget("org:o", TOKENS, "2026-11")
    leases = lent((BUDGET, 100), (other, 70))
    hold = leases.hold([claim(), claim(other)], {TOKENS: 60})
    assert leases.settle(hold, {TOKENS: 120}).over == 50


@pytest.mark.parametrize("used", [-5, float("nan"), -(2**63)])
def test_absurd_usage_draws_nothing(used):
    leases = lent((BUDGET, 100))
    assert leases.settle(leases.hold([claim()], {TOKENS: 60}), {TOKENS: used}) == Settled()
    assert leases.free(BUDGET) == 100


def test_a_budget_that_nobody_lent_can_be_claimed_for_nothing():
    leases = Leases()
    hold = leases.hold([claim()], {})
    assert leases.settle(hold, {TOKENS: 7}) == Settled((), over=7)
    assert leases.row(BUDGET) is None


def test_a_grant_is_not_negative():
    with pytest.raises(ValueError, match="a grant of -1 tokens"):
        Leases().lend(BUDGET, -1, 0, 0, 100)


def test_a_row_tells_used_up_from_reserved():
    row = Row(used=60, reserved=35, limit=100)
    assert row.left == 5
    assert not row.used_up(40)
    assert row.used_up(41)


# -- what goes back ----------------------------------------------------------------------------------------------------


def test_an_idle_lease_goes_back_and_is_forgotten():
    leases = lent((BUDGET, 100))
    assert leases.begin_return(10.0, TODAY) == {}
    assert leases.begin_return(10.0 + IDLE - 0.1, TODAY) == {}
    assert leases.begin_return(10.0 + IDLE, TODAY) == {BUDGET: 100}
    assert leases.free(BUDGET) == 0
    assert leases.begin_return(11.0 + IDLE, TODAY) == {}, "it is on its way"
    leases.returned({BUDGET: 100})
    assert leases.row(BUDGET) == Row(0, 0, 10_000)
    assert leases.begin_return(12.0 + IDLE, TODAY) == {}
    assert leases.row(BUDGET) is None


def test_a_lease_in_use_is_not_idle():
    leases = lent((BUDGET, 100))
    leases.begin_return(0.0, TODAY)
    hold = leases.hold([claim()], {TOKENS: 60})
    assert leases.begin_return(IDLE, TODAY) == {}
    assert leases.begin_return(2 * IDLE, TODAY) == {BUDGET: 40}
    assert leases.settle(hold, {TOKENS: 10}).draws == ((BUDGET, 10),)
    assert leases.begin_return(3 * IDLE, TODAY) == {}
    assert leases.begin_return(4 * IDLE, TODAY) == {BUDGET: 50}
    leases.kept({BUDGET: 50})
    assert leases.free(BUDGET) == 50


def test_what_could_not_go_back_is_free_again():
    leases = lent((BUDGET, 100))
    leases.begin_return(0.0, TODAY)
    amounts = leases.begin_return(IDLE, TODAY)
    leases.kept(amounts)
    assert leases.free(BUDGET) == 100


def test_a_window_that_is_over_goes_back_at_once_but_for_what_is_held():
    yesterday = Budget("key:k", TOKENS, TODAY)
    leases = lent((yesterday, 100), (BUDGET, 100))
    hold = leases.hold([claim(yesterday)], {TOKENS: 60})
    assert leases.begin_return(0.0, TOMORROW) == {yesterday: 40}
    leases.returned({yesterday: 40})
    leases.written(leases.settle(hold, {TOKENS: 60}).draws)
    assert leases.begin_return(0.0, TOMORROW) == {}
    assert leases.row(yesterday) is None, "forgotten at once"
    assert leases.free(BUDGET) == 100


def test_of_what_was_never_lent_nothing_can_be_recalled():
    assert Leases().recall(BUDGET) == 0


def test_where_little_is_left_what_a_request_frees_goes_back_at_once():
    leases = Leases()
    leases.lend(BUDGET, 100, 9_000, 600, 10_000)
    settled = leases.settle(leases.hold([claim()], {TOKENS: 100}), {TOKENS: 30})
    assert settled.spare == (BUDGET,)
    assert leases.begin_return(0.0, TODAY, settled.spare) == {BUDGET: 70}
    leases.returned({BUDGET: 70})
    assert leases.begin_return(0.0, TODAY, [SPEND]) == {}, "nobody knows that one"


def test_where_plenty_is_left_it_stays():
    leases = Leases()
    leases.lend(BUDGET, 100, 9_000, 500, 10_000)
    assert leases.settle(leases.hold([claim()], {TOKENS: 100}), {TOKENS: 30}).spare == ()
    assert leases.begin_return(0.0, TODAY) == {}


def test_what_goes_back_makes_room():
    leases = Leases()
    leases.lend(BUDGET, 500, 9_000, 600, 10_000)
    first, second = leases.hold([claim()], {TOKENS: 300}), leases.hold([claim()], {TOKENS: 200})
    assert leases.settle(first, {}).spare == (BUDGET,)
    assert leases.begin_return(0.0, TODAY) == {BUDGET: 300}
    leases.returned({BUDGET: 300})
    assert leases.row(BUDGET).left == 700
    assert leases.settle(second, {}).spare == ()
    assert leases.begin_return(0.0, TODAY) == {}


def test_a_fresh_grant_waits_a_moment_for_its_request():
    leases = Leases()
    leases.lend(BUDGET, 100, 9_000, 1_000, 10_000)
    assert leases.begin_return(0.0, TODAY) == {}
    assert leases.begin_return(GRACE / 2, TODAY) == {}
    assert leases.begin_return(GRACE, TODAY) == {BUDGET: 100}
    leases.returned({BUDGET: 100})
    leases.lend(BUDGET, 100, 9_000, 1_000, 10_000)
    leases.hold([claim()], {TOKENS: 30})
    assert leases.begin_return(GRACE, TODAY) == {}, "the other 70 belong to one who comes yet"
    assert leases.settle(leases.hold([claim()], {TOKENS: 0}), {}).spare == ()
    leases.lend(BUDGET, 100, 9_000, 1_000, 10_000)
    hold = leases.hold([claim()], {TOKENS: 30})
    assert leases.settle(hold, {}).spare == (BUDGET,)
    assert leases.begin_return(GRACE, TODAY) == {BUDGET: 30}


# -- budgets that go away ----------------------------------------------------------------------------------------------


def test_a_hold_of_a_budget_that_is_gone_draws_nothing():
    leases = lent((BUDGET, 100))
    hold = leases.hold([claim()], {TOKENS: 60})
    leases.forget(BUDGET)
    leases.forget(BUDGET)
    assert leases.free(BUDGET) == 0
    assert leases.settle(hold, {TOKENS: 500}) == Settled()
    leases.lend(BUDGET, 10, 0, 10, 10_000)
    assert leases.free(BUDGET) == 10


def test_what_was_under_way_of_a_budget_that_is_gone_does_no_harm():
    leases = lent((BUDGET, 1000))
    draws = leases.settle(leases.hold([claim()], {TOKENS: 60}), {TOKENS: 60}).draws
    back = leases.begin_return(0.0, "2026-12-01")
    assert back == {BUDGET: 940}
    leases.forget(BUDGET)
    leases.written(draws)
    leases.returned(back)
    leases.kept(back)
    assert leases.row(BUDGET) is None
    leases.lend(BUDGET, 100, 0, 100, 10_000)
    leases.written(draws)  # the row takes what comes late out of the new lease
    assert leases.free(BUDGET) == 40
    leases.kept(back)
    assert leases.free(BUDGET) == 40
    leases.returned(back)
    assert leases.free(BUDGET) == 0


# -- everything in any order -------------------------------------------------------------------------------------------

SCOPES = ["key:k", "org:o"]
AMOUNTS = st.integers(0, 400)


class Bank:
    """The reference: rows, and what each of them has reserved for this process."""

    def __init__(self, limit):
        self.limit = limit
        self.used, self.others, self.mine = Counter(), Counter(), Counter()

    def left(self, budget):
        return self.limit - self.used[budget] - self.others[budget] - self.mine[budget]

    def borrow(self, budget, least, want):
        granted = quota.grant(self.left(budget), self.limit, budget.unit, least, want)
        self.mine[budget] += granted
        return granted

    def book(self, budget, n):
        assert n <= self.mine[budget], "more was drawn than was granted"
        self.mine[budget] -= n
        self.used[budget] += n


class Machine(RuleBasedStateMachine):
    @initialize(limit=st.sampled_from([0, 60, 1000, 100_000]))
    def start(self, limit):
        self.bank, self.leases = Bank(limit), Leases()
        self.day, self.now = date(2026, 11, 28), 0.0
        self.holds, self.ended, self.batches, self.away = [], [], [], []
        self.held, self.drawn, self.returning = Counter(), Counter(), Counter()

    def budgets(self):
        windows = {DAY: str(self.day), MONTH: str(self.day)[:7]}
        return [Budget(SCOPES[0], TOKENS, windows[DAY]), Budget(SCOPES[0], USD, windows[MONTH]), Budget(SCOPES[1], TOKENS, windows[MONTH])]

    @rule(index=st.integers(0, 2), least=AMOUNTS, more=AMOUNTS)
    def lend(self, index, least, more):
        budget = self.budgets()[index]
        amount = self.bank.borrow(budget, least, least + more)
        bank = self.bank
        bank.row = (bank.used[budget], bank.others[budget] + bank.mine[budget])
        self.leases.lend(budget, amount, *bank.row, bank.limit)

    @rule(tokens=AMOUNTS, usd=AMOUNTS, which=st.sets(st.integers(0, 2)))
    def hold(self, tokens, usd, which):
        claims = [claim(self.budgets()[index], self.bank.limit) for index in sorted(which)]
        amounts = {TOKENS: tokens, USD: usd}
        short = [each for each in claims if self.free(each.budget) < amounts[each.budget.unit]]
        assert self.leases.cover(claims, amounts) == tuple(short)
        if short:
            assert self.leases.hold(claims, amounts) is None
            return
        hold = self.leases.hold(claims, amounts)
        self.holds.append((hold, amounts))
        self.held.update({budget: amounts[budget.unit] for budget in hold.budgets})

    @precondition(lambda self: self.holds)
    @rule(index=st.integers(0, 99), tokens=AMOUNTS | st.just(10**9), usd=AMOUNTS)
    def settle(self, index, tokens, usd):
        hold, amounts = self.holds.pop(index % len(self.holds))
        self.ended.append(hold)
        actual = {TOKENS: tokens, USD: usd}
        expected, over = [], 0
        for budget in hold.budgets:
            n = min(actual[budget.unit], amounts[budget.unit] + self.free(budget))
            if n:
                expected.append((budget, n))
            if budget.unit == TOKENS:
                over = max(over, tokens - n)
        self.held.subtract({budget: amounts[budget.unit] for budget in hold.budgets})
        settled = self.leases.settle(hold, actual)
        assert (list(settled.draws), settled.over) == (expected, over)
        self.drawn.update(dict(settled.draws))
        self.batches.append(settled.draws)

    @precondition(lambda self: self.ended)
    @rule(index=st.integers(0, 99))
    def settle_again(self, index):
        assert self.leases.settle(self.ended[index % len(self.ended)], {TOKENS: 10, USD: 10}) == Settled()

    @precondition(lambda self: self.batches)
    @rule(index=st.integers(0, 99))
    def write(self, index):
        draws = self.batches.pop(index % len(self.batches))
        for budget, n in draws:
            self.bank.book(budget, n)
        self.drawn.subtract(dict(draws))
        self.leases.written(draws)

    @rule(seconds=st.sampled_from([0.0, 0.5, GRACE, IDLE]))
    def look_for_surplus(self, seconds):
        self.now += seconds
        before = {budget: self.free(budget) for budget in self.bank.mine}
        back = self.leases.begin_return(self.now, str(self.day))
        assert all(0 < n <= before[budget] for budget, n in back.items())
        assert all(back.get(budget, 0) == n for budget, n in before.items() if quota.is_over(budget.window, str(self.day)))
        self.returning.update(back)
        if back:
            self.away.append(back)

    @precondition(lambda self: self.away)
    @rule(well=st.booleans())
    def surplus_arrives_or_not(self, well):
        back = self.away.pop()
        self.returning.subtract(back)
        if well:
            self.bank.mine.subtract(back)
        (self.leases.returned if well else self.leases.kept)(back)

    @rule(index=st.integers(0, 2), amount=AMOUNTS)
    def others_reserve_or_let_go(self, index, amount):
        budget = self.budgets()[index]
        self.bank.others[budget] = 0 if self.bank.others[budget] else min(amount, max(0, self.bank.left(budget)))

    @rule()
    def next_day(self):
        self.day += timedelta(days=1)

    def free(self, budget):
        """What the reference has as free."""
        return self.bank.mine[budget] - self.held[budget] - self.drawn[budget] - self.returning[budget]

    @invariant()
    def nothing_is_lost_or_made(self):
        for budget in self.bank.mine:
            assert self.leases.free(budget) == self.free(budget) >= 0
            assert self.bank.used[budget] + self.bank.others[budget] + self.bank.mine[budget] <= self.bank.limit

    def teardown(self):
        """In the end all of it is back, and nothing is remembered."""
        if not hasattr(self, "bank"):
            return
        while self.holds:
            self.settle(0, 5, 5)
        while self.batches:
            self.write(0)
        while self.away:
            self.surplus_arrives_or_not(True)
        self.look_for_surplus(IDLE)
        self.look_for_surplus(IDLE)
        while self.away:
            self.surplus_arrives_or_not(True)
        assert not any(self.bank.mine.values())
        self.look_for_surplus(IDLE)
        assert not self.leases._leases


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeasesInAnyOrder = Machine.TestCase


def test_the_benchmark_runs(capsys):
    assert bench.main(["--quick"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(bench.CLAIMS)


def test_rows_that_were_read_are_told_with_what_was_used_since():
    leases = lent((BUDGET, 100), used=7)
    assert leases.settle(leases.hold([claim()], {TOKENS: 50}), {TOKENS: 20}).draws == ((BUDGET, 20),)
    unread = Budget("org:o", TOKENS, "total")
    leases.hold([claim(unread)], {})
    assert dict(leases.rows()) == {BUDGET: Row(27, leases.row(BUDGET).reserved - 20, 10_000)}
    assert set(leases.budgets()) == {BUDGET, unread}
    leases.forget(unread)
    assert leases.budgets() == [BUDGET]


@given(days, st.sampled_from(PERIODS))
def test_a_window_tells_its_period(day, period):
    assert quota.period_of(quota.window(period, day)) == period
