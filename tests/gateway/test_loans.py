"""Loans: one transaction for all who wait, no refusal before the row was read, and nothing lost whatever fails."""

import asyncio

import pytest

from mindgw import errors
from mindgw.core import quota
from mindgw.core.ceiling import Ceiling
from mindgw.core.price import FREE
from mindgw.core.quota import ALERT, BLOCK, QUEUE_LOW, SOFT, TOKENS, Budget, Claim
from mindgw.core.usage import Tokens
from mindgw.gateway import loans
from mindgw.gateway.loans import Desk
from mindgw.gateway.quota import Policy
from mindgw.gateway.reservation import Reservation, Sizes, Terms
from mindgw.store.database import Unsure
from mindgw.store.quotas import Lent
from tests.gateway.world import Vault

KEY, TEAM = Budget("key:k", TOKENS, "total"), Budget("team:t", TOKENS, "total")
TODAY = "2026-11-21"


class Counter:
    """A bank behind a counter: every transaction waits until it is let through, and may fail then."""

    def __init__(self, vault):
        self.vault = vault
        #: What each transaction asked for, and who may go through now.
        self.asked = []
        self.gate = asyncio.Event()
        self.gate.set()
        #: Nobody hears any more that something came back.
        self.loses_answers = False

    async def borrow(self, wants):
        self.asked.append({want.budget: (want.least, want.want) for want in wants})
        await self.gate.wait()
        return await self.vault.borrow(wants)

    async def give_back(self, number, amounts):
        await self.gate.wait()
        await self.vault.give_back(number, amounts)
        if self.loses_answers:
            raise Unsure


class Room:
    """A desk, its bank, and the rows that it was told of."""

    def __init__(self, **limits):
        self.vault = Vault()
        self.bank = Counter(self.vault)
        self.told = []
        self.desk = Desk(self.bank, lambda claim, row: self.told.append((claim.budget, row)))
        for scope, limit in limits.items():
            self.limit(Budget(scope.replace("_", ":"), TOKENS, "total"), limit)

    def limit(self, budget, limit):
        self.vault.policies = [policy for policy in self.vault.policies if policy.scope != budget.scope]
        self.vault.policies.append(Policy(budget.scope, budget.unit, "total", limit, BLOCK))

    def open(self, *claims, prompt=0, output=10, usual=50):
        claims = claims or (claim(KEY),)
        return Reservation(self.desk.leases, Terms.of(claims, FREE), Sizes(FREE, usual, prompt, 1, output, Ceiling(prompt)))

    def free(self, budget=KEY):
        return self.desk.leases.free(budget)

    def row(self, budget=KEY):
        return tuple(self.vault.budgets[budget])

    async def settled(self):
        """Nothing is under way any more."""
        while self.desk._task is not None and not self.desk._task.done():
            await asyncio.sleep(0)


def claim(budget, mode=BLOCK, limit=10**6):
    return Claim(budget, "total", mode, limit)


async def outcome(work):
    """held, or the name of the error."""
    try:
        await work
    except errors.MindGWError as wrong:
        return wrong.code
    return "held"


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


# -- one transaction ---------------------------------------------------------------------------------------------------


async def test_all_who_wait_at_one_moment_share_a_transaction():
    room = Room(key_k=10**6)
    requests = [room.open() for _ in range(50)]
    await asyncio.gather(*(room.desk.fund(request) for request in requests))
    assert room.vault.loans == 1
    assert room.bank.asked == [{KEY: (1, 500)}]
    assert all(request.held == 10 for request in requests)
    assert room.free() + 500 == room.row()[1] == quota.quantum(10**6)


async def test_who_comes_while_one_is_under_way_shares_the_next():
    room = Room(key_k=10**6, team_t=10**6)
    room.bank.gate.clear()
    first = asyncio.create_task(room.desk.fund(room.open(output=20_000)))
    await turns()
    others = [asyncio.create_task(room.desk.fund(room.open(claim(TEAM), output=n))) for n in (7, 9)]
    await turns()
    assert len(room.bank.asked) == 1
    room.bank.gate.set()
    await asyncio.gather(first, *others)
    assert room.bank.asked == [{KEY: (1, 20_000)}, {TEAM: (1, 16)}]
    assert room.vault.loans == 2


