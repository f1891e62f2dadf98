"""Requests whose workers fail them before a byte of the answer has left: others answer, the bill is right, and nothing leaks.

Real agents' sessions; the test plays their engines.
"""

import json

import pytest

from mindgw import errors
from mindgw.config import Config, Routing, Timeouts
from mindgw.core import sse
from mindgw.gateway import signals
from mindgw.gateway.attempt import CANCEL_GRACE
from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.world import DONE, EVENT, JSON, SSE, Box, Client, World, engine

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def pair(timeouts: Timeouts | None = None, slots: int = 1, **fields) -> World:
    """A world with two workers."""
    world = World(timeouts, **fields)
    for name in ("one", "two"):
        Box(world, name, engine("m", slots=slots))
    return world


def at_work(world: World) -> Box:
    """The worker that was asked."""
    (box,) = [box for box in world.boxes if box.requests]
    return box


def answers(box: Box, client: Client) -> None:
    """The request is served there."""
    if box.requests[box.stream].meta.stream:
        box.head()
        box.data(EVENT)
        box.close()
        assert client.body.endswith(EVENT + DONE)
    else:
        box.head(200, JSON, ANSWER)
        box.close()
        assert client.end == signals.Answer(200, ANSWER)


def kinds(world: World) -> list[tuple[str, int, str]]:
    """Of each row, its kind, its attempt, and what went wrong."""
    return [(row.kind, row.attempt, row.error_code or row.outcome) for row in world.settled()]


def head(status: int, body: bytes = b"", content_type: str = JSON):
    def fail(box: Box) -> None:
        box.head(status, content_type, body)
        box.close(status=status)

    return fail


def closes(outcome: str, code: str = ""):
    return lambda box: box.close(outcome, code)


def begins(data: bytes, content_type: str = SSE):
    """An answer that is none from its first bytes on; its agent does not know yet."""

    def fail(box: Box) -> None:
        box.head(200, content_type, data)

    return fail


ERROR = sse.event(b'{"error":{"message":"out of memory","code":500}}')
FAILS = {
    "500": (head(500, b'{"error":"boom"}'), "engine_error"),
    "502 html": (head(502, b"<html>", "text/html"), "engine_error"),
    "key": (head(401, b'{"error":"Unauthorized"}'), "engine_error"),
    "no model": (head(404, b'{"error":"model \'m\' not found"}'), "model_not_found"),
    "no route": (head(404, b'{"detail":"Not Found"}'), "engine_refused"),
    "not implemented": (head(501, b'{"error":{"message":"is not supported"}}'), "engine_refused"),
    "timeout": (closes("failed", "engine_timeout"), "engine_timeout"),
    "protocol": (closes("failed", "engine_protocol"), "engine_error"),
    "nothing": (closes("done"), "engine_error"),
    "cancelled": (closes("cancelled"), "engine_error"),
}
STREAMS = {
    "error first": (begins(ERROR), "engine_error"),
    "garbage": (begins(b"data: nonsense\n\n"), "engine_error"),
    "comment and error": (begins(b": hello\n\n" + ERROR), "engine_error"),
    "no stream": (begins(b"{}", JSON), "engine_error"),
}
WHOLES = {
    "empty": (head(200), "engine_error"),
    "html": (head(200, b"<html>", "text/html"), "engine_error"),
    "error with 200": (head(200, b'{"error":{"message":"out of memory"}}'), "engine_error"),
    "cut": (head(200, b'{"choices":['), "engine_error"),
}
CASES = [
    *((stream, *case) for case in FAILS.values() for stream in (True, False)),
    *((True, *case) for case in STREAMS.values()),
    *((False, *case) for case in WHOLES.values()),
]


