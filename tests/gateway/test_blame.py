"""Whose fault it is that a request came to nothing: no caller can take a worker away from others by what it sends, and no worker keeps what
it does not do to itself.

Real agents' sessions; the test plays their engines. What each engine does is one function of the request, so nobody has to be told which
worker was asked.
"""

from collections.abc import Callable

import pytest

from mindgw import errors
from mindgw.config import Timeouts
from mindgw.core.breaker import ENOUGH
from mindgw.gateway import signals
from mindgw.gateway.signals import State
from tests.gateway.world import EVENT, JSON, SSE, Box, Client, World, engine

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
BOOM = b'{"error":{"message":"boom"}}'
NO_MODEL = b'{"error":{"message":"model \'m\' not found"}}'
NO_ROUTE = b'{"detail":"Not Found"}'
ODD = b'{"error":{"message":"this is odd"}}'
#: What an engine does with a request of this stream.
Engine = Callable[[Box, int], None]


def says(status: int, body: bytes = BOOM) -> Engine:
    def answer(box: Box, stream: int) -> None:
        box.head(status, JSON, body, stream=stream)
        box.close(stream=stream, status=status)

    return answer


good = says(200, ANSWER)


def fleet(*names: str, slots: int = 4) -> World:
    world = World()
    for name in names:
        Box(world, name, engine("m", slots=slots))
    world.pipeline.fleet.strategy = "least-busy"
    return world


def runs(world: World, **engines: Engine) -> None:
    """Engines do their work until there is none; those that are not named do well."""
    while streams := [(box, stream) for box in world.boxes for stream in box.requests]:
        for box, stream in streams:
            if stream in box.requests:
                engines.get(box.name, good)(box, stream)


def asks(world: World, key: str | None = None, **engines: Engine) -> Client:
    client = world.ask(key=key)
    runs(world, **engines)
    return client


def everywhere(world: World, engine: Engine) -> dict[str, Engine]:
    return {box.name: engine for box in world.boxes}


def earns(world: World, org: str = "o") -> None:
    """There are retries for it."""
    for _ in range(100):
        world.pipeline._failover.offer(org, world.clock())


def others(world: World) -> tuple[str, str]:
    """Keys of two organisations."""
    return world.add_key(org_id="bad"), world.add_key(org_id="fine")


def lines(world: World) -> set[str]:
    return {seat.owner for seat in world.pipeline.fleet.seats("m", "chat")}


# -- engines that say that they cannot --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("body", [BOOM, NO_MODEL, NO_ROUTE, b"", b'{"error":{"message":"evil is not supported"}}'])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_one_request_takes_no_worker_from_others(status, body, count):
    world = fleet(*(f"w{number}" for number in range(count)))
    bad, fine = others(world)
    for _ in range(2):
        assert asks(world, bad, **everywhere(world, says(status, body))).error is not None
        assert lines(world) == {box.name for box in world.boxes} or count == 5, "nobody did better"
        client = asks(world, fine)
        assert client.end == signals.Answer(200, ANSWER)


@pytest.mark.parametrize(("status", "body"), [(404, NO_MODEL), (404, NO_ROUTE), (405, b""), (501, b"")])
def test_who_says_that_it_has_no_such_thing_is_believed_when_another_one_has(status, body):
    world = fleet("a", "b", "c")
    lacks = {"a": says(status, body), "b": says(status, body)}
    clients = [asks(world, **lacks) for _ in range(6)]
    assert all(client.end == signals.Answer(200, ANSWER) for client in clients)
    assert lines(world) == {"c"}


@pytest.mark.parametrize("status", [404, 405, 501])
def test_who_finds_a_request_odd_is_not_taken_at_its_word(status):
    world = fleet("a", "b")
    odd = {"a": says(status, b'{"error":{"message":"this parameter is not supported"}}')}
    earns(world)
    for _ in range(10):
        assert asks(world, **odd).end == signals.Answer(200, ANSWER)
        assert lines(world) == {"a", "b"}
    assert world.pipeline.fleet.breaker.is_quiet


@pytest.mark.parametrize("callers", [1, 2])
def test_who_finds_the_requests_of_two_odd_is_left_alone_for_a_while(callers):
    world = fleet("a", "b")
    bad, fine = others(world)
    world.ask(key=fine)
    runs(world)
    for _ in range(3):
        asks(world, bad, a=says(501, ODD))
        asks(world, fine, a=says(501, ODD) if callers == 2 else good)
    assert ((("a", "e"), "m") in world.pipeline.fleet.breaker.tripped) is (callers == 2)
    assert lines(world) == {"a", "b"}


def test_the_only_worker_goes_on_to_be_asked_whatever_it_says():
    world = fleet("only")
    for _ in range(3):
        assert asks(world, only=says(404, NO_MODEL)).code == "model_not_found"
    assert asks(world).end == signals.Answer(200, ANSWER)


