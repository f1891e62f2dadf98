"""The door to the request path: look-ups, workers that come and go, the sweep, and what it shows."""

import asyncio
from datetime import UTC, datetime

import pytest

from mindgw import errors
from mindgw.gateway import signals
from mindgw.gateway.signals import State
from mindgw_agent import session, wire
from tests.gateway.world import EVENT, JSON, PEPPER, Box, Client, World, engine, make_key

BODY = signals.Received(b'{"model":"m","messages":[{}]}')


async def settle(client: Client) -> None:
    """Until the look-up of its key is over."""
    async with asyncio.timeout(5):
        while client.exchange.caller is None and client.end is None:
            await asyncio.sleep(0)


# -- look-ups ----------------------------------------------------------------------------------------------------------


async def test_an_unknown_key_is_looked_up_once():
    world = World()
    Box(world)
    client = Client(world, world.key)
    client.post(BODY)
    assert client.state is State.OPENED
    await settle(client)
    assert client.state is State.SENT
    assert Client(world, world.key).exchange.caller == client.exchange.caller
    assert len(world.found) == 1


async def test_a_bad_key_is_refused_with_the_body_still_on_its_way():
    world = World()
    client = Client(world, make_key()[0])
    await settle(client)
    assert (client.code, client.state) == ("invalid_api_key", State.DONE)
    client.post(BODY)
    assert world.settled() == []


async def test_a_client_that_left_during_the_look_up_is_no_trouble():
    world = World()
    client = Client(world, world.key)
    client.post(signals.Gone())
    while not world.found:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (client.state, client.sent, world.settled()) == (State.DONE, [], [])


async def test_a_database_that_is_away_is_our_fault_and_says_try_again(caplog):
    world = World()

    async def find(key_id):
        raise OSError("the disk is gone")

    world.auth._find = find
    client = Client(world, world.key)
    await settle(client)
    assert (client.code, client.error.status, client.error.retry_after) == ("auth_unavailable", 503, 5)
    assert "the disk is gone" in caplog.text


async def test_management_asks_for_a_caller_too():
    world = World()
    key = world.add_key(role="admin")
    for header in ((b"authorization", b"Bearer " + key.encode()), (b"api-key", key.encode())):
        assert (await world.pipeline.identify([(b"host", b"h"), header])).rights.roles == ("admin",)
    for headers in ([], [(b"api-key", b"nonsense")]):
        with pytest.raises(errors.Unauthenticated):
            await world.pipeline.identify(headers)
    with pytest.raises(errors.BadRequest):
        await world.pipeline.identify([(b"api-key", b"one"), (b"x-api-key", b"two")])


async def test_a_revoked_key_is_refused_from_then_on():
    world = World()
    client = Client(world, world.key)
    await settle(client)
    row = next(iter(world.keys.values()))
    row.revoked_at = datetime.now(UTC)
    world.pipeline.revoke_key(row.id)
    assert client.code == "revoked_api_key"
    again = Client(world, world.key)
    await settle(again)
    assert again.code == "revoked_api_key"


# -- workers -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_comes_serves_those_who_wait():
    world = World()
    world.pipeline.fleet.remembered["away"] = frozenset("m")
    clients = [world.ask() for _ in range(3)]
    Box(world, "box", engine("m", slots=2))
    assert [client.state for client in clients] == [State.SENT, State.SENT, State.WAITING]


def test_a_new_engine_serves_those_who_wait():
    world = World()
    box = Box(world, "box", engine("m", healthy=False))
    client = world.ask()
    assert client.state is State.WAITING
    box.says(engine("m"))
    assert client.state is State.SENT


def test_a_worker_that_waits_for_approval_serves_nobody():
    world = World()
    Box(world, approved=False)
    assert world.ask().code == "model_not_found"
    assert world.pipeline.snapshot().workers[0].state == "pending"


@pytest.mark.parametrize("side", ["agent", "server"])
def test_a_draining_worker_finishes_what_it_has(side):
    world = World()
    box = Box(world, "box", engine("m", slots=2))
    running = world.ask()
    box.session.drain() if side == "agent" else world.pipeline.fleet.drain(box.door.worker)
    world.pump()
    waiting = world.ask()
    box.head(200, JSON, b"{}")
    box.close()
    assert (running.end, waiting.state) == (signals.Answer(200, b"{}"), State.WAITING)