@pytest.mark.parametrize(("stream", "fail", "code"), CASES)
def test_another_worker_answers_and_one_attempt_is_billed(stream, fail, code):
    world = pair()
    client = world.ask(stream=stream)
    bad = at_work(world)
    fail(bad)
    assert client.sent == []
    good = next(box for box in world.boxes if box is not bad)
    answers(good, client)
    assert kinds(world) == [("wasted", 1, code), ("settled", 2, "done")]
    for stream_id in list(bad.requests):
        bad.close("cancelled", stream=stream_id)
    assert world.used == 0
    assert world.meter.counters.failovers == {code: 1}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":"top_p"}', "engine_refused"),
        (413, b'{"error":"large"}', "engine_refused"),
        (422, b'{"detail":"no"}', "engine_refused"),
        (400, b'{"error":"exceeds the available context size"}', "context_length_exceeded"),
        (500, b'{"error":"image input is not supported"}', "engine_refused"),
        (404, b'{"error":"maximum context length"}', "context_length_exceeded"),
    ],
)
def test_what_is_the_callers_fault_is_passed_on(stream, status, body, code):
    world = pair()
    client = world.ask(stream=stream)
    head(status, body)(at_work(world))
    assert client.code == code
    assert "tried" not in client.error.message
    assert [row.error_code for row in world.settled()] == [code]
    assert (world.used, not world.meter.counters.failovers) == (0, True)


@pytest.mark.parametrize("fail", [head(503, b'{"error":"loading model"}'), head(429, b"{}"), closes("busy")])
def test_an_engine_without_room_is_routed_around_and_not_taken_for_a_failure(fail):
    world = pair()
    client = world.ask()
    fail(at_work(world))
    answers(at_work(world), client)
    assert kinds(world) == [("settled", 2, "done")]
    assert world.pipeline.fleet.breaker.is_quiet


def test_an_engine_that_has_no_room_again_and_again_is_asked_less_and_less():
    world = World(Timeouts(queue=100))
    box = Box(world)
    client = world.ask()
    asked = 0
    for _ in range(99):
        if box.requests:
            asked += 1
            box.close("busy")
        world.passes(1)
    assert asked < 20
    world.passes(8)
    assert client.code == "queue_timeout"


def test_the_last_error_is_what_the_caller_hears():
    world = World()
    for name in "abcd":
        Box(world, name)
    client = world.ask()
    for number in range(3):
        head(500, b'{"error":"boom %d"}' % number)(at_work(world))
    assert (client.code, client.error.status, client.error.message) == ("engine_error", 502, "boom 2 (tried 3 times)")
    assert kinds(world) == [("wasted", 1, "engine_error"), ("wasted", 2, "engine_error"), ("wasted", 3, "engine_error")]
    assert [row.outcome for row in world.rows] == ["engine_error", "engine_error", "failed"]


def test_the_worker_that_failed_is_not_asked_again_though_the_other_is_busy():
    world = pair()
    first = world.ask()
    busy = at_work(world)
    second = world.ask()
    bad = next(box for box in world.boxes if box is not busy)
    third = world.ask()
    head(500)(bad)
    assert (second.state, third.state) == (State.WAITING, State.SENT), "who may have the slot is not held up by who may not"
    answers(bad, third)
    late = world.ask()
    assert late.state is State.SENT, "nor is who comes later"
    answers(busy, first)
    answers(busy, second)
    answers(bad, late)
    assert world.used == 0


def test_who_waits_for_the_other_worker_hears_the_error_when_that_goes_away():
    world = pair()
    world.ask()
    busy = at_work(world)
    client = world.ask()
    bad = next(box for box in world.boxes if box is not busy)
    head(500, b'{"error":"boom"}')(bad)
    assert client.state is State.WAITING
    busy.session.drain()
    world.pump()
    world.passes(2)
    assert (client.code, client.error.message) == ("engine_error", "boom")


def test_who_may_not_have_a_slot_and_leaves_the_line_leaves_nothing_behind():
    world = pair()
    world.ask()
    busy = at_work(world)
    clients = []
    for _ in range(3):
        clients.append(world.ask())
        head(500)(next(box for box in world.boxes if box is not busy))
    assert [client.state for client in clients] == [State.WAITING] * 3
    for client in clients:
        client.post(signals.Gone())
    assert (world.pipeline.queue.waiting, len(world.pipeline.queue._apart)) == (0, 0)


