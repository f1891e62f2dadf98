"""Routes and the tags of workers, on both databases."""

import pytest

from mindgw.core import routing
from mindgw.core.routing import Leg
from mindgw.errors import Conflict, NotFound, PreconditionFailed
from mindgw.store import fleet, routes
from mindgw.store.tables import Route


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


async def make(session, name="fast", **fields):
    return await routes.create(session, Route(**{"name": name, "match": name} | fields))


async def test_a_route_is_kept_as_it_is_written(session):
    await make(session, targets=["a@pool=gpu=90", "b=10"], fallbacks=["@zone=lab"], require=["region=eu"], spill=True, hedge=True)
    rules = routes.compiled(await routes.load(session))
    (route,) = rules.routes
    assert [routing.written(one) for one in route.targets] == ["a@pool=gpu=90", "b=10"]
    assert (route.spill, route.hedge, route.shadow, route.require) == (True, True, False, (("region", ("eu",)),))
    assert rules.of("fast") == (route, None)


async def test_there_is_one_route_of_a_name_and_one_for_a_name(session):
    await make(session)
    for name, match in (("fast", "other"), ("other", "fast")):
        with pytest.raises(Conflict) as refused:
            await make(session, name, match=match)
        assert refused.value.code == "route_exists"
    await make(session, "trial", match="fast", shadow=True)
    with pytest.raises(Conflict):
        await routes.change(session, "trial", {"shadow": False})


async def test_a_route_changes_at_the_version_that_its_changer_saw(session):
    await make(session)
    row = await routes.change(session, "fast", {"targets": ["m"]}, version=1)
    assert (row.version, row.targets, row.match) == (2, ["m"], "fast")
    for work in (routes.change(session, "fast", {}, version=1), routes.drop(session, "fast", version=1)):
        with pytest.raises(PreconditionFailed):
            await work
    assert (await routes.drop(session, "fast", version=2)).targets == ["m"]
    for work in (routes.change(session, "fast", {}), routes.drop(session, "fast"), routes.find(session, "fast")):
        with pytest.raises(NotFound):
            await work


async def test_there_are_only_so_many(session, monkeypatch):
    monkeypatch.setattr(routes, "MOST", 2)
    await make(session, "a")
    await make(session, "b")
    with pytest.raises(Conflict) as refused:
        await make(session, "c")
    assert refused.value.code == "too_many_routes"
    await routes.change(session, "a", {"spill": True})


@pytest.mark.parametrize(
    "field", [{"targets": ["a b"]}, {"fallbacks": [7]}, {"pins": ["zone"]}, {"require": ["="]}, {"targets": None}, {"strategy": "x"}]
)
async def test_what_cannot_be_read_leads_nowhere_and_pins_its_model_nowhere(field):
    rules = routes.compiled([Route(**{"name": "fast", "match": "fast"} | field), Route(name="m", match="m", targets=["x"])])
    real, _ = rules.of("fast")
    assert real.broken
    assert not routing.permits(rules.pinned(["fast"]), {"worker": "a"})
    assert rules.pinned(["m"]) == ()
    assert routing.plan(rules.of("m")[0], "m", (), "ada").legs == (Leg("x"),)


async def test_a_worker_has_its_tags_and_its_own_name_and_removed_ones_have_none(session):
    worker = await fleet.add_worker(session, "box", b"k" * 32)
    other = await fleet.add_worker(session, "gone", b"l" * 32)
    await fleet.set_state(session, other.id, "removed")
    worker.tags = {"worker": "other", "pool": "gpu"}
    await session.flush()
    said = await fleet.said(session, [])
    assert {id: routes.tags_of(one.name, one.tags) for id, one in said.items()} == {worker.id: {"worker": "box", "pool": "gpu"}}
    assert {id: one.state for id, one in (await fleet.said(session, [other.id, "nobody"])).items()} == {
        worker.id: "active", other.id: "removed",
    }  # fmt: skip
