"""Workers with several engines: where one of them fails, it is that one, and its sisters are asked like those of any other worker."""

import pytest

from mindgw.gateway import roster, signals
from mindgw.gateway.signals import State
from tests.gateway.world import JSON, Box, Client, World, engine

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
A, B = ("box", "a"), ("box", "b")


def box_with_two(world: World, name: str = "box", slots: int = 2) -> Box:
    return Box(world, name, engine("m", id="a", slots=slots), engine("m", id="b", slots=slots))


def head(status: int, body: bytes = b"{}"):
    def fail(box: Box) -> None:
        box.head(status, JSON, body)
        box.close(status=status)

    return fail


def closes(outcome: str, code: str = ""):
    return lambda box: box.close(outcome, code)


def serve(box: Box, client: Client, bad: str, fail) -> list[str]:
    """Engines that were asked until it was over; `bad` is the one that fails."""
    asked = []
    while client.end is None and box.requests:
        asked.append(box.requests[box.stream].meta.engine)
        if asked[-1] == bad:
            fail(box)
        else:
            head(200, ANSWER)(box)
    return asked


FAILS = {
    "500": head(500),
    "no model": head(404, b'{"error":"model \'m\' not found"}'),
    "no such way": head(404, b'{"detail":"Not Found"}'),
    "full": head(503),
    "unreachable": closes("failed", "engine_unreachable"),
    "refused": closes("failed", "refused"),
    "late": closes("failed", "engine_timeout"),
    "busy": closes("busy"),
}


@pytest.mark.parametrize("strategy", ["round-robin", "least-busy", "score"])
@pytest.mark.parametrize("fail", FAILS.values(), ids=FAILS)
def test_the_sister_of_an_engine_that_fails_is_asked(fail, strategy):
    world = World()
    world.pipeline.fleet.strategy = strategy
    box = box_with_two(world)
    bad = 0
    for _ in range(20):
        client = world.ask()
        asked = serve(box, client, "b", fail)
        assert client.end == signals.Answer(200, ANSWER)
        assert asked in (["a"], ["b", "a"])
        bad += "b" in asked
    assert 0 < bad < 10, "the one that fails is asked less and less"
    assert world.used == 0


def test_only_the_engine_that_fails_is_left_alone():
    world = World()
    world.pipeline.fleet.strategy = "round-robin"
    box = box_with_two(world)
    for _ in range(6):
        serve(box, world.ask(), "b", head(500))
    assert list(world.pipeline.fleet.breaker.tripped) == [(B, "m")]
    waiting = [world.ask() for _ in range(3)]
    assert [request.meta.engine for request in box.requests.values()] == ["a", "a"]
    assert waiting[-1].state is State.WAITING


def test_a_model_that_fails_on_both_engines_of_a_worker_is_shown_once():
    world = World()
    box_with_two(world)
    Box(world, "other")
    Box(world, "another")
    fleet = world.pipeline.fleet
    pool = [seat.id for seat in fleet.seats("m", "chat")]
    for seat, times in ((A, 3), (B, 3)):
        for _ in range(times):
            fleet.breaker.ended((seat, "m"), False, pool, world.clock())
        world.clock.now += 1
    assert [(each.model, each.state, each.retry_s) for each in roster.circuits(fleet, "box", world.clock())] == [("m", "open", 4.0)]
    assert roster.circuits(fleet, "other", world.clock()) == []


@pytest.mark.parametrize("is_gone", [True, False])
def test_with_its_link_all_engines_of_a_worker_are_lost(is_gone):
    """It may come back at once, and is not the first choice then."""
    world = World()
    world.pipeline.fleet.strategy = "round-robin"
    box = box_with_two(world)
    client = world.ask()
    lost = box.requests[box.stream].meta.engine
    if is_gone:
        box.cut()
    else:
        box.close("failed", "engine_unreachable")
    assert client.exchange._stay.needs.avoid == ({A, B} if is_gone else {("box", lost)})
    assert client.end is None


def test_a_second_try_goes_to_another_worker():
    world = World()
    box = box_with_two(world)
    client = world.ask(stream=True)
    exchange = client.exchange
    first = exchange._attempt.placement
    assert exchange._without_those_awaited(exchange._stay.needs, first).shun == {A, B}
    assert len(box.requests) == 1
