"""Links of which half is gone: nothing comes through any more, and no socket says so."""

import pytest

from mindgw.gateway import signals
from mindgw.server.app import SWEEP
from tests.gateway.world import Box, World, engine


@pytest.mark.parametrize("spoke", [0.0, 3.7, 9.9])
def test_it_is_found_within_25_seconds_and_its_request_goes_elsewhere(spoke):
    """`spoke`: how long before the break the agent had said its last word."""
    world = World()
    box = Box(world, "box", engine("m"))
    client = world.ask(stream=True)
    world.clock.now += spoke
    broke = world.clock.now
    box.frozen = True
    other = Box(world, "other", engine("m"))
    while "box" in world.pipeline.fleet.workers:
        world.clock.now += SWEEP
        world.pipeline.sweep()
        world.pump()
        assert world.clock.now - broke <= 25.0
    assert client.state is signals.State.SENT
    assert len(other.requests) == 1
    assert list(world.pipeline.fleet.workers) == ["other"]