async def test_a_lease_with_enough_in_it_asks_nobody():
    room = Room(key_k=10**6)
    await room.desk.fund(room.open())
    assert room.open().reserve()
    assert room.vault.loans == 1


async def test_nobody_is_content_with_less_because_somebody_was_faster():
    """What was lent to one is taken by another before he looks: there is plenty, so he asks once more."""
    room = Room(key_k=10**9)
    room.bank.gate.clear()
    slow = room.open(output=quota.quantum(10**9) * 2)
    task = asyncio.create_task(room.desk.fund(slow))
    await turns()
    original = room.desk.leases.lend

    def lend(*row):
        original(*row)
        if room.vault.loans == 1:
            assert room.open(output=1000).reserve()

    room.desk.leases.lend = lend
    room.bank.gate.set()
    await task
    assert slow.cap == quota.quantum(10**9) * 2
    assert room.vault.loans == 2


async def test_one_who_is_robbed_each_time_hears_that_others_were_faster():
    room = Room(key_k=10**9)
    original = room.desk.leases.lend

    def lend(*row):
        original(*row)
        assert room.open(output=room.free()).reserve()

    room.desk.leases.lend = lend
    assert await outcome(room.desk.fund(room.open(output=10_000_000))) == "rate_limit_exceeded"
    assert room.vault.loans == loans.TRIES


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_a_limit_that_is_used_up_refuses_for_good():
    room = Room(key_k=100)
    room.vault.budgets[KEY] = [100, 0]
    with pytest.raises(errors.QuotaExceeded, match=r"this key is used up: 100 tokens\.$") as refused:
        await room.desk.fund(room.open(claim(KEY, limit=100)))
    assert (refused.value.retry_after, refused.value.code) == (None, "insufficient_quota")
    assert room.row() == (100, 0)


async def test_a_little_that_is_left_is_told():
    room = Room(key_k=100)
    room.vault.budgets[KEY] = [95, 0]
    with pytest.raises(errors.QuotaExceeded, match="5 are left and this request needs 31"):
        await room.desk.fund(room.open(claim(KEY, limit=100), prompt=30))


@pytest.mark.parametrize(("period", "words"), [("day", "100 tokens today"), ("month", "100 tokens this month"), ("total", "100 tokens.")])
def test_the_period_is_named(period, words):
    budget = Budget("key:k", TOKENS, quota.window(period, "2026-12-31"))
    said = loans.exceeded(Claim(budget, period, BLOCK, 100), 0, 5).message
    assert words in said
    assert ("It begins anew on 2027-01-01 (UTC)." in said) == (period != "total")


async def test_what_is_on_loan_of_a_limit_that_changed_goes_back_whatever_happens():
    room = Room(key_k=1000)
    await room.desk.fund(room.open(claim(KEY, limit=1000)))
    had = room.desk.leases.free(KEY)
    reserved = room.vault.budgets[KEY][1]
    room.desk.recall(KEY)
    room.desk.recall(KEY)
    assert room.desk.leases.free(KEY) == 0
    room.vault.away = True
    with pytest.raises(OSError, match="away"):
        await room.desk.return_spare(0.0, "2026-11-21")
    room.vault.away = False
    await room.desk.return_spare(0.0, "2026-11-21")
    assert room.vault.budgets[KEY][1] == reserved - had
    await room.desk.return_spare(0.0, "2026-11-21")
    assert room.vault.budgets[KEY][1] == reserved - had


async def test_what_others_hold_may_come_back():
    room = Room(key_k=100)
    room.vault.budgets[KEY] = [50, 50]
    with pytest.raises(errors.RateLimited) as refused:
        await room.desk.fund(room.open())
    assert refused.value.retry_after == 1.0
    room.vault.budgets[KEY] = [50, 40]
    await room.desk.fund(room.open())


async def test_a_refusal_is_final_only_after_the_row_was_read():
    """What this process remembers of it does not refuse anybody."""
    room = Room(key_k=100)
    room.desk.leases.lend(KEY, 0, 100, 0, 100)
    await room.desk.fund(room.open())
    assert room.vault.loans == 1


