"""What operators do with workers, on the disk and on the floor at once: real pipeline, real agents' sessions, both databases."""

import pytest
from sqlmodel import select

from mindgw.control import errands
from mindgw.core.worker import State
from mindgw.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from mindgw.gateway.registry import Registry
from mindgw.store import fleet
from mindgw.store.tables import AuditEntry
from mindgw_agent import wire
from tests.gateway.world import SERVER, Box, World


@pytest.fixture
def world():
    return World()


async def add(database, world=None, state="active", name="gpu"):
    """A worker, and the agent of it when there is a world for it."""
    async with database.write() as session:
        row = await fleet.add_worker(session, name, name.encode().ljust(32), state=state)
    return row, Box(world, row.id) if world is not None else None


async def stored(database, row):
    async with database.read() as session:
        found = await fleet.worker(session, row.id)
    return found.state_admin, found.reason


async def is_drained(database, row):
    async with database.read() as session:
        return (await fleet.worker(session, row.id)).drained


async def test_a_drain_is_on_the_disk_and_on_the_floor(database, world):
    row, _ = await add(database, world)
    told = await errands.drain(database, "ana", world.pipeline, "gpu")
    assert (told.state, told.drained, await is_drained(database, row)) == ("draining", True, True)
    assert world.pipeline.fleet.workers[row.id].state is State.DRAINING
    again = await errands.drain(database, "ana", world.pipeline, row.id)
    assert again.version == told.version
    with pytest.raises(PreconditionFailed):
        await errands.undrain(database, "ana", world.pipeline, "gpu", version=99)
    told = await errands.undrain(database, "ana", world.pipeline, "gpu")
    assert (told.state, told.drained, await is_drained(database, row)) == ("ready", False, False)


async def test_a_worker_that_is_away_is_drained_when_it_comes(database, world):
    await add(database)
    told = await errands.drain(database, "ana", world.pipeline, "gpu")
    assert (told.state, told.drained) == ("offline", True)


@pytest.mark.parametrize("state", ["pending", "locked", "quarantined"])
@pytest.mark.parametrize("what", [errands.drain, errands.undrain])
async def test_who_is_held_is_not_let_in_by_the_way(database, world, state, what):
    await add(database, state=state)
    with pytest.raises(Conflict, match=state):
        await what(database, "ana", world.pipeline, "gpu")


async def test_quarantine_is_written_down_and_ends_by_an_operator_alone(database, world):
    row, box = await add(database, world)
    registry = Registry(database, SERVER)
    world.pipeline.news.on_charge = registry.accused
    with pytest.raises(Conflict, match="not in quarantine"):
        await errands.release(database, "ana", world.pipeline, "gpu")
    box.link.receive(wire.encode(wire.Frame(0, wire.REPORT, b"[]")), 0.0)
    await registry.flush()
    state, reason = await stored(database, row)
    assert (state, reason.startswith("it reports what cannot be")) == ("quarantined", True)
    told = await errands.release(database, "ana", world.pipeline, "gpu")
    assert (told.state, told.reason, await stored(database, row)) == ("ready", "", ("active", ""))


async def test_what_an_operator_drained_stays_so_through_a_quarantine(database, world):
    row, box = await add(database, world)
    registry = Registry(database, SERVER)
    world.pipeline.news.on_charge = registry.accused
    await errands.drain(database, "ana", world.pipeline, "gpu")
    box.link.receive(wire.encode(wire.Frame(0, wire.REPORT, b"[]")), 0.0)
    await registry.flush()
    assert ((await stored(database, row))[0], await is_drained(database, row)) == ("quarantined", True)
    told = await errands.release(database, "ana", world.pipeline, "gpu")
    assert (told.state, told.drained, await stored(database, row)) == ("draining", True, ("active", ""))
    told = await errands.undrain(database, "ana", world.pipeline, "gpu")
    assert (told.state, told.drained) == ("ready", False)