def test_a_removed_worker_is_told_and_its_requests_go_elsewhere():
    world = World()
    one = Box(world, "one")
    client = world.ask()
    Box(world, "two")
    world.pipeline.remove_worker("one")
    world.pipeline.remove_worker("nobody")
    world.pump()
    assert one.events[-1] == wire.Goodbye("revoked", "This agent was removed from the server.")
    world.pipeline.sweep()
    assert "one" not in world.pipeline.fleet.workers
    assert client.exchange.state is State.SENT


#: Whatever ends a link, before its socket is closed.
PARTINGS = {
    "removed": lambda box: box.world.pipeline.remove_worker(box.name),
    "locked": lambda box: box.world.pipeline.lock_worker(box.name),
    "it says goodbye": lambda box: box.link.receive(wire.encode(wire.frame(wire.Goodbye("gone"))), 0.0),
}


@pytest.mark.parametrize("how", PARTINGS)
def test_nothing_is_sent_to_a_worker_whose_link_ends_nor_waits_for_its_socket(how):
    world = World()
    box = Box(world, "box", engine("m", slots=3))
    begun, running = world.ask(stream=True), world.ask(stream=True)
    box.head(data=EVENT, stream=1)
    PARTINGS[how](box)
    assert (begun.code, running.state, box.door.worker.used) == ("worker_lost", State.WAITING, 0)
    other = Box(world, "other", engine("m", slots=3))
    later = world.ask(stream=True)
    assert ([running.state, later.state], len(other.requests), len(box.requests)) == ([State.SENT] * 2, 2, 2)
    world.pipeline.sweep()
    box.cut()
    assert [one.name for one in world.pipeline.snapshot().workers] == ["other"]


def test_an_agent_that_does_not_read_is_sent_nothing_more():
    """What runs there hears of that when its socket goes: whoever had to say something to it is in the middle of a step."""
    world = World()
    box = Box(world, "box", engine("m", slots=2))
    running = world.ask()
    box.frozen = True
    while box.link.closing is None:
        box.link.drain()
    assert world.ask().state is State.WAITING
    assert running.state is State.SENT
    world.pipeline.sweep()
    assert (running.state, world.pipeline.fleet.workers) == (State.WAITING, {})


def test_a_newer_session_of_one_agent_replaces_the_older():
    world = World()
    old = Box(world, "box")
    client = world.ask(stream=True)
    new = Box(world, "box", epoch=1)
    assert old.events[-1].code == "replaced"
    assert client.state is State.SENT
    old.cut()
    new.head()
    new.close()
    assert client.end == signals.End()
    assert world.pipeline.fleet.workers["box"].epoch == 2


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_replaced_session_carried_does_not_wait_for_its_socket(begun):
    """The agent lost its connection and dialled again; the server's end of the old one may look alive for many minutes."""
    world = World()
    old = Box(world, "box")
    client = world.ask(stream=True)
    if begun:
        old.head(data=EVENT)
    old.frozen = True
    new = Box(world, "box", epoch=1)
    if begun:
        assert client.code == "worker_lost"
        assert (world.used, old.door.worker.used) == (0, 0)
        return
    assert (old.door.worker.used, world.used, len(new.requests)) == (0, 1, 1)
    new.head()
    new.close()
    assert client.end == signals.End()


def test_what_a_replaced_session_still_reports_is_void():
    world = World()
    old = Box(world, "box")
    new = Box(world, "box", epoch=1)
    seen = []
    world.pipeline.news.on_report = lambda worker, report: seen.append(worker.epoch)
    old.link.receive(wire.encode(wire.frame(wire.Report(7, [engine("old")]))), world.clock())
    assert (seen, [*world.pipeline.fleet.models()]) == ([], ["m"])
    new.says(engine("new"))
    assert (seen, [*world.pipeline.fleet.models()]) == ([2], ["new"])


def test_reports_are_passed_on_to_be_written_down():
    world = World()
    seen = []
    world.pipeline.news.on_report = lambda worker, report: seen.append((worker.id, report.serial))
    box = Box(world)
    box.says(engine("m"))
    assert seen == [("box", 0), ("box", 1)]


def test_the_way_to_a_worker_is_measured():
    world = World()
    box = Box(world)
    box.frozen = True
    world.passes(10)
    world.clock.now += 0.125
    box.frozen = False
    world.pump()
    world.pipeline.sweep()
    assert world.pipeline.snapshot().workers[0].rtt_ms == 125.0


# -- ending ------------------------------------------------------------------------------------------------------------