async def test_what_is_drawn_and_not_written_counts_as_used():
    """The row says that it is reserved; to wait for it would be in vain."""
    room = Room(key_k=100)
    request = room.open(output=95)
    await room.desk.fund(request)
    request.settle(Tokens(0, 95, 0, "engine"))
    assert room.row() == (0, 95)
    with pytest.raises(errors.QuotaExceeded, match="5 are left and this request needs 6"):
        await room.desk.fund(room.open(claim(KEY, limit=100), prompt=5))


async def test_what_lies_here_and_what_is_left_are_enough_together():
    """Neither alone is: nobody else holds anything, so nobody is to be waited for."""
    room = Room(key_k=100_000)
    room.vault.budgets[KEY] = [91_000, 1500]
    room.desk.leases.lend(KEY, 1500, 91_000, 1500, 100_000)
    request = room.open(prompt=8000)
    await room.desk.fund(request)
    assert (request.held, room.vault.loans) == (8010, 1)
    assert room.bank.asked == [{KEY: (6501, 8010)}]


async def test_an_answer_is_shorter_when_no_more_is_to_be_had():
    room = Room(key_k=100)
    request = room.open(prompt=60, output=1000)
    await room.desk.fund(request)
    assert (request.cap, request.held, room.row()) == (40, 100, (0, 100))


async def test_one_of_several_limits_refuses_and_nothing_is_held():
    room = Room(key_k=10**6, team_t=100)
    room.vault.budgets[TEAM] = [100, 0]
    assert await outcome(room.desk.fund(room.open(claim(KEY), claim(TEAM, limit=100)))) == "insufficient_quota"
    assert room.free() == room.row()[1] > 0
    assert room.desk.spare == {TEAM}


async def test_a_soft_limit_lets_pass_until_it_is_used_up():
    room = Room(key_k=10)
    request = room.open(claim(KEY, SOFT))
    await room.desk.fund(request)
    assert (request.held, request.cap) == (10, 0)
    assert await outcome(room.desk.fund(room.open(claim(KEY, SOFT)))) == "rate_limit_exceeded"
    room.vault.budgets[KEY] = [10, 0]
    assert await outcome(room.desk.fund(room.open(claim(KEY, SOFT)))) == "insufficient_quota"


async def test_a_soft_limit_beside_a_hard_one_is_asked_for_what_is_usual():
    room = Room(key_k=10**6, team_t=10**6)
    room.vault.budgets[TEAM] = [10**6 - 3, 0]
    request = room.open(claim(KEY), claim(TEAM, SOFT), prompt=100)
    await room.desk.fund(request)
    assert room.bank.asked == [{KEY: (101, 110), TEAM: (1, 50)}]
    assert (request.cap, request.budgets) == (10, (KEY, TEAM))
    room.vault.budgets[TEAM] = [10**6, 0]
    room.desk.leases.forget(TEAM)
    assert await outcome(room.desk.fund(room.open(claim(KEY), claim(TEAM, SOFT)))) == "insufficient_quota"


async def test_a_limit_that_is_gone_lets_pass():
    room = Room(team_t=10**6)
    room.desk.leases.lend(KEY, 3, 0, 3, 100)
    request = room.open(claim(KEY), claim(TEAM))
    await room.desk.fund(request)
    assert request.budgets == (TEAM,)
    assert room.free() == 0
    only = room.open(claim(KEY))
    await room.desk.fund(only)
    assert only.budgets == ()


async def test_exactly_so_many_are_let_in_as_the_limit_allows():
    room = Room(key_k=100)
    requests = [room.open(output=1) for _ in range(200)]
    codes = await asyncio.gather(*(outcome(room.desk.fund(request)) for request in requests))
    assert codes.count("held") == sum(request.held for request in requests) == 100
    assert set(codes) == {"held", "rate_limit_exceeded"}
    assert room.row() == (0, 100)
    for request in requests:
        if request.held:
            request.settle(Tokens(0, 1, 0, "engine"))
    codes = await asyncio.gather(*(outcome(room.desk.fund(room.open(output=1))) for _ in range(20)))
    assert set(codes) == {"insufficient_quota"}


# -- the bank fails ----------------------------------------------------------------------------------------------------


