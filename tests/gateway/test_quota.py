"""Limits: who falls under which, for how much, and what is learned of it."""

import asyncio
import json

import msgspec
import pytest

from mindgw import errors, metrics
from mindgw.config import Limits
from mindgw.core.ceiling import MESSAGE
from mindgw.core.price import Price, Prices
from mindgw.core.quota import ALERT, BLOCK, MODES, QUEUE_LOW, SHADOW, SOFT, TOKENS, USD, Budget, quantum
from mindgw.core.routing import Leg
from mindgw.core.usage import Tokens
from mindgw.gateway import quota, signals
from mindgw.gateway.admission import Caller, admit
from mindgw.gateway.quota import MOST, Policy, Quotas, scopes
from tests.gateway.world import CHAT, Vault

DAY = "2026-11-21"
#: An answer of a model that costs nothing is free, whatever the limits of money.
PRICES = Prices([("dear", Price(10**6, 2 * 10**6))])
ANA = Caller("k", "ana's", "o", "t", "u", "nlp", "ana@example.org")
BOT = Caller("b", "bot", "o")


class Everything:
    """A FAKE of a fleet that has every model, and no routes."""

    hedge = False

    def has_choice(self, model, kind, where):
        return False

    def go(self, caller, model, kind, flow, named):
        return None, Leg(model)

    def names(self, model):
        return {model}


class Desk:
    """All limits over an in-memory bank."""

    def __init__(self, *policies: Policy, output=100):
        self.vault = Vault()
        self.counters = metrics.Counters()
        self.quotas = Quotas(self.vault, PRICES, output, self.counters)
        self.adopt(*policies)

    def adopt(self, *policies):
        self.vault.policies = list(policies)
        self.quotas.adopt(policies)

    def open(self, model="dear", caller=ANA, path=CHAT, context=None, **fields):
        body = {"model": model, "messages": [{"role": "user", "content": "x" * 10}]} if path == CHAT else {"model": model}
        text = json.dumps(body | fields).encode()
        ask = admit(caller, signals.Head("r", path, []), text, Limits(), Everything(), Everything())
        return self.quotas.open(ask, self.quotas.terms(caller, model, DAY), text, model, context)

    def claims(self, caller=ANA, model="dear", day=DAY):
        terms = self.quotas.terms(caller, model, day)
        parts = [part for part in (terms, terms.beside if terms else None) if part is not None]
        return [(one.budget.scope, one.budget.unit, one.budget.window) for part in parts for one in part.claims]

    def lowers(self, now, caller=ANA):
        terms = self.quotas.terms(caller, "dear", DAY)
        return self.quotas.lowers(terms, now)

    async def looked(self):
        while self.quotas.desk._task is not None and not self.quotas.desk._task.done():
            await asyncio.sleep(0)


def policy(scope="key:k", limit=1000, mode=BLOCK, unit=TOKENS, period="total"):
    return Policy(scope, unit, period, limit, mode)


# -- who falls under which ---------------------------------------------------------------------------------------------


def test_a_request_falls_under_the_limits_of_all_that_it_belongs_to_in_order():
    every = [policy(scope) for scope in ("user:u", "team:t", "key:k", "org:o", "model:dear")]
    desk = Desk(*every, policy("key:other"), policy("model:m"), policy("team:"))
    assert [scope for scope, _, _ in desk.claims()] == ["key:k", "model:dear", "org:o", "team:t", "user:u"]
    assert [scope for scope, _, _ in desk.claims(BOT)] == ["model:dear", "org:o"]
    assert scopes(BOT, "") == ("key:b", "org:o")


def test_each_unit_and_period_of_a_limit_has_a_budget_of_its_own():
    desk = Desk(*(policy(unit=unit, period=period) for unit in (TOKENS, USD) for period in ("day", "month", "total")))
    windows = ["2026-11", DAY, "total"]
    assert desk.claims() == [("key:k", unit, window) for unit in (TOKENS, USD) for window in windows]


