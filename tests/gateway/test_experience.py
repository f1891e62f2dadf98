"""What requests teach about their workers, on their whole path; and that nobody is asked anything where there is no choice."""

import pytest

from mindgw.gateway import signals
from mindgw.gateway.experience import Known
from mindgw.gateway.fleet import Placement
from mindgw_agent import wire
from tests.gateway.world import DONE, EVENT, JSON, Box, Client, World, engine

USED = b'{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}}'


def two(world: World) -> dict[str, Box]:
    return {name: Box(world, name, engine("m", slots=4)) for name in ("a", "b")}


def placed(client: Client) -> Placement:
    attempt = client.exchange._attempt
    assert attempt is not None
    return attempt.placement


def known(placement: Placement) -> Known:
    return placement.seat.past.known["m"]


def stream(world: World, boxes: dict[str, Box], first: float, rest: float = 1.0, **fields) -> Placement:
    """A stream of eleven events whose first one comes after so many seconds, and the last after some more."""
    client = world.ask(stream=True, **fields)
    placement = placed(client)
    box = boxes[placement.seat.worker.name]
    world.passes(first)
    box.head()
    box.data(EVENT)
    world.passes(rest)
    box.data(EVENT * 10 + DONE)
    box.close()
    assert client.end == signals.End()
    return placement


def test_a_stream_teaches_how_fast_its_worker_reads_and_writes():
    world = World()
    boxes = two(world)
    for _ in range(40):
        placement = stream(world, boxes, 0.4)
    learned = known(placement).learned
    tokens = placement.choice.prompt + 128
    assert learned.prefill() == pytest.approx(0.4 / tokens, rel=0.2)
    assert learned.decode() == pytest.approx(1.0 / 10, rel=0.25)


def test_requests_go_to_the_worker_that_turns_out_to_be_fast():
    world = World()
    boxes = two(world)
    taken = []
    for _ in range(30):
        client = world.ask(stream=True)
        name = placed(client).seat.worker.name
        taken.append(name)
        world.passes({"a": 3.0, "b": 0.1}[name])
        boxes[name].head()
        boxes[name].data(EVENT + DONE)
        boxes[name].close()
    assert set(taken[:6]) == {"a", "b"}
    assert set(taken[-10:]) == {"b"}


def test_an_answer_in_one_piece_teaches_what_it_took_beyond_its_prompt():
    world = World()
    boxes = two(world)
    for _ in range(40):
        client = world.ask()
        placement = placed(client)
        box = boxes[placement.seat.worker.name]
        world.passes(2.0)
        box.head(200, JSON, USED % (3, 20, 0))
        box.close(usage=wire.Usage(3, 20))
        assert client.end.status == 200
    learned = known(placement).learned
    assert learned.read == 0.0
    assert learned.decode() == pytest.approx((2.0 - placement.choice.reading) / 20, rel=0.25)


def test_no_more_tokens_are_believed_than_bytes_came():
    world = World()
    boxes = two(world)
    client = world.ask()
    placement = placed(client)
    answer = USED % (3, 10**6, 0)
    boxes[placement.seat.worker.name].head(200, JSON, answer)
    boxes[placement.seat.worker.name].close(usage=wire.Usage(3, 10**6))
    assert known(placement).learned.written <= len(answer)


@pytest.mark.parametrize(
    ("status", "close", "blamed"),
    [(500, ("done", ""), True), (503, ("done", ""), False), (400, ("done", ""), False), (200, ("failed", "engine_error"), True),
     (0, ("failed", "engine_timeout"), True), (0, ("failed", "refused"), True), (200, ("done", ""), False)],
)  # fmt: skip
def test_a_worker_is_blamed_for_what_is_its_own_fault(status, close, blamed):
    world = World()
    boxes = two(world)
    placement = placed(world.ask())
    box = boxes[placement.seat.worker.name]
    if status:
        box.head(status, JSON, b'{"error":{"message":"x"}}' if status >= 400 else USED % (1, 1, 0))
    box.close(*close)
    assert (known(placement).learned.errors > 0) is blamed


@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_that_is_lost_is_blamed(begun):
    world = World()
    boxes = two(world)
    placement = placed(world.ask(stream=True))
    box = boxes[placement.seat.worker.name]
    if begun:
        box.head()
        box.data(EVENT)
    box.cut()
    assert known(placement).learned.errors > 0


def test_a_client_that_leaves_teaches_what_it_had():
    world = World()
    boxes = two(world)
    client = world.ask(stream=True)
    placement = placed(client)
    box = boxes[placement.seat.worker.name]
    box.head()
    box.data(EVENT * 5)
    world.passes(1.0)
    client.post(signals.Gone())
    box.close("cancelled")
    learned = known(placement).learned
    assert learned.errors == 0.0
    assert learned.written == 4.0