def test_a_model_whose_workers_are_all_removed_while_somebody_waits_is_waited_for():
    world = World(Timeouts(worker_return=20))
    box = Box(world)
    world.ask()
    waiting = world.ask()
    world.pipeline.remove_worker("box")
    box.cut()
    world.passes(10)
    assert waiting.state is State.WAITING
    world.passes(15)
    assert waiting.code == "no_worker_available"


# -- what is out of time ----------------------------------------------------------------------------------------------


def silent(box: Box) -> None:
    """Nothing comes."""


def half_an_event(box: Box) -> None:
    box.head(200, SSE, EVENT[:9])


def a_comment(box: Box) -> None:
    box.head(200, SSE, b": wait\n\n")


@pytest.mark.parametrize(
    ("begin", "timeouts"),
    [
        (silent, Timeouts(first_token=50)),
        (half_an_event, Timeouts(idle=50)),
        (a_comment, Timeouts(idle=50)),
    ],
)
def test_a_worker_that_is_silent_is_replaced_and_keeps_its_slot_until_it_is_free(begin, timeouts):
    world = pair(timeouts)
    client = world.ask(stream=True)
    bad = at_work(world)
    begin(bad)
    world.passes(51)
    assert (client.state, bad.cancelled, world.used) == (State.SENT, [1], 2)
    good = next(box for box in world.boxes if box is not bad)
    answers(good, client)
    assert world.used == 1
    waiting = world.ask()
    assert good.requests and waiting.state is State.SENT
    bad.close("cancelled")
    assert world.used == 1
    answers(good, waiting)
    assert kinds(world)[0] == ("wasted", 1, "engine_timeout")


@pytest.mark.parametrize("how", ["cut", "never", "answer", "data"])
def test_the_slot_of_a_worker_that_was_given_up_on_is_free_in_the_end(how):
    world = pair(Timeouts(first_token=50))
    client = world.ask(stream=True)
    bad = at_work(world)
    world.passes(51)
    good = next(box for box in world.boxes if box is not bad)
    answers(good, client)
    if how == "cut":
        bad.cut()
    elif how == "never":
        world.passes(CANCEL_GRACE)
    elif how == "answer":
        bad.link.receive(
            wire.encode(wire.Frame(1, wire.HEAD, wire.build_head(200, SSE))) + wire.encode(wire.frame(wire.Close("done"), 1)), 0.0
        )
    else:
        bad.head()
        bad.data(EVENT)
        bad.close()
    assert (world.used, len(world.pipeline._failover.leftovers)) == (0, 0)
    assert kinds(world) == [("wasted", 1, "engine_timeout"), ("settled", 2, "done")]


def test_a_request_that_never_left_for_a_silent_worker_frees_its_slot_at_once():
    world = pair(Timeouts(first_token=10))
    for box in world.boxes:
        box.frozen = True
    client = world.ask(stream=True)
    world.passes(11)
    assert (client.state, world.used) == (State.SENT, 1)


def test_all_workers_together_have_the_time_that_a_request_has():
    world = pair(Timeouts(total=100, first_token=60))
    client = world.ask(stream=True)
    world.passes(61)
    assert client.end is None
    world.passes(41)
    assert (client.code, client.error.message) == ("engine_timeout", "The answer took too long. (tried 2 times)")


def test_an_answer_that_takes_too_long_is_not_begun_anew():
    world = pair(Timeouts(total=100))
    client = world.ask()
    world.passes(101)
    assert (client.code, world.meter.counters.failovers) == ("engine_timeout", {})


def test_a_deadline_is_not_the_workers_fault():
    world = pair()
    client = world.ask(stream=True, headers=((b"x-mindgw-deadline", b"2"),))
    world.passes(5)
    assert client.code == "deadline_unmeetable"
    assert world.pipeline.fleet.breaker.is_quiet