def test_without_a_limit_there_is_nothing_to_hold():
    assert Desk().quotas.terms(ANA, "dear", DAY) is None
    assert Desk(policy("key:other")).quotas.terms(ANA, "dear", DAY) is None


def test_what_costs_nothing_falls_under_no_limit_of_money():
    desk = Desk(policy(unit=USD, limit=0), policy())
    assert desk.claims(model="m") == [("key:k", TOKENS, "total")]
    assert desk.claims(model="dear") == [("key:k", TOKENS, "total"), ("key:k", USD, "total")]
    assert Desk(policy(unit=USD, limit=0)).quotas.terms(ANA, "m", DAY) is None


def test_what_was_found_is_found_again_until_the_limits_change():
    desk = Desk(policy())
    found = desk.quotas.terms(ANA, "dear", DAY)
    assert desk.quotas.terms(ANA, "dear", DAY) is found
    desk.adopt(policy())
    assert desk.quotas.terms(ANA, "dear", DAY) is found
    desk.adopt(policy(limit=2000))
    assert desk.quotas.terms(ANA, "dear", DAY).claims[0].limit == 2000
    desk.adopt()
    assert desk.quotas.terms(ANA, "dear", DAY) is None


def test_the_next_day_is_another_window():
    desk = Desk(policy(period="day"), policy(period="month"))
    assert desk.claims(day="2026-11-30") == [("key:k", TOKENS, "2026-11"), ("key:k", TOKENS, "2026-11-30")]
    assert desk.claims(day="2026-12-01") == [("key:k", TOKENS, "2026-12"), ("key:k", TOKENS, "2026-12-01")]


def test_callers_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(quota, "KNOWN", 10)
    desk = Desk(policy("org:o"))
    for n in range(35):
        assert desk.claims(Caller(f"k{n}", "", "o", "t", "u"), f"m{n % 2}") == [("org:o", TOKENS, "total")]
        assert len(desk.quotas._terms) <= 10
        assert len(desk.quotas._names) <= 20


def test_what_is_on_loan_of_a_limit_that_is_gone_is_forgotten():
    """Whoever asked for it; should the limit come back, nothing of the old loan is in its row."""
    desk = Desk(policy(), policy("org:o", period="day"))
    gone, stays = Budget("key:k", TOKENS, "total"), Budget("org:o", TOKENS, DAY)
    for budget in (gone, stays):
        desk.quotas.desk.leases.lend(budget, 10, 0, 10, 1000)
    desk.adopt(policy("org:o", period="day"))
    assert [desk.quotas.desk.leases.free(budget) for budget in (gone, stays)] == [0, 10]
    desk.adopt(policy("org:o", period="month"))
    assert desk.quotas.desk.leases.free(stays) == 0


@pytest.mark.parametrize("other", [policy(limit=7), policy(mode=SOFT), msgspec.structs.replace(policy(), version=("later", 1))])
def test_what_is_on_loan_of_a_limit_that_is_another_one_now_is_lent_anew(other):
    desk = Desk(policy())
    budget = Budget("key:k", TOKENS, "total")
    desk.quotas.desk.leases.lend(budget, 10, 0, 10, 1000)
    desk.adopt(policy())
    assert desk.quotas.desk.leases.free(budget) == 10
    desk.adopt(other)
    assert desk.quotas.desk.leases.free(budget) == 0


# -- how much a request may use ----------------------------------------------------------------------------------------


def test_under_a_hard_limit_it_is_the_ceiling_of_the_prompt_and_the_cap_of_the_answer():
    desk = Desk(policy())
    prompt = 10 + len("user") + MESSAGE
    assert desk.open().most == {TOKENS: prompt + 100}
    assert desk.open(max_tokens=7).most == {TOKENS: prompt + 7}
    assert desk.open(max_tokens=7, n=3).most == {TOKENS: prompt + 21}
    assert desk.open(max_tokens=700).most == {TOKENS: prompt + 700}
    assert desk.open(max_tokens=-1).most == {TOKENS: prompt + 100}
    assert desk.open(max_tokens=0).most == {TOKENS: prompt + 1}
    assert desk.open(context=60).most[TOKENS] < prompt + 60