@pytest.mark.parametrize("state", ["active", "draining", "pending"])
async def test_who_looked_at_another_version_releases_nobody(database, world, state):
    row, box = await add(database, world, state="active" if state == "draining" else state)
    version = (await errands.drain(database, "ana", world.pipeline, "gpu")).version if state == "draining" else row.version
    box.link.receive(wire.encode(wire.Frame(0, wire.REPORT, b"[]")), 0.0)  # the charge is on the floor alone
    with pytest.raises(PreconditionFailed):
        await errands.release(database, "ana", world.pipeline, "gpu", version=99)
    assert world.pipeline.fleet.workers[row.id].state is State.QUARANTINED
    told = await errands.release(database, "ana", world.pipeline, "gpu", version=version)
    shown, kept = {"active": ("ready", "active"), "draining": ("draining", "active"), "pending": ("pending", "pending")}[state]
    assert (told.state, told.version, await stored(database, row)) == (shown, version, (kept, ""))


async def test_a_charge_that_was_dropped_before_it_was_written_is_not_written(database, world):
    row, box = await add(database, world)
    registry = Registry(database, SERVER)
    world.pipeline.news.on_charge = registry.accused
    box.link.receive(wire.encode(wire.Frame(0, wire.REPORT, b"[]")), 0.0)
    await errands.release(database, "ana", world.pipeline, "gpu")
    await registry.flush()
    assert await stored(database, row) == ("active", "")


@pytest.mark.parametrize("state", ["pending", "locked"])
async def test_a_charge_outweighs_nothing_that_an_operator_decided(database, world, state):
    row, _ = await add(database, state=state)
    async with database.write() as session:
        assert await fleet.quarantine(session, row.id, "it lies") is None
        assert await fleet.quarantine(session, "nobody", "it lies") is None
    assert (await stored(database, row))[0] == state


async def test_a_command_is_followed_to_its_end(database, world):
    _, box = await add(database, world)
    told = await errands.order(database, "ana", world.pipeline, "gpu", "logs", "5")
    assert (told.worker, told.state) == ("gpu", "running")
    world.pump()
    (command,) = [event for event in box.events if isinstance(event, wire.Command)]
    box.session.progress(wire.Progress(id=command.id, done=True, lines=["a", "b"]))
    world.pump()
    found = await errands.errand(database, world.pipeline, "gpu", told.id)
    assert (found.state, found.lines) == ("done", ["a", "b"])
    with pytest.raises(NotFound):
        await errands.errand(database, world.pipeline, "gpu", "nothing")


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        ("drain", ""), ("rm", "x"), ("logs", ""), ("logs", "0"), ("logs", "1001"), ("logs", "x"), ("restart", "x"), ("load", ""),
        ("pull", ""), ("logs", "9" * 400),
        ("logs", "+"), ("logs", "+x"), ("logs", "++1"), ("logs", "+" + "9" * 16), ("logs", "+1\n"),
    ],
)  # fmt: skip
async def test_what_nobody_understands_is_not_sent(database, world, verb, argument):
    _, box = await add(database, world)
    with pytest.raises(BadRequest):
        await errands.order(database, "ana", world.pipeline, "gpu", verb, argument)
    assert not [event for event in box.events if isinstance(event, wire.Command)]


async def test_whoever_goes_on_reading_a_log_is_audited_when_they_begin(database, world):
    _, box = await add(database, world)

    async def reads(who, argument):
        told = await errands.order(database, who, world.pipeline, "gpu", "logs", argument)
        world.pump()
        command = [event for event in box.events if isinstance(event, wire.Command)][-1]
        box.session.progress(wire.Progress(id=command.id, done=True, line=int(argument.lstrip("+"))))
        world.pump()
        return (await errands.errand(database, world.pipeline, "gpu", told.id)).line

    assert [await reads("ana", argument) for argument in ("100", "+3", "+4")] == [100, 3, 4]
    assert await reads("bob", "+4") == 4  # has not begun: is told of now
    assert await reads("ana", "+5") == 5
    world.clock.now += 61.0
    assert await reads("ana", "+5") == 5
    async with database.read() as session:
        rows = (await session.exec(select(AuditEntry).where(AuditEntry.action == "worker.logs"))).all()
    noted = [(row.actor, row.detail["argument"]) for row in rows]
    assert sorted(noted) == [("ana", "+5"), ("ana", "100"), ("bob", "+4")]


async def test_a_worker_that_is_away_or_unknown_does_nothing(database, world):
    await add(database)
    with pytest.raises(Conflict, match="not connected"):
        await errands.order(database, "ana", world.pipeline, "gpu", "restart", "")
    with pytest.raises(NotFound):
        await errands.order(database, "ana", world.pipeline, "nobody", "restart", "")