async def test_when_the_database_is_away_everybody_hears_so_and_the_next_one_works(caplog):
    room = Room(key_k=10**6)
    room.vault.away = True
    errors_heard = await asyncio.gather(*(room.desk.fund(room.open()) for _ in range(3)), return_exceptions=True)
    assert [(type(wrong), wrong.code, wrong.status, wrong.retry_after) for wrong in errors_heard] == [
        (errors.Draining, "quota_unavailable", 503, 5)
    ] * 3
    assert "no budget could be borrowed" in caplog.text
    room.vault.away = False
    await room.desk.fund(room.open())
    assert room.free() + 10 == room.row()[1]


async def test_what_lies_here_goes_on_while_the_database_is_away():
    room = Room(key_k=10**6)
    await room.desk.fund(room.open())
    room.vault.away = True
    assert all(room.open().reserve() for _ in range(100))


async def test_who_came_while_it_failed_is_served_by_the_next_transaction():
    room = Room(key_k=10**6)
    room.bank.gate.clear()
    borrow, room.vault.away = room.vault.borrow, True

    async def once(wants):
        try:
            return await borrow(wants)
        finally:
            room.vault.away = False

    room.vault.borrow = once
    first = asyncio.create_task(outcome(room.desk.fund(room.open())))
    await turns()
    second = asyncio.create_task(outcome(room.desk.fund(room.open())))
    await turns()
    room.bank.gate.set()
    assert await first == "quota_unavailable"
    assert await second == "held"


async def test_a_database_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(loans, "PATIENCE", 0.01)
    room = Room(key_k=10**6)
    room.bank.gate.clear()
    requests = [room.open() for _ in range(5)]
    codes = await asyncio.gather(*(outcome(room.desk.fund(request)) for request in requests))
    later = await outcome(room.desk.fund(room.open()))
    assert {*codes, later} == {"quota_unavailable"}
    assert not room.desk._waiting  # however long it lasts
    room.bank.gate.set()
    await room.settled()
    assert room.free() == room.row()[1]
    assert not any(request.held for request in requests)


# -- who leaves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "during"])
async def test_who_does_not_wait_any_more_holds_nothing(when):
    room = Room(key_k=10**6)
    room.bank.gate.clear()
    first = asyncio.create_task(room.desk.fund(room.open(output=1)))
    await turns()
    gone = room.open(output=1000)
    task = asyncio.create_task(room.desk.fund(gone))
    await turns()
    if when == "before":
        task.cancel()
        await turns()
        room.bank.gate.set()
    else:
        room.bank.gate.set()
        await turns(1)
        task.cancel()
    await first
    await room.settled()
    await asyncio.gather(task, return_exceptions=True)
    assert (gone.held, room.desk._waiting) == (0, {})
    assert room.free() + 1 == room.row()[1]


async def test_nothing_is_borrowed_for_a_request_that_is_over():
    room = Room(key_k=1000)
    room.bank.gate.clear()
    first = asyncio.create_task(room.desk.fund(room.open(output=1)))
    await turns()
    gone = [room.open(output=300) for _ in range(3)]
    tasks = [asyncio.create_task(room.desk.fund(request)) for request in gone]
    await turns()
    for request in gone:
        request.end()
    room.bank.gate.set()
    await asyncio.gather(first, *tasks)
    assert room.bank.asked == [{KEY: (1, 1)}, {}]
    assert room.row()[1] == room.free() + 1


async def test_a_loan_for_a_request_that_ended_meanwhile_is_not_asked_for_again():
    room = Room(key_k=1000)
    room.bank.gate.clear()
    request = room.open()
    task = asyncio.create_task(room.desk.fund(request))
    await turns()
    request.end()
    room.bank.gate.set()
    await task
    assert (room.vault.loans, request.held) == (1, 0)


# -- looks -------------------------------------------------------------------------------------------------------------


async def test_a_look_brings_the_row_and_a_loan_if_there_is_plenty():
    room = Room(key_k=10**6, team_t=10)
    room.vault.budgets[TEAM] = [12, 0]
    for mode, budget in ((ALERT, KEY), (QUEUE_LOW, TEAM), (ALERT, Budget("org:o", TOKENS, "total"))):
        room.desk.look(claim(budget, mode))
    await room.settled()
    assert room.vault.loans == 1
    told = dict(room.told)
    assert told[KEY] == Lent(KEY, quota.quantum(10**6), 0, quota.quantum(10**6), 10**6)
    assert told[TEAM] == Lent(TEAM, 0, 12, 0, 10)
    assert told[Budget("org:o", TOKENS, "total")] is None


