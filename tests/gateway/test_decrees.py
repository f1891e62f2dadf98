"""What was decided at another server of the database, as it is obeyed here while this one decides as well."""

from typing import NamedTuple

import pytest

from mindgw.core.worker import State
from mindgw.gateway.seat import Worker
from tests.gateway.world import Box, World


class Said(NamedTuple):
    """What the database says of a worker."""

    state: str = "active"
    reason: str = ""
    drained: bool = False


@pytest.fixture
def world():
    world = World()
    Box(world, "one")
    Box(world, "two")
    return world


def worker(world: World, name: str) -> Worker:
    return world.pipeline.fleet.workers[name]


def heeds(world: World, meanwhile=lambda: None, **said: Said) -> None:
    """The database is read, and something happens before that is looked at."""
    decrees = world.pipeline.decrees
    mark = decrees.mark
    meanwhile()
    decrees.heed({"one": Said(), "two": Said()} | said, mark)


MEANWHILE = {
    "another agent joins": lambda world: Box(world, "three"),
    "another agent dials again": lambda world: Box(world, "two", epoch=1),
    "another worker is drained": lambda world: world.pipeline.errands.drain("two"),
    "another worker is accused": lambda world: world.pipeline.fleet.accuse(worker(world, "two"), "it lies"),
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize(
    ("said", "state"),
    [
        (Said(drained=True), State.DRAINING),
        (Said("quarantined", "why"), State.QUARANTINED),
        (Said("locked"), None),
        (Said("removed"), None),
    ],
)
def test_what_happens_to_others_holds_up_no_decree(world, meanwhile, said, state):
    one = worker(world, "one")
    heeds(world, lambda: MEANWHILE[meanwhile](world), one=said)
    assert (one.state is state) if state else one.link.closing is not None


def test_what_is_decided_of_a_worker_meanwhile_holds_until_the_next_look(world):
    heeds(world, lambda: world.pipeline.errands.drain("one"), one=Said("quarantined", "why"), two=Said(drained=True))
    one, two = worker(world, "one"), worker(world, "two")
    assert (one.drained, one.charge, two.drained) == (True, "", True)
    heeds(world, one=Said("quarantined", "why"))
    assert (one.drained, one.charge, two.drained) == (False, "why", False)


def test_a_release_elsewhere_is_heard_although_something_was_decided_here_in_between(world):
    quarantined = Said("quarantined", "why")
    heeds(world, one=quarantined)
    heeds(world, lambda: world.pipeline.errands.drain("one"), one=quarantined)
    heeds(world)
    assert (worker(world, "one").charge, worker(world, "one").state) == ("", State.READY)


def test_an_agent_that_goes_on_lying_is_removed_all_the_same(world):
    one = worker(world, "one")
    world.pipeline.fleet.accuse(one, "it lies")
    heeds(world, lambda: world.pipeline.fleet.accuse(one, "it lies again"), one=Said("removed"))
    assert (one.charge, one.link.closing is not None) == ("it lies", True)


def test_a_charge_that_nobody_wrote_down_yet_stays(world):
    one = worker(world, "one")
    heeds(world, lambda: world.pipeline.fleet.accuse(one, "it lies"))
    heeds(world)
    assert one.charge == "it lies"


def test_a_charge_after_a_release_is_not_the_one_that_was_released(world):
    one, fleet = worker(world, "one"), world.pipeline.fleet
    heeds(world, one=Said("quarantined", "why"))
    world.pipeline.errands.release("one")
    fleet.accuse(one, "it lies again")
    heeds(world)
    assert one.charge == "it lies again"
    heeds(world, lambda: fleet.booked(one))
    assert one.charge == "it lies again", "that was read before it was written"
    heeds(world)
    assert one.charge == ""
