"""Who waits and why, as operators see it."""

import pytest

from mindgw.gateway import lineup
from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.world import EVENT, JSON, Box, World, engine


def teams(world: World) -> tuple[str, str]:
    """Keys of two teams."""
    return world.add_key(name="one", team="nlp"), world.add_key(name="two", team="vision")


def test_who_waits_stands_in_the_order_of_turns_before_who_runs():
    world = World()
    Box(world)
    first = world.ask()
    world.clock.now += 1
    second, third = world.ask(), world.ask()
    world.clock.now += 2
    found = world.pipeline.lineup()
    assert [entry.id for entry in found] == [second.request_id, third.request_id, first.request_id]
    assert [(entry.state, entry.position) for entry in found] == [("waiting", 1), ("waiting", 2), ("running", 0)]
    assert [entry.waited_s for entry in found] == [2.0, 2.0, 0.0]
    assert (found[2].running_s, found[2].worker, found[2].reason) == (3.0, "box", "")
    assert found[0].key == "k"


def test_why_somebody_waits():
    world = World()
    box = Box(world, "box", engine("m", slots=2))
    running, _ = world.ask(), world.ask()
    low = world.ask(service_tier="flex")
    assert next(entry.reason for entry in world.pipeline.lineup()) == "no free slot 2/2"
    world.ask()
    assert world.pipeline.place_of(low.request_id).reason == "no free slot 2/2, batch yields to normal"
    world.pipeline.pause_queue("m")
    assert world.pipeline.place_of(low.request_id).reason == "paused by an operator"
    world.pipeline.resume_queue()
    box.says(engine("m", healthy=False))
    assert world.pipeline.place_of(low.request_id).reason == "no worker is ready for m"
    assert world.pipeline.place_of(running.request_id).state == "running"
    assert world.pipeline.place_of("req-unknown") is None


def test_whose_share_was_large_is_told_so():
    world = World()
    box = Box(world)
    one, two = teams(world)
    for key, tokens in ((one, 300), (two, 100)):
        world.ask(key=key, stream=True)
        box.head()
        box.data(EVENT * tokens)
        box.close(usage=wire.Usage(5, tokens, source="engine"))
    world.ask(key=two)
    waits = [world.ask(key=key) for key in (one, one)]
    reason = world.pipeline.place_of(waits[1].request_id).reason
    assert reason.startswith("no free slot 1/1, fair share: nlp used 7")
    shares = world.pipeline.queue_stats().shares
    assert [share.team for share in shares] == ["nlp", "vision"]
    assert sum(share.share for share in shares) == pytest.approx(1, abs=0.001)


def test_the_queue_in_numbers():
    world = World()
    box = Box(world)
    world.ask()
    waits = world.ask(service_tier="flex")
    world.clock.now += 7
    stats = world.pipeline.queue_stats()
    assert (stats.waiting, stats.running, stats.oldest_s) == (1, 1, 7.0)
    assert stats.classes == {"bumped": 0, "high": 0, "normal": 0, "batch": 1, "sheddable": 0}
    assert (stats.eta_error_median, stats.paused, stats.paused_models) == (None, False, [])
    assert stats.bytes > 0
    box.head(content_type=JSON)
    box.data(b"{}")
    box.close()
    assert waits.state is State.SENT
    assert world.pipeline.queue_stats().oldest_s == 0


def test_a_long_queue_is_shown_in_part(monkeypatch):
    monkeypatch.setattr(lineup, "MOST", 3)
    world = World()
    Box(world)
    clients = []
    for _ in range(6):
        world.clock.now += 0.1
        clients.append(world.ask())
    assert [entry.id for entry in world.pipeline.lineup()] == [client.request_id for client in (*clients[1:4], clients[0])]
    assert world.pipeline.queue_stats().waiting == 5


def test_an_operator_moves_and_ends_requests():
    world = World()
    box = Box(world)
    world.ask()
    first, second = world.ask(), world.ask()
    assert world.pipeline.bump_request(second.request_id)
    assert world.pipeline.place_of(second.request_id).priority == "bumped"
    assert world.pipeline.cancel_request(first.request_id)
    assert first.code == "cancelled_by_operator"
    assert not world.pipeline.cancel_request(first.request_id)
    box.head(content_type=JSON)
    box.data(b"{}")
    box.close()
    assert second.state is State.SENT
    assert not world.pipeline.bump_request(second.request_id)
    assert not world.pipeline.bump_request("req-unknown")


def test_a_full_queue_can_be_looked_at_less_often():
    world = World()
    Box(world)
    assert world.pipeline.queue.leisure == 1