async def test_a_look_and_a_wish_for_the_same_budget_are_one():
    room = Room(key_k=100)
    room.desk.look(claim(KEY))
    await room.desk.fund(room.open(prompt=20))
    assert room.bank.asked == [{KEY: (21, 30)}]


async def test_looks_that_fail_tell_nothing():
    room = Room(key_k=100)
    room.vault.away = True
    room.desk.look(claim(KEY, ALERT))
    await room.settled()
    assert room.told == []
    room.vault.away = False
    room.desk.look(claim(KEY, ALERT))
    await room.settled()
    assert len(room.told) == 1


# -- giving back -------------------------------------------------------------------------------------------------------


async def test_what_is_scarce_goes_back_at_once():
    room = Room(key_k=100)
    request = room.open(output=97)
    await room.desk.fund(request)
    settled = request.settle(Tokens(0, 20, 0, "engine"))
    assert settled.spare == (KEY,)
    room.desk.spare.update(settled.spare)
    await room.desk.return_spare(1.0, TODAY)
    assert (room.row(), room.free(), room.desk.spare) == ((0, 20), 0, set())


async def test_what_is_plenty_stays_until_nobody_needs_it():
    room = Room(key_k=10**6)
    await room.desk.fund(room.open(output=50))
    lent = room.row()[1]
    await room.desk.return_spare(1.0, TODAY)
    await room.desk.return_all(1.0, TODAY)
    assert room.row() == (0, lent)
    await room.desk.return_all(1.0 + quota.IDLE, TODAY)
    assert (room.row(), room.free()) == ((0, 50), 0)


@pytest.mark.parametrize("how", ["return_all", "return_spare"])
async def test_what_could_not_go_back_is_not_lost(how):
    room = Room(key_k=100)
    request = room.open(output=97)
    await room.desk.fund(request)
    room.desk.spare.update(request.settle(Tokens(0, 20, 0, "engine")).spare)
    room.vault.away = True
    with pytest.raises(OSError, match="away"):
        await getattr(room.desk, how)(100.0, TODAY)
    assert (room.row(), room.free()) == ((0, 97), 77)
    assert room.open(output=30).reserve()
    room.vault.away = False
    room.desk.spare.add(KEY)
    await getattr(room.desk, how)(200.0, TODAY)
    assert (room.row(), room.free()) == ((0, 50), 0)


async def test_giving_back_that_is_broken_off_loses_nothing():
    room = Room(key_k=100)
    request = room.open(output=97)
    await room.desk.fund(request)
    request.end()
    room.bank.gate.clear()
    task = asyncio.create_task(room.desk.return_all(100.0, TODAY))
    await turns()
    assert room.free() == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (room.free(), room.row()) == (0, (0, 97)), "it may be back, so nobody may have it"
    room.bank.gate.set()
    await room.desk.return_all(101.0, TODAY)
    assert (room.free(), room.row()) == (0, (0, 0))


@pytest.mark.parametrize("how", ["return_all", "return_spare"])
async def test_what_may_have_gone_back_is_given_back_once_more_and_counted_once(how):
    room = Room(key_k=100)
    first, second = room.open(output=50), room.open(output=47)
    await room.desk.fund(first)
    await room.desk.fund(second)
    room.desk.spare.update(first.end())
    room.bank.loses_answers = True
    for _ in range(2):
        with pytest.raises(Unsure):
            await getattr(room.desk, how)(100.0, TODAY)
        assert (room.row(), room.free()) == ((0, 47), 0)
    room.bank.loses_answers = False
    second.end()
    await getattr(room.desk, how)(100.0, TODAY)
    assert (room.row(), room.free()) == ((0, 47), 47)
    for now in (200.0, 200.0 + quota.IDLE):
        await room.desk.return_all(now, TODAY)
    assert (room.row(), room.free()) == ((0, 0), 0)


async def test_a_recalled_loan_that_may_have_gone_back_is_not_given_back_twice():
    room = Room(key_k=10**6)
    await room.desk.fund(room.open(output=50))
    lent = room.row()[1]
    room.desk.recall(KEY)
    room.bank.loses_answers = True
    with pytest.raises(Unsure):
        await room.desk.return_spare(1.0, TODAY)
    room.bank.loses_answers = False
    for _ in range(2):
        await room.desk.return_spare(1.0, TODAY)
        assert room.row() == (0, 50) != (0, lent)