def test_each_prompt_of_a_list_has_its_answers():
    desk = Desk(policy())
    prompts = ["aaaa", "bb"]
    reservation = desk.open(path="/v1/completions", prompt=prompts, n=2, max_tokens=5)
    assert (reservation.sizes.answers, reservation.sizes.prompt) == (4, 6 + 2 * MESSAGE)
    assert desk.open(path="/v1/completions", prompt=[1, 2, 3], max_tokens=5).sizes.answers == 1


def test_embeddings_have_no_answer():
    desk = Desk(policy())
    sizes = desk.open(path="/v1/embeddings", input=["aaaa", "bb"]).sizes
    assert (sizes.prompt, sizes.answers, sizes.output) == (6 + 2 * MESSAGE, 0, 0)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != BLOCK])
def test_under_any_other_limit_it_is_what_is_usual(mode):
    reservation = Desk(policy(mode=mode)).open(max_tokens=7)
    assert (reservation.most, reservation.hard) == ({TOKENS: 1000}, False)


def test_money_is_counted_by_the_price_of_the_model():
    reservation = Desk(policy(unit=USD)).open(max_tokens=7)
    assert reservation.most == {TOKENS: 37, USD: 44}
    assert Desk(policy(unit=USD, mode=SOFT)).open().most == {TOKENS: 1000, USD: 2000}


def test_a_soft_limit_beside_a_hard_one_has_what_is_usual():
    hard, soft = Desk(policy(), policy("team:t", mode=SOFT)).open(max_tokens=7).parts
    assert (hard.most, soft.most, soft.least) == ({TOKENS: 37}, {TOKENS: 1000}, {TOKENS: 1})


def test_who_is_larger_than_a_whole_limit_is_refused_for_good():
    desk = Desk(policy(limit=30), policy("org:o", limit=30, mode=SOFT))
    with pytest.raises(errors.QuotaExceeded, match="30 are left and this request needs 31"):
        desk.quotas.check(desk.open())
    assert desk.counters.quota == {("key", BLOCK): 1}
    desk = Desk(policy(limit=31))
    desk.quotas.check(desk.open())
    Desk(policy(limit=0, mode=SOFT)).quotas.check(Desk(policy(limit=0, mode=SOFT)).open())


# -- refusals are counted ----------------------------------------------------------------------------------------------


async def test_refusals_are_counted_by_kind_of_scope_and_mode():
    desk = Desk(policy(), policy("org:o", limit=10, mode=SOFT))
    desk.vault.budgets[Budget("org:o", TOKENS, "total")] = [10, 0]
    with pytest.raises(errors.QuotaExceeded):
        await desk.quotas.fund(desk.open())
    assert desk.counters.quota == {("org", SOFT): 1}
    desk.vault.budgets[Budget("org:o", TOKENS, "total")] = [0, 0]
    await desk.quotas.fund(desk.open())
    desk.vault.away = True
    with pytest.raises(errors.Draining):
        await desk.quotas.fund(desk.open(max_tokens=10**6))
    assert desk.counters.quota == {("org", SOFT): 1}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beside", [True, False])
def test_a_limit_that_was_used_up_when_it_was_read_last_may_lack_what_is_wanted(mode, beside):
    desk = Desk(policy(limit=10, mode=mode), *([policy("org:o", limit=10**6)] if beside else []))
    terms, budget, leases = desk.quotas.terms(ANA, "dear", DAY), Budget("key:k", TOKENS, "total"), desk.quotas.desk.leases
    assert not desk.quotas.may_lack(terms, 1)
    for amount, used, reserved, lacks in ((0, 9, 1, False), (0, 10, 0, True), (1, 10, 1, False)):
        leases.lend(budget, amount, used, reserved, 10)
        assert desk.quotas.may_lack(terms, 1) == (lacks and mode in {BLOCK, SOFT})