def test_a_pipeline_is_idle_when_no_client_waits():
    world = World()
    box = Box(world)
    assert world.pipeline.idle
    client = world.ask()
    assert not world.pipeline.idle
    client.post(signals.Gone())
    assert world.pipeline.idle
    box.close("cancelled")
    assert world.pipeline._running == set()


def test_draining_lets_those_finish_who_are_in():
    world = World()
    box = Box(world)
    running = world.ask()
    waiting = Client(world, world.key)
    world.pipeline.drain()
    waiting.post(BODY)
    box.head(200, JSON, b"{}")
    box.close()
    assert (running.end, waiting.state) == (signals.Answer(200, b"{}"), State.SENT)
    assert Client(world, world.key).code == "server_draining"


def test_agents_hear_of_a_drain_and_are_sent_away_at_its_end():
    world = World()
    boxes = [Box(world, "one"), Box(world, "two")]
    world.pipeline.drain()
    world.pump()
    assert [type(box.events[-1]) for box in boxes] == [session.DrainAsked] * 2
    assert not world.pipeline.deserted
    world.pipeline.farewell()
    world.pump()
    assert [(box.events[-1].code, box.events[-1].retry_after) for box in boxes] == [("draining", 1.0)] * 2
    for box in boxes:
        box.cut()
    assert world.pipeline.deserted


# -- the picture -------------------------------------------------------------------------------------------------------


def test_a_snapshot_shows_what_is():
    world = World()
    gpu = wire.Gpu("g", 10)
    Box(world, "box", engine("m", slots=2, version="9", url="http://127.0.0.1:1"), gpus=[gpu])
    [world.ask() for _ in range(3)]
    shown = world.pipeline.snapshot()
    (worker,) = shown.workers
    assert (shown.waiting, shown.running, shown.started_at) == (1, 2, 1000.0)
    assert (worker.name, worker.state, worker.slots, worker.used, worker.epoch) == ("box", "ready", 2, 2, 1)
    (engine_,) = worker.engines
    assert (engine_.id, engine_.kind, engine_.version, engine_.url) == ("e", "fake", "9", "http://127.0.0.1:1")
    assert ([model.id for model in engine_.models], worker.gpus) == (["m"], [gpu])
    assert (worker.rtt_ms, worker.last_seen.tzinfo) == (None, UTC)


def test_models_are_listed_once_with_all_their_names():
    world = World()
    Box(world, "one", engine(models=[wire.Model("m", kinds=["chat"], aliases=["b", "m"], created=5), wire.Model("a", kinds=["chat"])]))
    Box(world, "two", engine(models=[wire.Model("m", kinds=["chat"], aliases=["c"], created=7)]))
    shown = [(offer.id, offer.aliases, offer.created) for offer in world.pipeline.models()]
    assert shown == [("a", [], 0), ("m", ["b", "c"], 7)]


def test_a_worker_without_engines_can_be_shown():
    world = World()
    box = Box(world)
    box.says()
    (worker,) = world.pipeline.snapshot().workers
    assert (worker.state, worker.engines) == ("offline", [])


def test_each_engine_of_a_worker_is_shown_with_what_is_its_own():
    world = World()
    Box(world, "box", engine("m", id="e1", slots=4), engine("n", id="e2", slots=8, healthy=False), engine("o", id="e3"))
    world.ask("m")
    (worker,) = world.pipeline.snapshot().workers
    shown = [(e.id, e.healthy, e.slots, e.used, [model.id for model in e.models]) for e in worker.engines]
    assert shown == [("e1", True, 4, 1, ["m"]), ("e2", False, 8, 0, ["n"]), ("e3", True, 1, 0, ["o"])]
    assert (worker.slots, worker.used) == (5, 1)  # those of the engine that gives no answer carry nothing


def test_a_worker_that_was_never_heard_of_has_no_moment():
    world = World()
    box = Box(world)
    box.door.worker.last_seen = 0.0
    assert world.pipeline.snapshot().workers[0].last_seen is None
    box.door.heard()
    assert world.pipeline.snapshot().workers[0].last_seen is not None


def test_the_pepper_of_these_tests_is_one():
    assert len(PEPPER) == 32


def test_a_client_that_still_sends_does_not_hold_up_a_stop():
    world = World()
    Box(world)
    world.ask()  # its key is known from here on
    sends = Client(world, world.key)
    assert (sends.state, world.pipeline.idle) == (State.OPENED, False)
    world.boxes[0].head(200, JSON, b"{}")
    world.boxes[0].close()
    assert world.pipeline.idle