async def test_what_goes_back_at_once_does_so_one_after_the_other():
    """Each has its own number."""
    room = Room(key_k=100, team_t=100)
    for budget in (KEY, TEAM):
        request = room.open(claim(budget), output=97)
        await room.desk.fund(request)
        room.desk.spare.update(request.end())
    room.bank.gate.clear()
    spare, room.desk.spare = room.desk.spare, {KEY}
    assert spare == {KEY, TEAM}
    first = asyncio.create_task(room.desk.return_spare(1.0, TODAY))
    await turns()
    room.desk.spare = spare
    second = asyncio.create_task(room.desk.return_spare(1.0, TODAY))
    await turns()
    room.bank.gate.set()
    await asyncio.gather(first, second)
    assert (room.row(KEY), room.row(TEAM)) == ((0, 0), (0, 0))


async def test_nothing_to_give_back_asks_nobody():
    room = Room(key_k=100)
    room.vault.away = True
    await room.desk.return_all(1.0, TODAY)
    await room.desk.return_spare(1.0, TODAY)


# -- another run -------------------------------------------------------------------------------------------------------


async def test_after_a_run_was_taken_for_dead_nothing_of_it_is_left():
    room = Room(key_k=10**6)
    running = room.open()
    await room.desk.fund(running)
    room.desk.spare.add(KEY)
    room.desk.start_over()
    assert (room.free(), room.desk.spare) == (0, set())
    assert running.settle(Tokens(0, 5, 0, "engine")).draws == ()


@pytest.mark.parametrize("how", ["spare", "recalled", "again"])
@pytest.mark.parametrize("answer", ["returned", "unsure", "failed"])
async def test_what_was_going_back_when_a_run_was_taken_for_dead_does_not_leave_the_leases_of_the_next(how, answer):
    room = Room(key_k=100)
    request = room.open(output=97)
    await room.desk.fund(request)
    request.end()
    if how == "recalled":
        room.desk.recall(KEY)
    else:
        room.desk.spare.add(KEY)
    if how == "again":
        room.bank.loses_answers = True
        with pytest.raises(Unsure):
            await room.desk.return_spare(quota.IDLE * 2, TODAY)
    room.bank.loses_answers, room.bank.gate = answer == "unsure", asyncio.Event()
    going = asyncio.create_task(room.desk.return_spare(quota.IDLE * 2, TODAY))
    await turns()
    room.desk.start_over()
    room.desk.leases.lend(KEY, 50, 0, 50, 100)
    room.vault.budgets[KEY] = [0, 10**4]  # what others have on loan is not what this one may give back
    room.vault.away = answer == "failed"
    given = room.vault.budgets[KEY][1]
    room.bank.gate.set()
    await asyncio.gather(going, return_exceptions=True)
    taken = given - room.vault.budgets[KEY][1]
    assert (room.free(), room.desk.leases.drawn(KEY)) == (50, 0)
    room.bank.loses_answers = room.vault.away = False
    await room.desk.return_spare(quota.IDLE * 2, TODAY)
    assert given - room.vault.budgets[KEY][1] == taken, "the old run's loan was asked back of the new one"
    assert room.free() == 50


async def test_what_was_recalled_in_a_run_that_was_taken_for_dead_is_no_loan_of_the_next():
    room = Room(key_k=10**6)
    request = room.open()
    await room.desk.fund(request)
    request.end()
    room.desk.recall(KEY)
    room.desk.start_over()
    before = room.row()
    await room.desk.return_spare(1.0, TODAY)
    assert room.row() == before


async def test_who_waits_for_the_loan_that_brought_it_to_light_gets_one():
    """The transaction finds that the run is over, begins another, and lends there."""
    room = Room(key_k=10**6)
    borrow = room.vault.borrow

    async def renewing(wants):
        room.desk.start_over()
        return await borrow(wants)

    room.vault.borrow = renewing
    request = room.open()
    await room.desk.fund(request)
    assert (request.held, room.vault.loans) == (10, 1)
    assert room.free() + 10 == room.row()[1]
