"""The machine of `test_machine`, with limits that nothing is on loan of at first: requests wait for the database, which may be away, and
are refused, and what they leave goes back."""

import asyncio
import contextlib
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.test_machine import LIMIT, Requests
from tests.gateway.world import EVENT, JSON, SSE

#: A hard limit of one model, and a soft one of all that is asked for: enough for a few requests.
HARD, SOFT = 160, 12
HOLDING = {State.SENT, State.RELAYING, State.CLOSING}


class Payers(Requests):
    """All steps are made as if in a loop; tasks go on when `loop_turns` or another rule says so."""

    @initialize()
    def begin(self):
        super().begin()
        self.loop = asyncio.new_event_loop()
        asyncio._set_running_loop(self.loop)
        self.now = 0.0
        self.limits = {self.world.limit("model:n", HARD): HARD, self.world.limit("org:o", SOFT, "soft"): SOFT, self.budget: LIMIT}

    def run(self, work):
        """Makes a coroutine's steps, and those of all that is under way."""
        asyncio._set_running_loop(None)
        try:
            return self.loop.run_until_complete(work)
        finally:
            asyncio._set_running_loop(self.loop)

    async def turns(self, count):
        for _ in range(count):
            await asyncio.sleep(0)

    @rule(model=st.sampled_from("mnn"), stream=st.booleans(), usage=st.booleans(), count=st.sampled_from([0, 2, 10, 10]))
    def ask_and_wait(self, model, stream, usage, count):
        self.ask(model=model, stream=stream, usage=usage)
        self.loop_turns(count=count)

    @precondition(lambda self: any(box.requests for box in self.world.boxes))
    @rule(prompt=st.integers(0, 21), completion=st.integers(0, 100), count=st.sampled_from([0, 10]))
    def serve_dearly(self, prompt, completion, count):
        """The newest request of a worker uses much of what it may."""
        box = next(box for box in self.world.boxes if box.requests)
        if box.session._streams[box.stream].phase == "running":
            box.head(200, SSE if box.requests[box.stream].meta.stream else JSON)
            box.data(EVENT if box.requests[box.stream].meta.stream else b"{}")
            box.close(usage=wire.Usage(prompt, completion))
            self.loop_turns(count=count)

    @rule(count=st.integers(1, 20))
    def loop_turns(self, count):
        self.run(self.turns(count))
        self.world.pump()

    @rule(away=st.booleans())
    def database(self, away):
        self.world.vault.away = away

    @rule(seconds=st.sampled_from([0.5, 5, 100]), spare=st.booleans())
    def return_loans(self, seconds, spare):
        self.now += seconds
        desk, today = self.world.quotas.desk, datetime.now(UTC).date().isoformat()
        with contextlib.suppress(OSError):
            self.run(desk.return_spare(self.now, today) if spare else desk.return_all(self.now, today))

    @rule()
    def forgive(self):
        """Somebody resets the limits: what is used counts no more."""
        for budget in self.limits:
            if budget in self.world.vault.budgets and budget != self.budget:
                self.world.vault.budgets[budget][0] = 0

    @invariant()
    def what_is_reserved_is_held_and_what_was_used_is_booked(self):
        """The budget of the first key, which gets nothing forgiven; the rest is said below, of every budget."""
        mine = [row for row in self.world.settled() if row.kind == "settled" and f"key:{row.key_id}" == self.budget.scope]
        assert self.world.vault.budgets[self.budget][0] == sum(row.amount("tokens") for row in mine)

    @invariant()
    def no_limit_is_passed_and_no_loan_is_lost(self):
        self.world.settled()
        leases = self.world.quotas.desk.leases
        running = [client.exchange._bill._reservation for client in self.clients if client.state in HOLDING]
        holds = [part._hold for reservation in running if reservation is not None for part in reservation.parts if part._hold is not None]
        for budget, limit in self.limits.items():
            used, reserved = self.world.vault.budgets.get(budget, (0, 0))
            held = sum(n for hold in holds for lease, n in hold.taken if lease.budget == budget)
            assert reserved == leases.free(budget) + leases.drawn(budget) + held
            assert reserved <= limit
            if limit != SOFT:
                assert used + reserved <= limit

    @invariant()
    def nobody_holds_but_who_runs(self):
        for client in self.clients:
            reservation = client.exchange._bill._reservation
            assert reservation is None or client.state in HOLDING or (reservation.held, reservation.budgets) == (0, ())

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            self.world.vault.away = False
            super().teardown()
            self.run(self.turns(50))
            assert not self.world.pipeline._tasks
            assert not self.world.quotas.desk._waiting
            self.no_limit_is_passed_and_no_loan_is_lost()
        finally:
            asyncio._set_running_loop(None)
            self.loop.close()


Payers.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestPayers = Payers.TestCase