# -- from the first byte on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["error", "garbage", "cut", "failed", "half", "silent"])
def test_once_something_has_left_nobody_else_is_asked(then):
    world = pair(Timeouts(idle=50))
    client = world.ask(stream=True)
    box = at_work(world)
    box.head(200, SSE, EVENT)
    if then == "cut":
        box.cut()
    elif then == "failed":
        box.close("failed", "engine_error")
    elif then == "silent":
        world.passes(51)
    elif then == "half":
        box.data(EVENT[:9])
        box.close()
    else:
        box.data({"error": ERROR, "garbage": b"data: nonsense\n\n"}[then])
    assert client.body.replace(sse.PING, b"") == EVENT
    assert isinstance(client.end, signals.Fail) and client.end.begun
    assert [row.attempt for row in world.settled()] in ([], [1])
    assert not world.meter.counters.failovers


def test_an_answer_in_one_piece_is_begun_anew_however_much_of_it_came():
    world = pair()
    client = world.ask()
    bad = at_work(world)
    bad.head(200, JSON, ANSWER[:9])
    bad.data(ANSWER[9:20])
    bad.cut()
    answers(at_work(world), client)
    row = world.settled()[-1]
    assert (row.attempt, row.completion_tokens, row.bytes_out) == (2, 2, len(ANSWER))


def test_pings_that_have_left_are_no_byte_of_the_answer():
    world = pair(Timeouts(first_token=50, hold=5, keepalive=15))
    client = world.ask(stream=True)
    world.passes(51)
    assert set(client.body.splitlines()) == {b": ping"} and client.state is State.SENT
    answers(next(box for box in world.boxes if box.requests and not box.cancelled), client)


def test_two_terminators_and_what_comes_after_are_one_end():
    world = pair()
    client = world.ask(stream=True)
    box = at_work(world)
    box.head(200, SSE, EVENT + DONE + DONE + EVENT)
    box.close()
    assert client.body.count(DONE) == 1 and client.body.endswith(DONE)


# -- engines that cannot ----------------------------------------------------------------------------------------------


def test_an_engine_that_cannot_is_not_asked_until_its_report_changes():
    world = pair()
    client = world.ask()
    bad = at_work(world)
    head(404, b'{"detail":"Not Found"}')(bad)
    good = at_work(world)
    answers(good, client)
    for _ in range(4):
        answers(good, world.ask())
    bad.says(engine("m"))
    assert not [seat for seat in world.pipeline.fleet.seats("m", "chat") if seat.owner == bad.name]
    bad.says(engine("m", "n"))
    assert [seat for seat in world.pipeline.fleet.seats("m", "chat") if seat.owner == bad.name]


def test_the_word_of_an_engine_is_not_believed_for_ever():
    world = pair()
    client = world.ask()
    bad = at_work(world)
    head(501)(bad)
    good = at_work(world)
    answers(good, client)
    world.passes(299)
    serving = world.pipeline.fleet.seats
    assert [seat.owner for seat in serving("m", "chat")] == [good.name]
    world.passes(2)
    assert {seat.owner for seat in serving("m", "chat")} == {good.name, bad.name}


def test_another_way_to_ask_for_the_model_still_works():
    world = World()
    box = Box(world, "box", engine("m", kinds=("chat", "embeddings")))
    client = world.ask(path="/v1/embeddings", input="x")
    head(404, b'{"detail":"Not Found"}')(box)
    assert client.error.status == 404
    answers(box, world.ask())


# -- the breaker ------------------------------------------------------------------------------------------------------


