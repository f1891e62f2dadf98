"""Engines that say that they have no room: that is believed, but not for ever, and costs more than a word."""

import pytest

from mindgw.core.breaker import WINDOW
from mindgw.gateway import signals
from mindgw.gateway.seat import LONG_REST
from mindgw.gateway.signals import State
from tests.gateway.world import JSON, Box, World, engine

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def fleet_of(count: int, slots: int = 4) -> World:
    world = World()
    for number in range(count):
        Box(world, f"w{number}", engine("m", slots=slots))
    return world


def refuse(world: World, status: int = 503) -> int:
    """All that was asked is turned down until nobody asks; how often that was."""
    calls = 0
    while at_work := [box for box in world.boxes if box.requests]:
        calls += 1
        at_work[0].head(status, JSON, b'{"error":"no room"}')
        at_work[0].close(status=status)
    return calls


def answer(box: Box) -> None:
    box.head(200, JSON, ANSWER)
    box.close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_fleet_that_is_full_is_asked_once_all_round_and_then_what_retries_are_for(status):
    """A proxy in front of a dead engine says so for ever."""
    world = fleet_of(3)
    clients = [world.ask() for _ in range(3)]
    calls = 0
    for _ in range(60):
        calls += refuse(world, status)
        world.passes(1)
    assert 3 < calls <= 3 * 3 + 3 * 1.2 + 2 * 3
    assert {client.error.status for client in clients} == {502}
    assert world.meter.counters.retries_refused == 3
    assert world.used == 0


def test_requests_that_go_on_coming_are_bounded_too():
    world = fleet_of(1)
    calls = 0
    for _ in range(200):
        world.ask()
        calls += refuse(world)
        world.passes(1)
    assert calls <= 200 * 1.2 + 3 * (1 + 200 / 60)


def test_who_was_turned_down_once_by_each_waits_and_is_served():
    world = fleet_of(3, slots=1)
    client = world.ask()
    assert refuse(world) == 3
    assert client.state is State.WAITING
    world.passes(1)
    (box,) = [box for box in world.boxes if box.requests]
    answer(box)
    assert client.end == signals.Answer(200, ANSWER)
    assert world.pipeline.fleet.breaker.is_quiet


def test_the_word_of_an_agent_costs_nothing():
    """It knows its slots, and asked no engine."""
    world = fleet_of(1)
    client = world.ask()
    for _ in range(20):
        for box in world.boxes:
            if box.requests:
                box.close("busy")
        world.passes(LONG_REST)
    assert (client.code, world.meter.counters.retries_refused) == ("", 0)
    assert world.pipeline.fleet.breaker.is_quiet


def turns_down(world: World, box: Box, times: int) -> None:
    """One request after the other finds no room there, and is served by somebody else."""
    for _ in range(times):
        world.clock.now += LONG_REST
        while not box.requests:
            world.ask()
        box.head(503, JSON, b"{}")
        box.close(status=503)
        for other in world.boxes:
            while other.requests:
                answer(other)


def test_an_engine_that_never_has_room_is_left_alone_in_the_end():
    world = fleet_of(2)
    world.pipeline.fleet.strategy = "round-robin"
    first = world.boxes[0]
    turns_down(world, first, 6)
    assert not world.pipeline.fleet.breaker.tripped
    turns_down(world, first, 1)
    assert list(world.pipeline.fleet.breaker.tripped) == [(("w0", "e"), "m")]
    assert 3 * LONG_REST < WINDOW


def test_an_engine_that_serves_somebody_just_has_no_room():
    world = fleet_of(2)
    world.pipeline.fleet.strategy = "round-robin"
    first = world.boxes[0]
    while not first.requests:
        world.ask()
    held = first.stream
    request = first.requests.pop(held)
    turns_down(world, first, 12)
    assert world.pipeline.fleet.breaker.is_quiet
    first.requests[held] = request
    answer(first)


def test_one_success_and_its_word_is_believed_again():
    world = fleet_of(2)
    world.pipeline.fleet.strategy = "round-robin"
    first = world.boxes[0]
    for _ in range(5):
        turns_down(world, first, 4)
        world.clock.now += LONG_REST
        while not first.requests:
            world.ask()
        for box in world.boxes:
            while box.requests:
                answer(box)
    assert world.pipeline.fleet.breaker.is_quiet
