"""Threat 18: what is taken away at one server ends at the other servers of the database, too: streams that are under way within the five
seconds that are promised, at every trial."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from mindgw import clock
from mindgw.control import setup
from mindgw.core.worker import State
from mindgw.gateway import signals
from mindgw.server.app import CHECK
from mindgw.server.ways import Ways
from mindgw.store import fleet
from mindgw.store.tables import Worker
from tests.gateway.world import Box, Client, engine
from tests.postgres import fresh
from tests.server.site import site

#: Seconds in which a stream at another server is cut: the promise, and more than twenty times what it takes.
PROMISED = 5.0
TRIALS = 5
CHAT = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
#: How a key is lost -> (requests that take it away, code that its stream ends with).
LOST = {
    "revoked": ([("DELETE", "/keys/{id}", None)], "revoked_api_key"),
    "rotated": ([("POST", "/keys/{id}/rotate", {"grace_seconds": 0})], "rotated_api_key"),
    "disabled": ([("POST", "/users/{user}/disable", None)], "user_disabled"),
    "removed": ([("DELETE", "/users/{user}", None)], "revoked_api_key"),
    "all of them": ([("POST", "/users/{user}/disable", None), ("DELETE", "/keys/{id}", None)], ""),
}


@pytest.fixture(params=["sqlite", "postgres"])
def postgres_server(request):
    """Address of a Postgres, "" for SQLite."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else ""


@pytest.fixture
async def directory(postgres_server, tmp_path):
    """A data directory that two servers share."""
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(fresh(postgres_server, "template0")) if postgres_server else None
        made = await setup.initialise(tmp_path / "data", setup.Wishes(database=address))
        (tmp_path / "data" / "key").write_text(made.api_key)
        yield tmp_path / "data"


@pytest.mark.parametrize("how", LOST)
async def test_a_stream_at_another_server_is_cut_within_the_promise(directory, how):
    assert CHECK * 2 < PROMISED
    changes, code = LOST[how]
    async with AsyncExitStack() as open_ones:
        first = await open_ones.enter_async_context(site(directory))
        second = await open_ones.enter_async_context(site(directory))
        box = Box(second.world, "box", engine("m", slots=TRIALS * 2))
        bystander = Client(second.world, (await first.new_key("bystander"))["key"])
        bystander.post(signals.Received(CHAT))
        await second.until(lambda: box.requests)
        late = []
        for trial in range(TRIALS):
            assert (await first.call("POST", "/service-accounts", json={"name": f"u{trial}"})).status_code == 201
            key = await first.new_key(f"k{trial}", user=f"u{trial}@service")
            stream = Client(second.world, key["key"])
            stream.post(signals.Received(CHAT))
            await second.until(lambda trial=trial: len(box.requests) == trial + 2)
            began = clock.monotonic()
            for method, path, body in changes:
                done = await first.call(method, path.format(id=key["id"], user=f"u{trial}@service"), json=body)
                assert done.status_code == 200, done.text
            await second.until(lambda stream=stream: stream.code)
            late += [trial] * (clock.monotonic() - began > PROMISED)
            assert stream.code == code or not code
            again = await second.http.get("/v1/models", headers={"authorization": f"Bearer {key['key']}"})
            assert again.status_code == 401
        assert late == [], f"of {TRIALS} trials"
        assert bystander.code == "", "nobody else"


async def joined(place, name="box"):
    async with place.database.write() as session:
        session.add(Worker(id=name, name=name, public_key=b"k" * 32))
    box = Box(place.world, name, engine("m"))
    return box, place.pipeline.fleet.workers[name]


async def test_what_is_decided_at_one_server_holds_for_a_link_at_the_other(directory):
    async with AsyncExitStack() as open_ones:
        first = await open_ones.enter_async_context(site(directory))
        second = await open_ones.enter_async_context(site(directory))
        box, worker = await joined(second)

        async def good(method, path):
            answer = await first.call(method, path)
            assert answer.status_code in {200, 204}, answer.text

        await good("POST", "/workers/box/drain")
        await second.until(lambda: worker.state is State.DRAINING)
        await good("POST", "/workers/box/undrain")
        await second.until(lambda: worker.state is State.READY)
        async with first.database.write() as session:
            await fleet.quarantine(session, "box", "it lies")
        await second.until(lambda: (worker.state, worker.charge) == (State.QUARANTINED, "it lies"))
        await good("POST", "/workers/box/release")
        await second.until(lambda: (worker.state, worker.charge) == (State.READY, ""))
        second.pipeline.fleet.accuse(worker, "what nobody wrote down")
        await second.server.app.state.routes_changed()
        assert worker.charge == "what nobody wrote down"
        await good("DELETE", "/workers/box")
        await second.until(lambda: box.link.closing)
        assert box.link.closing.code == "revoked"


async def test_an_identity_that_one_server_locked_is_put_out_of_the_other(directory):
    async with site(directory) as place:
        box, _ = await joined(place)
        async with place.database.write() as session:
            await fleet.set_state(session, "box", "locked", reason="used twice")
        await place.until(lambda: box.link.closing)
        assert box.link.closing.code == "locked"


class Late:
    """The database of a server at which something happens right after it was read."""

    def __init__(self, database, happens):
        self._database, self._happens = database, happens

    @asynccontextmanager
    async def read(self):
        async with self._database.read() as session:
            yield session
        self._happens()


async def test_what_was_read_before_a_decision_changes_nothing_of_it(directory):
    async with site(directory) as place:
        _, worker = await joined(place)
        await Ways(place.pipeline, Late(place.database, lambda: place.pipeline.errands.drain("box"))).refresh()
        assert worker.drained
        await Ways(place.pipeline, place.database).refresh()
        assert not worker.drained