def test_a_worker_that_goes_on_failing_is_left_alone_and_tried_again():
    world = pair(slots=4)
    world.pipeline.fleet.strategy = "least-busy"  # by score it would be asked less, before it is asked no more
    failed: dict[str, int] = {}
    good = world.boxes[0]

    def serve(client: Client) -> None:
        while client.end is None:
            box = at_work(world)
            if box is good:
                answers(box, client)
            else:
                failed[box.name] = failed.get(box.name, 0) + 1
                head(500)(box)
        assert client.end == signals.Answer(200, ANSWER)

    for _ in range(20):
        serve(world.ask())
    assert failed == {"two": 3}
    assert world.meter.counters.ejections == {("two", "m"): 1}
    world.passes(6)
    for _ in range(4):
        serve(world.ask())
    assert failed == {"two": 4}
    world.passes(11)
    good = world.boxes[1]
    one_at_a_time = [world.ask() for _ in range(3)]
    assert len(world.boxes[1].requests) == 1
    for client in one_at_a_time:
        box = next(box for box in world.boxes if any(r.meta.request_id == client.request_id for r in box.requests.values()))
        stream = next(stream for stream, r in box.requests.items() if r.meta.request_id == client.request_id)
        box.head(200, JSON, ANSWER, stream=stream)
        box.close(stream=stream)
        assert client.end == signals.Answer(200, ANSWER)
    assert world.pipeline.fleet.breaker.is_quiet


def test_the_only_worker_of_a_model_is_left_alone_when_all_fails():
    world = World()
    box = Box(world)
    for _ in range(10):
        client = world.ask()
        head(500)(box)
        assert client.code == "engine_error"
    refused = world.ask()
    assert (refused.code, refused.error.retry_after) == ("no_worker_available", 5.0)
    world.passes(6)
    probe, waiting = world.ask(), world.ask()
    assert (probe.state, waiting.state) == (State.SENT, State.WAITING)
    head(500)(box)
    world.passes(2)
    assert (probe.code, waiting.code) == ("engine_error", "no_worker_available")
    world.passes(11)
    answers(box, world.ask())
    assert world.pipeline.fleet.breaker.is_quiet


def test_a_probe_whose_client_leaves_is_followed_by_another():
    world = World()
    box = Box(world)
    for _ in range(10):
        world.ask()
        head(500)(box)
    world.passes(6)
    world.ask().post(signals.Gone())
    box.close("cancelled")
    answers(box, world.ask())


# -- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [head(500), closes("failed", "engine_timeout"), head(200, b"<html>")])
def test_a_fleet_in_which_all_fail_is_hardly_asked_more_than_that(fail):
    world = World()
    for number in range(5):
        Box(world, f"w{number}")
    calls = 0
    for _ in range(100):
        client = world.ask()
        while client.end is None:
            calls += 1
            fail(at_work(world))
        world.clock.now += 0.1
    assert calls <= 100 * 1.2 + 4
    assert world.meter.counters.retries_refused > 0
    assert world.used == 0


def test_settings_say_how_often_is_tried():
    world = World()
    world.pipeline._failover.tries = Config("/", routing=Routing(tries=1)).routing.tries
    for name in "ab":
        Box(world, name)
    client = world.ask()
    head(500)(at_work(world))
    assert isinstance(client.error, errors.EngineFailed)


# -- engines that behave badly ----------------------------------------------------------------------------------------


def test_an_engine_that_streams_for_ever_is_stopped():
    world = pair(Timeouts(total=100, idle=50))
    client = world.ask(stream=True)
    box = at_work(world)
    box.head()
    for _ in range(12):
        if client.end is None:
            box.data(EVENT)
            world.passes(10)
    assert (client.code, box.cancelled) == ("engine_timeout", [1])
    box.close("cancelled")
    assert world.used == 0


def test_a_list_of_models_that_changes_in_the_middle_of_an_answer_breaks_nothing():
    world = pair()
    client = world.ask(stream=True)
    box = at_work(world)
    box.head(200, SSE, EVENT)
    box.says(engine("other"))
    box.data(EVENT)
    box.close()
    assert client.body == EVENT * 2 + DONE
    assert world.used == 0


def test_a_model_that_is_gone_is_found_elsewhere():
    """The agent still reports it when its engine says that there is none."""
    world = pair()
    client = world.ask()
    bad = at_work(world)
    refusal = {"error": {"message": "the model is not here", "code": "model_not_found"}}
    bad.says(engine("other"))
    head(404, json.dumps(refusal).encode())(bad)
    answers(at_work(world), client)
