"""Whatever happens in whatever order, on both databases: nothing is billed twice or lost, nobody gets more than there is, and the books say
what a plain model says."""

import asyncio
import itertools
import shutil
from collections import Counter
from contextlib import AsyncExitStack
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from mindgw.core import quota
from mindgw.core.quota import Budget
from mindgw.store import epochs, quotas
from mindgw.store.database import Database
from tests.postgres import TEMPLATE, fresh
from tests.store.books import NOON, PERIODS, Books, entry

#: Limits that there may be; every request counts the same in all of them.
LIMITS = [("key:k", "tokens", "month"), ("key:k", "tokens", "day"), ("org:o", "usd", "total")]
WORKERS = "ab"
ANY = st.integers(0, 10**6)
KINDS = st.sampled_from(["settled", "settled", "wasted"])
AMOUNTS = st.sampled_from([0, 1, 7, 30, 200])
REQUESTS = st.lists(st.tuples(st.sampled_from(WORKERS), st.none() | AMOUNTS, KINDS), min_size=1, max_size=5)
TABLES = ("ledger", "ledger_commits", "quotas", "budgets", "leases", "epochs", "epoch_workers")


class Reference:
    """The books in memory: rows, leases and limits; what is used is what the rows say."""

    def __init__(self):
        self.limits, self.lims, self.over, self.forgiven = {}, {}, Counter(), Counter()
        #: (epoch, budget): on loan; charged after it expired.
        self.leases, self.charged = Counter(), Counter()
        #: (request, attempt): kind, amount and day of its end; of one that was taken back the amount is 0.
        self.rows = {}

    def used(self, budget):
        rows = [n for kind, n, day in self.rows.values() if kind == "settled" and budget.window in (day, day[:7], "total")]
        return sum(rows) + sum(n for (_, charged), n in self.charged.items() if charged == budget) - self.forgiven[budget]

    def reserved(self, budget):
        return sum(n for (_, lent), n in self.leases.items() if lent == budget)

    def open(self, limit, day):
        budget = Budget(*limit[:2], quota.window(limit[2], day))
        if limit in self.limits and budget not in self.lims:
            self.lims[budget], self.over[budget], self.forgiven[budget] = self.limits[limit], 0, 0
        self.tidy()
        return budget

    def tidy(self):
        for budget, lim in self.lims.items():
            self.forgiven[budget] += min(0, self.used(budget))
            self.over[budget] = max(self.over[budget], self.used(budget) + self.reserved(budget) - lim)

    def draw(self, epoch, amounts):
        """What was not there any more comes off what was charged for the lease, when it was charged (`late`: of an older epoch)."""
        for budget, n in amounts.items():
            taken = min(n, self.leases[epoch, budget])
            self.leases[epoch, budget] -= taken
            yield budget, n - taken

    def write(self, one, epoch):
        slot = one.request_id, one.attempt
        if slot in self.rows:
            return
        kind, others = one.kind, {s: row for s, row in self.rows.items() if s[0] == slot[0] and row[0] == "settled" and row[1]}
        if one.recovered and any(s > slot for s in others):
            kind = "wasted"
        elif one.recovered:
            self.rows |= {s: ("settled", 0, row[2]) for s, row in others.items()}
        self.rows[slot] = kind, one.prompt_tokens, one.day
        missing = list(self.draw(one.lease_epoch or epoch, {d.budget: d.amount for d in one.draws})) if kind == one.kind else []
        for budget, n in missing if one.recovered else []:
            self.charged[one.lease_epoch, budget] -= min(n, self.charged[one.lease_epoch, budget])

    def balance(self):
        return {b: (self.used(b), self.reserved(b), self.over[b], self.forgiven[b]) for b in self.lims}


class Attempt:
    """One that a worker works on, or may have a receipt of."""

    def __init__(self, request, number, worker, epoch, day):
        self.request, self.number, self.worker, self.epoch, self.day = request, number, worker, epoch, day


