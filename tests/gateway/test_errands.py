"""Commands to agents: their real sessions answer, or the test does in their name."""

import pytest

from mindgw.core.worker import State
from mindgw.errors import Conflict
from mindgw.gateway import errands as room
from mindgw_agent import wire
from tests.gateway.world import Box, World


def commands(box: Box) -> list[wire.Command]:
    return [event for event in box.events if isinstance(event, wire.Command)]


def says(box: Box, **fields) -> None:
    box.session.progress(wire.Progress(**fields))
    box.world.pump()


@pytest.fixture
def world():
    return World()


@pytest.fixture
def box(world):
    return Box(world)


def start(world: World, verb: str = "logs", argument: str = "5"):
    errand = world.pipeline.errands.start("box", "gpu", verb, argument)
    world.pump()
    return errand


def test_a_command_arrives_and_every_word_about_it_is_kept(world, box):
    errand = start(world, "pull", "m")
    (command,) = commands(box)
    assert (command.verb, command.argument) == ("pull", "m")
    says(box, id=command.id, note="half", part=0.5)
    assert (errand.state, errand.note, errand.part) == ("running", "half", 0.5)
    says(box, id=command.id, done=True, note="it is here", lines=["a"])
    assert (errand.state, errand.note, errand.lines) == ("done", "it is here", ["a"])
    says(box, id=command.id, done=True, error="late")
    assert errand.state == "done"
    assert world.pipeline.errands.find("box", errand.id) is errand
    assert world.pipeline.errands.find("other", errand.id) is None


def test_lines_come_with_their_number(world, box):
    errand = start(world)
    says(box, id=commands(box)[0].id, done=True, lines=["a", "b"], line=7)
    assert (errand.lines, errand.line) == (["a", "b"], 7)


def test_whoever_goes_on_takes_up_the_room_of_two_commands(world, box):
    errands = world.pipeline.errands
    assert not errands.goes_on("box", "logs", "ana")
    for _ in range(5):
        errands.start("box", "gpu", "logs", "+1", "ana")
        world.pump()
        says(box, id=commands(box)[-1].id, done=True)
        assert errands.goes_on("box", "logs", "ana")
    assert len(errands._known) == 1
    assert not errands.goes_on("box", "logs", "bob")
    assert not errands.goes_on("box", "load", "ana")
    world.clock.now += room.QUIET + 1
    assert not errands.goes_on("box", "logs", "ana")


def test_a_failure_is_told_by_its_code(world, box):
    errand = start(world)
    says(box, id=commands(box)[0].id, done=True, error="unsupported", note="no")
    assert (errand.state, errand.error, errand.note) == ("failed", "unsupported", "no")


def test_one_of_each_verb_at_a_time(world, box):
    start(world, "load", "m")
    start(world, "unload", "m")
    with pytest.raises(Conflict) as wrong:
        start(world, "load", "n")
    assert wrong.value.code == "worker_busy"
    says(box, id=commands(box)[0].id, done=True)
    start(world, "load", "n")


def test_the_end_of_the_link_is_the_end_of_a_command(world, box):
    errand = start(world)
    box.cut()
    assert (errand.state, errand.error) == ("failed", "worker_lost")
    with pytest.raises(Conflict) as wrong:
        start(world)
    assert wrong.value.code == "worker_offline"


def test_an_agent_that_says_nothing_more_is_not_waited_for_for_ever(world, box):
    errand = start(world, "load", "m")
    says(box, id=commands(box)[0].id, note="loading")
    world.clock.now += room.QUIET + 1
    found = world.pipeline.errands.find("box", errand.id)
    assert (found.state, found.error) == ("failed", "no_answer")
    start(world, "load", "m")


def test_an_agent_of_an_older_release_is_sent_no_command_but_it_can_be_drained(world, box):
    box.link.version = 1
    with pytest.raises(Conflict) as wrong:
        start(world)
    assert wrong.value.code == "agent_too_old"
    world.pipeline.errands.drain("box")
    assert world.pipeline.fleet.workers["box"].state is State.DRAINING
    world.pipeline.errands.undrain("box")
    world.pump()
    assert (world.pipeline.fleet.workers["box"].state, commands(box)) == (State.READY, [])


def test_a_drained_worker_finishes_what_it_has_and_takes_nothing_new(world, box):
    first = world.ask()
    world.pipeline.errands.drain("box")
    second = world.ask()
    assert [c.verb for c in commands(box)] == ["drain"]
    assert len(box.requests) == 1
    box.head(200, "application/json", b"{}")
    box.close()
    assert first.end is not None
    assert (second.end, len(box.requests)) == (None, 0)
    world.pipeline.errands.undrain("box")
    world.pump()
    assert len(box.requests) == 1


@pytest.mark.parametrize("what", ["drain", "undrain", "release"])
def test_a_worker_that_is_away_has_nothing_to_be_told(world, what):
    getattr(world.pipeline.errands, what)("nobody")


def test_an_answer_to_a_command_that_was_never_given_ends_the_link(world, box):
    with pytest.raises(wire.ProtocolError, match="command 9 was never given"):
        says(box, id=9)


def test_what_is_long_over_is_forgotten_and_what_goes_on_is_not(world, box, monkeypatch):
    monkeypatch.setattr(room, "MOST", 3)
    kept = start(world, "load", "m")
    over = []
    for _ in range(5):
        over.append(start(world))
        says(box, id=commands(box)[-1].id, done=True)
    known = [errand for errand in over if world.pipeline.errands.find("box", errand.id)]
    assert known == over[-2:]
    assert world.pipeline.errands.find("box", kept.id) is kept
    for verb in ("pull", "unload"):
        start(world, verb, "m")
    with pytest.raises(Conflict, match="Too many"):
        start(world)


def test_an_agent_that_answers_nothing_has_no_more_kept_for_it_than_one_command_of_each_verb(world, box):
    errands = world.pipeline.errands
    box.frozen = True
    for _ in range(50):
        errands.drain("box"), errands.undrain("box")
        for verb in ("load", "logs"):
            start(world, verb, "5")
        world.clock.now += room.QUIET + 1
    assert len(box.link._orders) == 2
    box.frozen = False
    world.pump()
    assert box.link.closing is None