def test_what_a_request_cannot_do_without_is_lacking_whatever_others_give_back():
    desk = Desk(policy(limit=1000))
    budget, leases = Budget("key:k", TOKENS, "total"), desk.quotas.desk.leases
    wanted = desk.open()
    need = wanted.least[TOKENS]
    assert not desk.quotas.lacks(wanted), "nothing is known of the row"
    leases.lend(budget, 0, 1000 - need, need, 1000)
    assert not desk.quotas.lacks(wanted), "others may give it back"
    leases.lend(budget, 0, 1001 - need, need - 1, 1000)
    assert desk.quotas.lacks(wanted)
    leases.lend(budget, need, 1001 - need, need - 1, 1000)
    assert not desk.quotas.lacks(wanted), "it lies here"


# -- limits that refuse nobody -----------------------------------------------------------------------------------------


async def test_who_is_over_a_limit_goes_to_the_end_of_the_queue(caplog):
    desk = Desk(policy(limit=10, mode=QUEUE_LOW))
    budget = Budget("key:k", TOKENS, "total")
    desk.vault.budgets[budget] = [10, 0]
    assert not desk.lowers(100.0)  # nobody has looked yet
    await desk.looked()
    assert desk.lowers(100.1)
    assert desk.counters.quota == {("key", QUEUE_LOW): 1}
    assert caplog.messages == ["key:k has used up its tokens (total): queue-low"]
    desk.vault.budgets[budget] = [9, 1]
    assert desk.lowers(101.0)
    assert desk.lowers(103.0)  # looks again, and believes the last look until that is answered
    await desk.looked()
    assert not desk.lowers(103.1)
    assert desk.vault.loans == 2
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("mode", [ALERT, SHADOW])
async def test_others_are_counted_and_an_alert_is_told_once(mode, caplog):
    desk = Desk(policy(limit=10, mode=mode))
    desk.vault.budgets[Budget("key:k", TOKENS, "total")] = [99, 0]
    for now in (100.0, 101.0, 110.0, 120.0):
        assert not desk.lowers(now)
        await desk.looked()
    assert desk.counters.quota == {("key", mode): 3}
    assert len(caplog.messages) == (mode == ALERT)  # a shadow is for who looks at the numbers


async def test_limits_that_refuse_are_not_looked_at_beforehand():
    desk = Desk(policy(limit=0), policy("org:o", limit=0, mode=SOFT))
    assert not desk.lowers(100.0)
    await desk.looked()
    assert desk.vault.loans == 0


async def test_one_look_is_enough_for_all_who_come_within_two_seconds():
    desk = Desk(policy(mode=ALERT), policy("org:o", mode=ALERT))
    for now in (100.0, 100.5, 101.9):
        desk.lowers(now)
        desk.lowers(now, BOT)
        await desk.looked()
    assert desk.vault.loans == 1
    desk.lowers(102.0)
    await desk.looked()
    assert desk.vault.loans == 2


async def test_a_look_brings_a_loan_so_that_what_is_used_is_drawn():
    desk = Desk(policy(limit=10**6, mode=ALERT))
    desk.lowers(100.0)
    await desk.looked()
    reservation = desk.open()
    assert reservation.reserve()
    assert reservation.budgets == (Budget("key:k", TOKENS, "total"),)
    assert desk.vault.budgets[Budget("key:k", TOKENS, "total")] == [0, quantum(10**6)]


async def test_what_was_seen_is_forgotten_with_the_limits():
    desk = Desk(policy(limit=10, mode=QUEUE_LOW))
    desk.vault.budgets[Budget("key:k", TOKENS, "total")] = [10, 0]
    desk.lowers(100.0)
    await desk.looked()
    desk.adopt(policy(limit=20, mode=QUEUE_LOW))
    assert not desk.lowers(100.1)
    await desk.looked()
    assert not desk.lowers(100.2)


