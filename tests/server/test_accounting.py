"""The accounts of a server put together, over a real database: limits, loans, the meter, the ledger and the seal of the tags."""

import logging
from collections import Counter
from datetime import UTC, datetime

import pytest

from mindgw import config, metrics
from mindgw.control import secrets
from mindgw.core.quota import IDLE, TOKENS, Budget
from mindgw.gateway import signals
from mindgw.gateway.pipeline import Pipeline
from mindgw.gateway.tag import BadTag
from mindgw.server import accounting, collector
from mindgw.server.accounting import Accounting
from mindgw.store import epochs, fleet, quotas, verify
from mindgw.store.database import Database
from mindgw.store.tables import Quota
from mindgw_agent import identity
from tests.control.receiving import Flaky, Site
from tests.gateway.test_tag import TAG
from tests.gateway.world import JSON, Box, Client, World
from tests.initialised import initialised
from tests.store.books import entry

LIMIT = 1000
ANSWER = b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}'


class Office:
    """One run of a server's accounts, with a pipeline that uses them; `world` has its clients and agents."""

    def __init__(self, directory, database, settings=""):
        if settings:
            (directory / "config.yaml").write_text(settings)
        known, self.secrets = config.load(None, directory), secrets.load(directory)
        self.counters = metrics.Counters()
        self.database = Flaky(database)
        self.accounting = Accounting(known, self.secrets, self.database, self.counters)
        self.world = World()
        self.world.pipeline = Pipeline(known, self.world.auth, self.accounting.accounts, self.world.clock)
        self.box = Box(self.world)
        self.site = Site(database, directory)
        self.org = Budget("org:o", TOKENS, "total")

    async def begin(self):
        await self.accounting.begin()
        return self

    @property
    def books(self):
        return self.accounting.books

    @property
    def leases(self):
        return self.accounting.quotas.desk.leases

    async def limit(self, budget, limit=LIMIT, mode="block"):
        async with self.site.database.write() as session:
            today = datetime.now(UTC).date().isoformat()
            wanted = Quota(scope=budget.scope, unit=budget.unit, period="total", lim=limit, on_exceed=mode)
            await quotas.put(session, wanted, today)
        await self.chore("reading limits")

    async def chore(self, name):
        """Does one of the chores once; False when it fails."""
        chores = {chore.name: chore for chore in [*self.accounting.writing(), *self.accounting.others()]}
        return await chores[name].once()

    async def ask(self, **fields) -> Client:
        """A request that has come as far as it can."""
        await self.world.auth.look_up(self.world.key, self.world.clock())
        client = self.world.ask(**fields)
        await self.funded()
        return client

    async def funded(self):
        """No loan is under way any more."""
        while self.world.pipeline._tasks:
            await next(iter(self.world.pipeline._tasks))
        self.world.pump()

    async def served(self, **fields):
        client = await self.ask(**fields)
        self.box.head(200, JSON, ANSWER)
        self.box.close()
        assert isinstance(client.end, signals.Answer)
        return client

    async def broken(self):
        async with self.site.database.read() as session:
            return [found async for found in verify.broken(session, self.secrets.chain_key, Counter())]