def test_who_is_left_when_the_others_go_is_asked_again():
    world = fleet("a", "b")
    while lines(world) != {"b"}:
        asks(world, a=says(404, NO_ROUTE))
    world.boxes[1].cut()
    assert lines(world) == {"a"}
    assert asks(world).end == signals.Answer(200, ANSWER)


def test_where_nobody_is_left_who_can_that_is_no_fault_of_the_callers():
    world = fleet("a", "b")
    fleet_, (seat,) = world.pipeline.fleet, world.boxes[0].door.worker.seats.values()
    assert fleet_.doubt(seat, "m", "chat", world.clock())
    with pytest.raises(errors.NoWorker):
        fleet_.check("m", "chat", (("worker", frozenset({"a"})),))
    with pytest.raises(errors.BadRequest):
        fleet_.check("m", "embeddings")


# -- requests that engines fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 6])
def test_nobody_cuts_others_off_by_what_it_sends(count):
    world = fleet(*(f"w{number}" for number in range(count)))
    bad, fine = others(world)
    for _ in range(5):
        for _ in range(ENOUGH):
            assert asks(world, bad, **everywhere(world, says(500))).error is not None
        assert asks(world, fine).end == signals.Answer(200, ANSWER)
        world.passes(20)


def test_who_waits_is_not_cut_off_by_others():
    world = fleet("only", slots=1)
    bad, fine = others(world)
    first = world.ask(key=bad)
    poison = [world.ask(key=bad) for _ in range(ENOUGH)]
    waits = world.ask(key=fine)
    while client := next((each for each in [first, *poison] if each.end is None and each.state is State.SENT), None):
        box = world.boxes[0]
        says(500)(box, box.stream)
        assert client.end is not None
        world.passes(0.3)
    runs(world)
    assert waits.end == signals.Answer(200, ANSWER)


def test_what_fails_everywhere_is_no_fault_of_the_workers():
    world = fleet("a", "b", "c", "d")
    earns(world)
    for _ in range(10):
        assert asks(world, **everywhere(world, says(500))).code == "engine_error"
    assert world.pipeline.fleet.breaker.is_quiet


def test_who_fails_what_another_does_is_to_blame():
    world = fleet("a", "b", "c", "d", slots=9)
    earns(world)
    for _ in range(12):
        assert asks(world, a=says(500), b=says(500)).end == signals.Answer(200, ANSWER)
    assert {worker for (worker, _engine), _model in world.pipeline.fleet.breaker.tripped} == {"a", "b"}


def test_what_was_sent_at_the_same_time_and_failed_everywhere_cuts_nobody_off():
    world = fleet("a", "b", slots=9)
    earns(world)
    for _ in range(9):
        world.ask()
    runs(world, **everywhere(world, says(500)))
    assert not world.pipeline.fleet.breaker.tripped


def test_nobody_spends_the_retries_of_others():
    world = fleet("a", "b", slots=4)
    bad, fine = others(world)
    for _ in range(50):
        asks(world, fine)
    for _ in range(50):
        asks(world, bad, **everywhere(world, says(500)))
        world.clock.now += 0.1
    assert world.meter.counters.retries_refused > 0
    assert [asks(world, fine, a=says(500)).end for _ in range(9)] == [signals.Answer(200, ANSWER)] * 9


@pytest.mark.parametrize(
    "message",
    [
        "Failed to parse tools: Missing tool function: {}", "Failed to parse messages: must be string", "Unknown reasoning format: zzz",
    ],
)  # fmt: skip
def test_what_an_engine_says_is_wrong_with_a_request_is_said_to_its_caller(message):
    world = fleet("only")
    client = asks(world, only=says(500, b'{"error":{"code":500,"message":"%s","type":"server_error"}}' % message.encode()))
    assert (client.code, client.error.status, client.error.message) == ("engine_refused", 400, message)
    assert world.pipeline.fleet.breaker.is_quiet


# -- probes -----------------------------------------------------------------------------------------------------------