async def test_a_limit_that_goes_away_during_the_look_lowers_nobody():
    desk = Desk(policy(limit=10, mode=QUEUE_LOW), policy("org:o"))
    desk.vault.budgets[Budget("key:k", TOKENS, "total")] = [10, 0]
    terms = desk.quotas.terms(ANA, "dear", DAY)
    desk.quotas.lowers(terms, 100.0)
    desk.adopt(policy("org:o"))
    await desk.looked()
    assert not desk.quotas.lowers(terms, 100.1)


async def test_windows_that_were_seen_are_bounded(monkeypatch):
    """Every day has its budgets, and a server may run for years."""
    monkeypatch.setattr(quota, "KNOWN", 10)
    desk = Desk(policy(mode=ALERT, period="day"))
    for day in range(1, 29):
        terms = desk.quotas.terms(ANA, "dear", f"2026-11-{day:02}")
        desk.quotas.lowers(terms, 100.0 * day)
        await desk.looked()
        assert len(desk.quotas._seen) <= 10


# -- what is usual -----------------------------------------------------------------------------------------------------


def usual(desk):
    return desk.open().most[TOKENS]


def test_what_is_usual_follows_what_engines_report():
    desk = Desk(policy(mode=SOFT))
    desk.quotas.learn("dear", None, Tokens(100, 100, 0, "engine"))
    assert usual(desk) == 200
    for _ in range(200):
        desk.quotas.learn("dear", None, Tokens(0, 1000, 0, "engine"))
    assert 990 < usual(desk) <= 1000
    assert desk.open("m").most[TOKENS] == 1000


@pytest.mark.parametrize("told", [Tokens(9, 9, 0, "counted"), Tokens(9, 9, 0, "estimated"), Tokens(0, 0, 0, "engine")])
def test_only_what_an_engine_counted_is_learned(told):
    desk = Desk(policy(mode=SOFT))
    desk.quotas.learn("dear", None, told)
    assert usual(desk) == 1000


def test_an_absurd_report_does_not_reserve_the_world():
    desk = Desk(policy(mode=SOFT))
    desk.quotas.learn("dear", None, Tokens(10**12, 10**12, 0, "engine"))
    assert usual(desk) == MOST


def test_models_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(quota, "MODELS", 2)
    desk = Desk(policy(mode=SOFT))
    for model in ("dear", "b", "c", "dear"):
        desk.quotas.learn(model, None, Tokens(0, 10, 0, "engine"))
    assert [desk.open(model).most[TOKENS] for model in ("dear", "b", "c")] == [10, 10, 1000]


def test_what_a_template_adds_is_learned_under_hard_limits():
    desk = Desk(policy())
    before = desk.open(max_tokens=1).most[TOKENS]
    desk.quotas.learn("dear", desk.open(), Tokens(before - 1 + 25, 5, 0, "engine"))
    assert desk.open(max_tokens=1).most[TOKENS] == before + 25
    soft = Desk(policy(mode=SOFT))
    soft.quotas.learn("dear", soft.open(), Tokens(5000, 5, 0, "engine"))
    assert soft.quotas._overheads.of("dear") == 0


# -- what people see ---------------------------------------------------------------------------------------------------


async def test_budgets_are_shown_under_the_names_that_people_use():
    desk = Desk(policy("team:t"), policy("user:u", mode=SOFT), policy("key:k", mode=ALERT, limit=10**6))
    reservation = desk.open(max_tokens=7)
    await desk.quotas.fund(reservation)
    reservation.settle(Tokens(10, 2, 0, "engine"))
    views = {view.scope: view for view in desk.quotas.standings()}
    assert set(views) == {"team:nlp", "user:ana@example.org", "key:k"}
    team = views["team:nlp"]
    assert (team.unit, team.window, team.mode, team.limit, team.id) == (TOKENS, "total", BLOCK, 1000, "team:nlp tokens total")
    assert (team.used, team.used + team.reserved) == (12, desk.vault.budgets[Budget("team:t", TOKENS, "total")][1])
    desk.quotas._policies = {}
    assert desk.quotas.standings() == []