@pytest.fixture
async def directory(tmp_path):
    await initialised(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
async def database(directory):
    made = Database(config.load(None, directory).database_url)
    yield made
    await made.close()


@pytest.fixture
async def office(directory, database):
    made = await Office(directory, database).begin()
    await made.limit(made.org)
    return made


# -- a request's life --------------------------------------------------------------------------------------------------


async def test_what_a_request_used_leaves_the_lease_once_it_stands_in_the_ledger(office):
    client = await office.served(max_tokens=20)
    assert (office.leases.drawn(office.org), office.leases.free(office.org)) == (5, 36)
    assert await office.chore("writing usage")
    assert office.leases.drawn(office.org) == 0
    assert await office.site.rows() == [(client.request_id, 1, "settled", 3, 2)]
    assert await office.site.budget(office.org) == (5, 36)
    assert await office.broken() == []


async def test_as_long_as_it_is_not_written_it_stays_reserved(office):
    await office.served(max_tokens=20)
    office.database.fails = office.database.writes + 1
    assert not await office.chore("writing usage")
    assert (office.accounting.meter.unwritten, office.leases.drawn(office.org)) == (1, 5)
    assert await office.site.budget(office.org) == (0, 41)
    assert await office.chore("writing usage")
    assert (office.accounting.meter.unwritten, await office.site.budget(office.org)) == (0, (5, 36))


async def test_an_answer_of_the_database_that_was_lost_books_nothing_twice(office):
    await office.served(max_tokens=20)
    office.database.fails, office.database.late = office.database.writes + 1, True
    assert not await office.chore("writing usage")
    assert await office.chore("writing usage")
    assert await office.site.budget(office.org) == (5, 36)
    assert (office.leases.drawn(office.org), office.leases.free(office.org)) == (0, 36)
    assert await office.broken() == []


async def test_what_others_need_goes_back_with_the_next_commit(office):
    await office.limit(office.org, 42)
    await office.served(max_tokens=20)
    assert await office.chore("writing usage")
    assert (await office.site.budget(office.org), office.leases.free(office.org)) == ((5, 0), 0)


async def test_what_nobody_needs_goes_back_after_a_while(office, monkeypatch):
    await office.served(max_tokens=20)
    await office.chore("writing usage")
    now = accounting.monotonic()
    assert await office.chore("giving back loans")
    assert await office.site.budget(office.org) == (5, 36)
    monkeypatch.setattr(accounting, "monotonic", lambda: now + 2 * IDLE)
    office.database.fails = office.database.writes + 1
    assert not await office.chore("giving back loans")
    assert office.leases.free(office.org) == 36
    assert await office.chore("giving back loans")
    assert (await office.site.budget(office.org), office.leases.free(office.org)) == ((5, 0), 0)


async def test_rows_that_can_never_be_written_are_set_aside(office, caplog):
    await office.served()
    office.accounting.meter.settle(entry("bad", model="m", prompt_tokens=-5))
    assert await office.chore("writing usage")
    assert len(await office.site.rows()) == 1
    assert "cannot be written and is set aside" in caplog.text


async def test_a_request_is_refused_by_what_the_database_says(office):
    await office.limit(office.org, 40)
    client = await office.ask(max_tokens=20)
    assert client.end is None
    waiting = await office.ask(max_tokens=20)
    office.box.close("failed", "engine_error")
    assert client.code == "engine_error"
    assert (waiting.state, waiting.code) == (signals.State.FUNDING, "")
    await office.funded()
    assert waiting.state is signals.State.SENT
    office.box.head(200, JSON, b'{"usage":{"prompt_tokens":21,"completion_tokens":19}}')
    office.box.close()
    await office.chore("writing usage")
    refused = await office.ask(max_tokens=20)
    assert (refused.code, office.counters.quota) == ("insufficient_quota", {("org", "block"): 1})
    assert await office.site.budget(office.org) == (40, 0)
    await office.chore("writing usage")
    assert await office.broken() == []


# -- the whole of it ---------------------------------------------------------------------------------------------------


async def test_a_run_seals_tags_in_its_own_epoch(office, directory, database):
    sealed = office.accounting.seal.seal(TAG, "w")
    assert office.accounting.seal.epoch == office.books.epoch > 0
    other = await Office(directory, database).begin()
    assert other.accounting.seal.epoch > office.books.epoch
    assert other.accounting.seal.open(sealed, "w") == TAG
    with pytest.raises(BadTag):
        other.accounting.seal.open(sealed, "v")


async def test_prices_and_the_usual_cap_are_those_of_the_configuration(directory, database):
    office = await Office(directory, database, 'prices: "m=1.5/2, *=0.1/0.1"\nquotas: {output: 7}\n').begin()
    await office.limit(office.org)
    await office.ask()
    request = office.box.requests[1]
    assert b'"max_tokens":7}' in request.body
    assert office.accounting.seal.open(request.meta.tag, "box").price == (1_500_000, 2_000_000)
    office.box.head(200, JSON, ANSWER)
    office.box.close()
    await office.chore("writing usage")
    assert await office.site.sql("SELECT cost FROM ledger") == [(9,)]  # 3 * 1.5 + 2 * 2 = 8.5


async def test_limits_are_read_again(office):
    await office.served(max_tokens=20)
    async with office.site.database.write() as session:
        await quotas.clear(session, office.org.scope, TOKENS, "total")
    await office.served(max_tokens=20)
    assert await office.chore("reading limits")
    assert office.leases.free(office.org) == 0
    await office.served()
    await office.chore("writing usage")
    assert await office.broken() == []


async def test_what_the_metrics_tell_of_receipts(office):
    inbox = office.accounting.inbox
    inbox.booked, inbox.forged, inbox.orphans = 3, 1, 2
    counts = office.accounting.receipts()
    assert counts == {"booked": 3, "recovered": 0, "forged": 1, "mismatches": 0, "orphans": 2}
    assert counts.keys() == collector.RECEIPTS.keys()


async def test_chores_have_names_and_what_writes_is_done_once_more_at_the_end(office):
    assert [chore.name for chore in office.accounting.writing()] == ["writing usage", "taking receipts"]
    others = [chore.name for chore in office.accounting.others()]
    assert others == ["reading limits", "giving back loans", "settling servers that died", "a sign of life"]
    for name in [*others, "taking receipts"]:
        assert await office.chore(name)


async def test_keys_of_workers_that_were_removed_are_still_known(office):
    key = identity.public_half(identity.new_key())
    async with office.site.database.write() as session:
        worker = await fleet.add_worker(session, "box", key)
    assert await office.accounting._public_key(worker.id) == key
    assert await office.accounting._public_key("nobody") == b""


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_run_that_ends_gives_everything_back(office):
    await office.served(max_tokens=20)
    await office.chore("writing usage")
    await office.accounting.end()
    assert await office.site.budget(office.org) == (5, 0)
    assert await office.site.sql("SELECT count(*) FROM epochs WHERE ended_at IS NULL") == [(0,)]
    assert await office.broken() == []


async def test_what_could_not_be_written_stays_reserved_until_its_agents_told_of_it(office, directory, database, caplog):
    agent = await office.site.agent()
    await office.books.linked(agent.id)
    await office.served(max_tokens=20)
    office.database.fails = office.database.writes + 1
    await office.chore("writing usage")
    with caplog.at_level(logging.CRITICAL):
        await office.accounting.end()
    assert "1 ledger rows" in caplog.text
    assert await office.site.budget(office.org) == (0, 41)
    after = await Office(directory, database).begin()
    await after.books.linked(agent.id)
    assert await office.site.budget(office.org) == (0, 41)
    await after.books.cleared(agent.id)
    assert await office.site.budget(office.org) == (0, 0)
    assert await office.broken() == []


async def test_a_run_that_others_took_for_dead_goes_on_in_another(office, directory, database):
    """What runs meanwhile is billed all the same; its loans are gone, and those of the new run are whole."""
    first, sealed = office.books.epoch, office.accounting.seal.epoch
    await office.served(max_tokens=20)
    running = await office.ask(max_tokens=20)
    async with office.site.database.write() as session:
        await epochs.beat(session, first, datetime(2020, 1, 1, tzinfo=UTC))
    (directory.parent / "other").mkdir()
    other = Office(directory, database)
    other.books._instance = "there"
    await other.begin()
    assert await office.site.budget(office.org) == (0, 0)
    assert await office.chore("a sign of life")
    assert office.books.epoch == office.accounting.seal.epoch > first == sealed
    assert (office.leases.free(office.org), office.leases.drawn(office.org)) == (0, 0)
    office.box.head(200, JSON, ANSWER)
    office.box.close()
    fresh = await office.ask(max_tokens=20)
    assert (running.end is not None, fresh.end) == (True, None)
    await office.chore("writing usage")
    assert await office.site.budget(office.org) == (10, 41)
    office.box.head(200, JSON, ANSWER)
    office.box.close()
    await office.chore("writing usage")
    assert await office.site.budget(office.org) == (15, 36)
    assert office.leases.free(office.org) == 36
    assert await office.broken() == []