class Money(RuleBasedStateMachine):
    """One directory's processes, one after the other, and their workers."""

    #: Makes the books of a new example, and runs what they return; set by the test.
    new, run = None, None

    @initialize(limits=st.lists(st.tuples(st.sampled_from(LIMITS), st.sampled_from([50, 1000])), min_size=1, max_size=3))
    def start(self, limits):
        self.books = self.run(self.new())
        self.model, self.day, self.now = Reference(), date(2026, 11, 29), NOON
        self.names = itertools.count()
        #: What the process has in memory: free of its leases, attempts that run, entries that no commit has acknowledged.
        self.free, self.running, self.batch = Counter(), [], []
        #: What a dead process was to be told: attempts whose workers may have receipts.
        self.outbox = []
        self.begin()
        for limit, lim in limits:
            self.is_put(limit, lim)

    def begin(self):
        self.run(self.books.begin(self.now))
        for worker in WORKERS:
            self.run(self.books.run(epochs.linked, self.books.epoch, worker))
        self.free.clear()

    def days(self):
        return self.day.isoformat()

    def budgets(self, day):
        return [Budget(scope, unit, quota.window(period, day)) for scope, unit, period in LIMITS]

    def commit(self, entries, lost=False):
        done = self.run(self.books.commit(*entries, lost=lost))
        for limit, day in itertools.product(LIMITS, sorted({one.day for one in done.written + done.adjusted if len(one.day) == 10})):
            if any(one.day == day and one.kind != "wasted" for one in done.written + done.adjusted):
                self.model.open(limit, day)
        return done

    # -- people ----------------------------------------------------------------------------------------------------------

    @rule(limit=st.sampled_from(LIMITS), to=st.sampled_from([0, 40, 100, 1000, 10**6, "reset", "cleared"]))
    def a_limit_is_changed(self, limit, to):
        if isinstance(to, int):
            self.is_put(limit, to)
        elif limit in self.model.limits:
            (self.is_reset if to == "reset" else self.is_cleared)(limit)

    def is_put(self, limit, lim):
        budget = self.model.open(limit, self.days())
        self.run(self.books.limit(budget, lim, day=self.days()))
        self.model.limits[limit] = lim
        self.model.open(limit, self.days())
        self.model.lims |= {b: lim for b in self.windows(limit) if b >= budget}
        self.model.tidy()

    def windows(self, limit):
        return [b for b in self.model.lims if b[:2] == limit[:2] and PERIODS[len(b.window)] == limit[2]]

    def is_reset(self, limit):
        budget = self.model.open(limit, self.days())
        self.run(self.books.run(quotas.reset, *limit, self.days()))
        self.model.forgiven[budget] += self.model.used(budget)
        self.model.over[budget] = 0
        self.model.tidy()

    def is_cleared(self, limit):
        self.run(self.books.run(quotas.clear, *limit))
        gone = self.windows(limit)
        del self.model.limits[limit]
        for budget in gone:
            del self.model.lims[budget], self.model.over[budget], self.model.forgiven[budget]
        self.model.leases = Counter({loan: n for loan, n in self.model.leases.items() if loan[1] not in gone})

    @rule(days=st.sampled_from([1, 1, 2, 31]))
    def day_is_over(self, days):
        self.day += timedelta(days=days)

    # -- a process -------------------------------------------------------------------------------------------------------

    @rule(least=st.integers(0, 40), more=st.integers(0, 60))
    def asks_for_a_loan(self, least, more):
        self.borrows(least, least + more)

    def borrows(self, least, want):
        """For one request under all limits."""
        budgets = {self.model.open(limit, self.days()): limit for limit in LIMITS}
        lent = self.run(self.books.borrow(*budgets, least=least, want=want))
        assert [one.budget for one in lent] == sorted(budget for budget, limit in budgets.items() if limit in self.model.limits)
        for one in lent:
            left = max(0, self.model.lims[one.budget] - self.model.used(one.budget) - self.model.reserved(one.budget))
            assert 0 <= one.amount <= left
            assert one.amount >= least or left < max(least, 1)
            self.model.leases[self.books.epoch, one.budget] += one.amount
            self.free[one.budget] += one.amount
            assert (one.used, one.reserved, one.limit) == (*self.model.balance()[one.budget][:2], self.model.lims[one.budget])

    @rule(limit=st.sampled_from(LIMITS), part=st.integers(1, 3))
    def gives_back(self, limit, part):
        budget = Budget(*limit[:2], quota.window(limit[2], self.days()))
        amount = self.free[budget] // part
        self.run(self.books.give_back({budget: amount}))
        list(self.model.draw(self.books.epoch, {budget: amount}))
        self.free[budget] -= amount

    @rule(requests=REQUESTS, funds=st.none() | st.integers(1, 100), lost=st.none() | st.booleans())
    def serves(self, requests, funds, lost):
        """Some end at once, and may be written at once."""
        if funds is not None:
            self.borrows(funds // 2, funds)
        for worker, amount, kind in requests:
            attempt = Attempt(f"r{next(self.names)}", 1, worker, self.books.epoch, self.days())
            if amount is None:
                self.running.append(attempt)
            else:
                self.outbox.append(attempt)
                self.ends(attempt, kind, amount)
        if lost is not None:
            self.commits(lost, len(self.batch))

    def ends(self, attempt, kind, amount):
        draws = {budget: min(amount, self.free[budget]) for budget in self.budgets(attempt.day)} if kind == "settled" else {}
        self.free.subtract(draws)
        made = self.entry(attempt, kind, amount, draws)
        self.batch.append(made)

    def entry(self, attempt, kind, amount, draws, **facts):
        taken = [(budget, n) for budget, n in draws.items() if n]
        made = {
            "kind": kind,
            "prompt_tokens": amount,
            "completion_tokens": 0,
            "cost": amount,
            "day": attempt.day,
            "worker_id": attempt.worker,
        }
        return entry(attempt.request, attempt=attempt.number, draws=taken, **made, **facts)

    @precondition(lambda self: self.running)
    @rule(index=ANY, amount=AMOUNTS, kind=KINDS, elsewhere=st.none() | st.sampled_from(WORKERS))
    def an_attempt_ends(self, index, amount, kind, elsewhere):
        """And perhaps another worker is tried."""
        attempt = self.running.pop(index % len(self.running))
        self.outbox.append(attempt)
        self.ends(attempt, "wasted" if elsewhere else kind, amount)
        if elsewhere:
            self.running.append(Attempt(attempt.request, attempt.number + 1, elsewhere, self.books.epoch, attempt.day))

    @precondition(lambda self: self.batch)
    @rule(lost=st.booleans(), most=st.integers(1, 5))
    def writes(self, lost, most):
        self.commits(lost, most)

    def commits(self, lost, most):
        """When the answer is lost the batch comes again, with others perhaps."""
        seen = len(self.model.rows)
        for one in self.batch[:most]:
            self.model.write(one, self.books.epoch)
        done = self.commit(self.batch[:most], lost)
        self.model.tidy()
        assert len(done.written) + len(done.known) == len(self.batch[:most])
        assert len(self.model.rows) - seen <= len(done.written)
        if not lost:
            del self.batch[:most]

    @rule(well=st.booleans(), receipts=st.lists(st.tuples(ANY, AMOUNTS, st.integers(1, 3), st.booleans()), max_size=4))
    def starts_anew(self, well, receipts):
        """After a good end, or after it died: what it had in memory is gone then, entries without an answer too. Its workers have receipts
        of all that they did."""
        if well and not self.running and not self.batch:
            self.run(self.books.run(epochs.end, self.books.epoch, self.now))
            self.give_all_back(self.books.epoch)
        self.outbox += self.running
        self.running, self.batch = [], []
        self.begin()
        for receipt in receipts if self.outbox else []:
            self.come(*receipt)

    def give_all_back(self, *over):
        for loan in self.model.leases:
            self.model.leases[loan] *= loan[0] not in over

    # -- what comes late ---------------------------------------------------------------------------------------------------

    def late(self):
        return [attempt for attempt in self.outbox if attempt.epoch < self.books.epoch]

    @rule(index=ANY, amount=AMOUNTS, more=st.integers(1, 3), again=st.booleans())
    def receipts_come(self, index, amount, more, again):
        self.come(index, amount, more, again)

    def come(self, index, amount, more, again):
        """In any order, of attempts that are billed, taken back or unknown; and again when their acknowledgement is lost."""
        if not self.late():
            return
        late = self.late()
        late = [late[(index + i) % len(late)] for i in range(min(more, len(late)))]
        made = [
            self.entry(one, "settled", amount, dict.fromkeys(self.budgets(one.day), amount), recovered=True, lease_epoch=one.epoch)
            for one in late
        ]
        for one in made:
            self.model.write(one, self.books.epoch)
        self.commit(made)
        self.model.tidy()
        if not again:
            self.outbox = [attempt for attempt in self.outbox if attempt not in late]

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_has_nothing_more_to_say(self, worker):
        if any(attempt.worker == worker for attempt in self.late()):
            return
        self.run(self.books.run(epochs.cleared, worker, self.books.epoch, self.now))
        self.give_all_back(*self.run(self.books.run(epochs.recover, self.books.epoch, self.now)))

    @rule()
    def a_day_is_over_for_the_janitor(self):
        self.now += timedelta(hours=25)
        self.run(self.books.run(epochs.beat, self.books.epoch, self.now))
        charged = self.run(self.books.run(epochs.expire, self.books.epoch, self.now))
        for one in charged:
            (draw,) = one.draws
            assert self.model.leases[one.lease_epoch, draw.budget] == draw.amount
            self.model.leases[one.lease_epoch, draw.budget] = 0
            self.model.charged[one.lease_epoch, draw.budget] += draw.amount
        self.commit(charged)
        self.model.tidy()
        self.run(self.books.run(epochs.recover, self.books.epoch, self.now))
        assert not [loan for loan, n in self.model.leases.items() if n and loan[0] != self.books.epoch]

    # -- what holds at all times --------------------------------------------------------------------------------------------

    @invariant()
    def the_books_are_right(self):
        if hasattr(self, "books"):
            assert self.run(self.books.broken()) == []

    @invariant()
    def they_say_what_the_model_says(self):
        if not hasattr(self, "books"):
            return
        rows = self.run(self.books.sql('SELECT scope, unit, "window", used, reserved, "over", forgiven FROM budgets'))
        said, balance = {Budget(*row[:3]): tuple(row[3:]) for row in rows}, self.model.balance()
        assert said == {budget: balance[budget] for budget in said}
        # one that is not there is made of the ledger when it is wanted: nothing may depend on it
        assert not [state for budget, state in balance.items() if budget not in said and (state[1] or state[3])]
        leases = self.run(self.books.sql('SELECT epoch, scope, unit, "window", amount FROM leases WHERE amount > 0'))
        assert {(row[0], Budget(*row[1:4])): row[4] for row in leases} == +self.model.leases
        assert all(used >= 0 and reserved >= 0 for used, reserved, *_ in self.model.balance().values())

    def teardown(self):
        if hasattr(self, "books"):
            self.run(self.books.close())


class Emptied(Books):
    """Books of one example, in a database that is used for all of them."""

    async def clear(self):
        for table in ("ledger", "ledger_commits"):
            await self.sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        await self.sql(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY")
        for table in ("ledger", "ledger_commits"):
            await self.sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    async def close(self):
        if self.database.file:
            await self.database.close()


@pytest.fixture
def machine(source, tmp_path):
    """The state machine on a database of this kind."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        if isinstance(source, Path):
            names = itertools.count()

            async def new():
                return Emptied(Database(f"sqlite:///{shutil.copy(source, tmp_path / f'{next(names)}.db')}"))
        else:
            database = Database(runner.run(stack.enter_async_context(fresh(source, TEMPLATE))))
            stack.push_async_callback(database.close)

            async def new():
                books = Emptied(database)
                await books.clear()
                return books

        yield type("Money", (Money,), {"new": staticmethod(new), "run": staticmethod(runner.run)})
        runner.run(stack.aclose())


def test_the_books_say_what_a_plain_model_says(machine):
    """Some 200 steps; `scripts/test --long` takes more than 50 000 on each database."""
    examples, steps = (1300, 50) if settings().max_examples >= 1000 else (8, 25)
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=steps))