def cut_off(world: World) -> None:
    """The only worker fails whatever it is sent; then its pause is over."""
    bad, fine = others(world)
    for key in (bad, fine) * (ENOUGH // 2):
        asks(world, key, **everywhere(world, says(500)))
    assert world.pipeline.fleet.breaker.tripped
    world.passes(6)


def test_a_probe_that_takes_long_keeps_nobody_from_the_only_worker():
    world = fleet("only")
    cut_off(world)
    slow = world.ask(key=world.add_key(org_id="bad"))
    waits = [world.ask(key=world.add_key(org_id="fine")) for _ in range(3)]
    assert [client.state for client in [slow, *waits]] == [State.SENT] + [State.WAITING] * 3
    world.passes(6)
    (box,) = world.boxes
    served = [stream for stream, request in box.requests.items() if request.meta.request_id != slow.request_id]
    assert len(served) == 1
    good(box, served[0])
    world.passes(1)
    assert [client.state for client in waits].count(State.SENT) == 2
    assert slow.state is State.SENT


def test_who_fails_probe_after_probe_keeps_nobody_from_the_only_worker():
    world = fleet("only")
    cut_off(world)
    bad, fine = others(world)
    for _ in range(20):
        asks(world, bad, only=says(500))
    assert world.pipeline.fleet.breaker.tripped[("only", "e"), "m"].pause <= 20.0
    world.passes(11)
    asks(world, bad, only=says(500))
    assert asks(world, fine).end == signals.Answer(200, ANSWER)


@pytest.mark.parametrize(
    ("columns", "ejects"),
    [
        ([{}, {}], False),
        ([{"team_id": "t"}, {"team_id": "t"}], False),
        ([{"team_id": "t"}, {"team_id": "s"}], True),
        ([{"user_id": "u"}, {"user_id": "u"}], False),
        ([{"user_id": "u"}, {"team_id": "t"}], True),
        ([{"user_id": "u"}, {"user_id": "v"}], True),
    ],
)
def test_a_hand_with_two_keys_has_one_word_while_somebody_else_is_about(columns, ejects):
    world = fleet("only")
    keys = [world.add_key(**each) for each in columns]
    asks(world, keys[0], only=says(500))
    asks(world, world.add_key(user_id="somebody"))
    for _ in range(ENOUGH):
        for key in keys:
            asks(world, key, only=says(500))
    assert bool(world.pipeline.fleet.breaker.tripped) is ejects


# -- agents that refuse -----------------------------------------------------------------------------------------------


def refuses(box: Box, stream: int) -> None:
    box.close("failed", "refused", stream=stream, message="the agent does not offer this model")


def test_who_refuses_is_not_asked_again():
    world = fleet("a", "b")
    asked = 0

    def refuse(box: Box, stream: int) -> None:
        nonlocal asked
        asked += 1
        refuses(box, stream)

    for _ in range(30):
        assert asks(world, a=refuse).end == signals.Answer(200, ANSWER)
        world.clock.now += 3.0
    assert 3 <= asked <= 3 + 90 / 20
    assert [row.kind for row in world.settled()] == ["settled"] * 30


def test_who_refuses_is_not_liked():
    world = fleet("a", "b")
    world.pipeline.fleet.strategy = "score"
    for _ in range(2):
        asks(world)
    seats = {seat.owner: seat for seat in world.pipeline.fleet.seats("m", "chat")}
    while not world.boxes[0].requests:
        runs(world)
        client = world.ask()
    before = client.exchange._attempt.placement.choice
    assert before is not None
    runs(world, a=refuses)
    assert seats["a"].past.known["m"].learned.errors > 0.0


@pytest.mark.parametrize("count", [1, 2])
def test_what_all_refuse_is_a_fault_of_the_fleet(count):
    world = fleet(*(f"w{number}" for number in range(count)))
    client = asks(world, **everywhere(world, refuses))
    assert (client.code, client.error.status, client.error.message) == ("no_worker_available", 503, "the agent does not offer this model")
    assert world.used == 0


# -- engines without room ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 404, 501, 400])
@pytest.mark.parametrize("how", ["endless", "broken", "cancelled", "busy"])
def test_an_error_that_does_not_end_costs_a_try(status, how):
    world = fleet("only", slots=2)
    client = world.ask(stream=True)
    (box,) = world.boxes
    calls = 0
    while box.requests and calls < 20:
        calls += 1
        stream = box.stream
        box.head(status, JSON, b"x" * 50, stream=stream)
        if how == "endless":
            for _ in range(40):
                if stream not in box.cancelled:
                    box.data(b"x" * 60_000, stream=stream)
            box.close("cancelled", stream=stream)
        else:
            box.close({"broken": "failed"}.get(how, how), stream=stream)
    assert (calls, client.code) == (1, "engine_error")
    assert world.used == 0


def test_an_error_that_takes_too_long_costs_a_try():
    world = World(Timeouts(first_token=20, idle=20))
    for name in "ab":
        Box(world, name)
    client = world.ask(stream=True)
    for _ in range(2):
        box = next(box for box in world.boxes if box.requests and not box.cancelled)
        box.head(429, JSON)
        world.passes(25)
    assert client.code == "engine_timeout"


def test_who_has_no_room_rests_each_time():
    world = fleet("only")
    client = world.ask()
    (box,) = world.boxes
    pauses = []
    for _ in range(4):
        (seat,) = world.pipeline.fleet.seats("m", "chat")
        says(429)(box, box.stream)
        pauses.append(seat.rests_until - world.clock())
        assert client.state is State.WAITING
        world.clock.now = seat.rests_until
        world.pipeline.sweep()
        world.pump()
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    runs(world)
    assert client.end == signals.Answer(200, ANSWER)


def test_who_refuses_what_it_has_begun_ends_it():
    world = fleet("a", "b")
    client = world.ask(stream=True)
    box = next(box for box in world.boxes if box.requests)
    box.head(200, SSE, EVENT)
    box.close("failed", "refused")
    assert (client.code, world.used) == ("no_worker_available", 0)
    assert isinstance(client.end, signals.Fail) and client.end.begun