def test_what_the_engine_remembered_is_learned_of_whole_answers():
    world = World()
    boxes = two(world)
    text = "word " * 2000
    for cached in (0, 2000, 0, 0):
        client = world.ask(messages=[{"role": "user", "content": text}])
        placement = placed(client)
        box = boxes[placement.seat.worker.name]
        box.head(200, JSON, USED % (2500, 2, cached))
        box.close(usage=wire.Usage(2500, 2, cached))
        world.passes(1.0)
    assert placement.choice.cached > 1000
    assert known(placement).tells
    assert known(placement).learned.trust < 1.0


@pytest.mark.parametrize(
    ("headers", "fields"),
    [([(b"x-claude-code-session-id", b"s")], {}), ([], {"prompt_cache_key": "s"}), ([], {"prompt_cache_key": "s", "tools": []})],
)
def test_a_conversation_that_names_itself_stays_on_its_worker(headers, fields):
    world = World()
    two(world)
    client = world.ask(headers=headers, **fields)
    owner = world.pipeline.fleet.experience.sessions.where("o", ("m", client.exchange.caller.key_id, "s"))
    assert owner == placed(client).seat.owner


def begins(system: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system * 100}, {"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("other", "salt", "remembered"),
    [("o", "", True), ("p", "", False), ("o", "pepper", False)],
    ids=["its own organisation", "another organisation", "another salt"],
)
def test_what_was_asked_is_remembered_for_its_organisation_and_salt_alone(other, salt, remembered):
    world = World()
    boxes = two(world)
    said = begins("The account number is 4711. ")
    stream(world, boxes, 0.1, messages=said)
    world.passes(60.0)
    fields = {"cache_salt": salt} if salt else {}
    choice = placed(world.ask(key=world.add_key(org_id=other), messages=said, **fields)).choice
    assert (choice.cached > 0) == remembered


def test_who_names_its_salt_again_is_remembered():
    world = World()
    boxes = two(world)
    said = begins("The account number is 4711. ")
    stream(world, boxes, 0.1, messages=said, cache_salt="pepper")
    world.passes(60.0)
    assert placed(world.ask(messages=said, cache_salt="pepper")).choice.cached > 0


def test_nobody_is_asked_where_there_is_no_choice():
    world = World()
    Box(world)
    client = world.ask(prompt_cache_key="s")
    assert placed(client).choice is None
    assert client.exchange._ask.needs.traits.prefix is None


def test_who_came_while_there_was_one_worker_is_known_for_what_it_is_once_there_are_more():
    world = World()
    one = Box(world, "a")
    world.ask()
    client = world.ask(prompt_cache_key="s", max_tokens=5, messages=[{"role": "user", "content": "x" * 4000}])
    assert client.state is signals.WAITING
    Box(world, "b"), Box(world, "c")
    choice = placed(client).choice
    assert choice.prompt > 900
    assert world.pipeline.fleet.experience.sessions.where("o", ("m", client.exchange.caller.key_id, "s")) == placed(client).seat.owner
    assert one.requests


def test_embeddings_have_no_beginning_that_is_remembered():
    world = World()
    for name in ("a", "b"):
        Box(world, name, engine("m", kinds=("embeddings",)))
    placement = placed(world.ask(path="/v1/embeddings", input="x" * 5000))
    assert len(world.pipeline.fleet.experience.prefixes) == 0
    assert placement.choice is not None


def test_those_of_other_rules_are_learned_of_too():
    world = World()
    boxes = two(world)
    world.pipeline.fleet.strategy = "round-robin"
    placement = stream(world, boxes, 1.0)
    assert placement.choice.strategy == "round-robin"
    assert known(placement).learned.read > 0


def test_who_has_not_begun_has_nothing_to_read():
    """A worker without room is not taken for busy reading what it was not given to read; nor for less busy than it is."""
    world = World()
    boxes = two(world)
    stays = placed(world.ask(stream=True))
    first = placed(client := world.ask(stream=True))
    assert first.seat is not stays.seat
    boxes[first.seat.owner].close("busy")
    past = first.seat.past
    assert past.sent - past.read == pytest.approx(0.0)
    assert stays.seat.past.sent - stays.seat.past.read > 0.0
    assert placed(client).seat is stays.seat
    heard = placed(client)
    world.pipeline.fleet.experience.heard(heard.seat, heard.choice, 0.1, world.clock())
    boxes[heard.seat.owner].close("busy", stream=max(boxes[heard.seat.owner].requests))
    assert heard.seat.past.read == heard.seat.past.sent
