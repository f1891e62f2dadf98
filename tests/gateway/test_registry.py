"""Against a real database."""

from datetime import UTC, datetime

import pytest

from mindgw import errors
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.handshake import Rejected
from mindgw.gateway.registry import Registry
from mindgw.gateway.seat import Worker
from mindgw.gateway.tunnel import Link
from mindgw.store import fleet as stored
from mindgw.store.database import Database
from mindgw_agent import identity, wire
from tests.gateway.world import AGENT, SERVER, engine, knows


@pytest.fixture
async def database(tmp_path):
    made = Database(f"sqlite:///{tmp_path}/test.db")
    await made.migrate()
    yield made
    await made.close()


async def enrolled(database: Database, name: str = "box", **columns) -> str:
    async with database.write() as session:
        row = await stored.add_worker(session, name, identity.public_half(AGENT), **columns)
        return row.id


def live(id: str, seen: float = 1_700_000_000.0) -> Worker:
    worker = Worker(id, "box", 1, Link(lambda: None, 0.0))
    worker.last_seen = seen
    return worker


async def row(database: Database, id: str):
    async with database.read() as session:
        return await stored.worker(session, id)


def test_what_the_server_signs_can_be_checked():
    registry = Registry(None, SERVER)  # type: ignore[arg-type]  # no database is asked
    assert identity.verify(registry.identity, registry.sign(b"message"), b"message")


async def test_a_worker_is_found_by_its_id(database):
    id = await enrolled(database)
    found = await Registry(database, SERVER).find(id)
    assert (found.name, found.public_key) == ("box", identity.public_half(AGENT))


@pytest.mark.parametrize(("state", "code"), [("removed", "revoked"), ("locked", "locked")])
async def test_a_worker_that_may_not_come_in_hears_why(database, state, code):
    id = await enrolled(database)
    async with database.write() as session:
        await stored.set_state(session, id, state, reason="stolen")
    with pytest.raises(Rejected) as caught:
        await Registry(database, SERVER).find(id)
    assert caught.value.goodbye.code == code


async def test_nobody_comes_in_without_having_joined(database):
    with pytest.raises(Rejected, match="Join again"):
        await Registry(database, SERVER).find("nobody")


async def test_a_session_is_written_down_once(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    await registry.enter(id, 1)
    await registry.enter(id, 5)
    assert (await row(database, id)).epoch == 5
    with pytest.raises(Rejected) as caught:
        await registry.enter(id, 5)
    assert caught.value.goodbye.code == "replaced"
    assert (await row(database, id)).epoch == 5


async def test_an_identity_that_was_used_twice_is_kept_out(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    await registry.lock(id)
    with pytest.raises(Rejected, match="two places"):
        await registry.find(id)


async def test_the_newest_report_of_each_worker_is_written(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    for serial, model in enumerate("abc"):
        registry.seen(live(id), wire.Report(serial, [engine(model, version="2")], hostname="h"))
    await registry.flush()
    written = await row(database, id)
    assert [model["id"] for model in written.models] == ["c"]
    assert (written.engine["kind"], written.engine["version"], written.hostname) == ("fake", "2", "h")
    assert written.last_seen_at == datetime.fromtimestamp(1_700_000_000, UTC)


async def test_all_engines_of_a_report_are_written_down(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    registry.seen(live(id), wire.Report(0, [engine("a", "b", id="e1", url="u1"), engine("b", id="e2", kind="vllm")]))
    await registry.flush()
    written = (await row(database, id)).engine
    assert (written["kind"], written["url"]) == ("fake", "u1")
    kept = [(engine["id"], engine["kind"], engine["models"]) for engine in written["engines"]]
    assert kept == [
        ("e1", "fake", ["a", "b"]),
        ("e2", "vllm", ["b"]),
    ]


async def test_a_report_without_engines_is_written_too(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    registry.seen(live(id), wire.Report())
    await registry.flush()
    assert ((await row(database, id)).models, (await row(database, id)).engine) == ([], {})


async def test_nothing_is_written_when_nothing_was_said(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    registry.seen(live(id), wire.Report(0, [engine("m")]))
    await registry.flush()
    async with database.write() as session:
        (await stored.worker(session, id)).hostname = "changed"
    await registry.flush()
    assert (await row(database, id)).hostname == "changed"


async def test_a_report_outlives_a_database_that_is_away(database, tmp_path):
    away = Database(f"sqlite:///{tmp_path}/nothing/here.db")
    registry = Registry(away, SERVER)
    id = await enrolled(database)
    registry.seen(live(id), wire.Report(0, [engine("m")]))
    with pytest.raises(errors.Draining):
        await registry.flush()
    registry._database = database
    await registry.flush()
    assert len((await row(database, id)).models) == 1


async def test_a_report_that_cannot_be_stored_holds_up_no_other(database, caplog):
    registry = Registry(database, SERVER)
    bad, good = await enrolled(database, "bad"), await enrolled(database, "good")
    registry.seen(live(bad), wire.Report(0, [engine("m")], hostname="h\udc00"))
    registry.seen(live(good), wire.Report(0, [engine("m")], hostname="h"))
    await registry.flush()
    assert ((await row(database, bad)).models, len((await row(database, good)).models)) == ([], 1)
    assert "set aside" in caplog.text and "h\\udc00" in caplog.text and caplog.text.isascii()
    caplog.clear()
    await registry.flush()
    assert caplog.text == ""
    registry.seen(live(bad), wire.Report(1, [engine("m")], hostname="better"))
    await registry.flush()
    assert (await row(database, bad)).hostname == "better"


async def test_models_of_workers_that_are_away_are_known_by_all_their_names(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    models = [wire.Model("org/m", kinds=["chat"], aliases=["m"])]
    registry.seen(live(id), wire.Report(0, [engine(models=models)]))
    await registry.flush()
    fleet = Fleet(lambda: None)
    await Registry(database, SERVER).remember(fleet)
    assert [knows(fleet, name) for name in ("org/m", "m", "x")] == [True, True, False]


async def test_models_of_removed_workers_are_not_known(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    registry.seen(live(id), wire.Report(0, [engine("m")]))
    await registry.flush()
    async with database.write() as session:
        await stored.set_state(session, id, "removed")
    fleet = Fleet(lambda: None)
    await registry.remember(fleet)
    assert not knows(fleet, "m")


@pytest.mark.parametrize(("state", "code"), [("removed", "revoked"), ("locked", "locked")])
async def test_a_worker_that_was_put_out_since_it_was_found_does_not_enter(database, state, code):
    registry, id = Registry(database, SERVER), await enrolled(database)
    await registry.find(id)
    async with database.write() as session:
        await stored.set_state(session, id, state)
    with pytest.raises(Rejected) as caught:
        await registry.enter(id, 1)
    assert (caught.value.goodbye.code, (await row(database, id)).epoch) == (code, 0)


async def test_who_enters_is_known_as_it_is_now_with_what_is_not_written_yet(database):
    registry, id = Registry(database, SERVER), await enrolled(database)
    accused = live(id)
    accused.charge = "it lies"
    registry.accused(accused)
    record, unwritten = await registry.enter(id, 1)
    assert (record.state_admin, unwritten) == ("active", "it lies")
    booked = []
    registry.on_booked = booked.append
    await registry.flush()
    assert booked == [accused]
    record, unwritten = await registry.enter(id, 2)
    assert (record.state_admin, record.reason, unwritten) == ("quarantined", "it lies", "")
