"""Numbers that callers make up are told as far as anything can store them."""

from mindgw.store import stories
from tests.gateway.test_story import answer, of
from tests.gateway.world import Box, World, engine


def test_a_cap_beyond_all_numbers_holds_up_nobodys_story():
    world = World()
    box = Box(world, "box", engine("m", slots=2))
    client = world.ask("m", max_tokens=2**64)
    answer(box)
    assert of(world, client)[1].cap == stories.LARGEST
