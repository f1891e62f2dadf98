"""Requests from their first byte to their row, with real agents' sessions at the other end of the links."""

import asyncio
import gc
import json
import re
import weakref
from datetime import UTC, datetime, timedelta

import pytest

from mindgw import errors
from mindgw.config import Limits, Timeouts
from mindgw.core import sse
from mindgw.gateway import signals, verdict
from mindgw.gateway.admission import Caller
from mindgw.gateway.exchange import CANCEL_GRACE, TABLE
from mindgw.gateway.signals import State
from mindgw.store.keys import Change
from mindgw_agent import wire
from tests.gateway.world import CHUNK, DONE, EVENT, JSON, SSE, Box, Client, World, engine, finished

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
USAGE = sse.event(b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')


def the_row(world: World):
    rows = world.settled()
    assert len(rows) == 1
    return rows[0]


# -- the good ways ---------------------------------------------------------------------------------------------------


def test_a_stream_leaves_as_it_comes_and_ends_once():
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    box.data(EVENT + EVENT)
    box.data(USAGE + DONE)
    box.close()
    assert client.body == EVENT + EVENT + DONE
    assert client.end == signals.End()
    row = the_row(world)
    assert (row.outcome, row.status, row.prompt_tokens, row.completion_tokens, row.source) == ("done", 200, 3, 2, "engine")
    assert world.used == 0


def test_an_answer_in_one_piece_is_the_engines_own():
    world = World()
    box = Box(world)
    client = world.ask()
    box.head(200, JSON, ANSWER[:9])
    box.data(ANSWER[9:])
    box.close()
    assert client.end == signals.Answer(200, ANSWER)
    row = the_row(world)
    assert (row.outcome, row.stream, row.completion_tokens, row.bytes_out) == ("done", False, 2, len(ANSWER))


def test_the_engine_gets_the_body_as_the_caller_wrote_it():
    world = World()
    box = Box(world, "box", engine("m", id="e7"))
    client = world.ask(stream=True, stream_options={"include_usage": True}, top_k=5)
    request = box.requests[box.stream]
    assert json.loads(request.body)["top_k"] == 5
    assert (request.meta.request_id, request.meta.engine, request.meta.model) == (client.request_id, "e7", "m")
    assert (request.meta.stream, request.meta.include_usage) == (True, True)


def test_an_alias_becomes_the_engines_own_name():
    world = World()
    box = Box(world, "box", engine(models=[wire.Model("real", kinds=["chat"], aliases=["m"])]))
    world.ask("m")
    assert box.requests[box.stream].meta.model == "real"


def test_times_and_owner_stand_in_the_row():
    world = World()
    key = world.add_key(team_id="t", user_id="u")
    world.pipeline.fleet.remembered["away"] = frozenset("m")
    client = world.ask(key=key, stream=True)
    world.clock.now += 2
    box = Box(world)
    world.clock.now += 3
    box.head()
    box.data(EVENT)
    world.clock.now += 1
    box.close()
    row = the_row(world)
    assert (row.queued_ms, row.ttft_ms, row.total_ms) == (2000, 5000, 6000)
    assert (row.request_id, row.team_id, row.user_id, row.worker_id) == (client.request_id, "t", "u", "box")


def test_usage_that_only_the_agent_knows_is_taken_from_it():
    world = World()
    box = Box(world)
    world.ask(stream=True)
    box.head()
    box.data(EVENT)
    box.close(usage=wire.Usage(5, 1, 2, "counted"))
    row = the_row(world)
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.source) == (5, 1, 2, "counted")


# -- who asks, and what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["key", "body"])
def test_key_and_body_may_come_in_any_order(first):
    world = World()
    box = Box(world)
    client = world.ask()
    caller = client.exchange.caller
    assert caller is not None
    late = Client(world, world.key)
    late.exchange.caller = None
    events = [signals.Identified(caller), signals.Received(b'{"model":"m","messages":[{}]}')]
    for event in events if first == "key" else reversed(events):
        late.post(event)
    assert late.state is State.WAITING
    box.head(200, JSON, ANSWER)
    box.close()
    assert late.state is State.SENT


def test_a_request_without_a_key_costs_nobody_anything():
    world = World()
    client = Client(world, "")
    assert client.code == "missing_api_key"
    assert world.settled() == []


def test_a_refused_key_ends_the_request():
    world = World()
    world.ask()
    client = Client(world, world.key)
    client.post(signals.Refused(errors.Unauthenticated()))
    assert client.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (b"{", "invalid_request", 400),
        (b'{"model":"m"}', "invalid_request", 400),
        (b'{"model":"nobody","messages":[{}]}', "model_not_found", 404),
        (b'{"model":"m","messages":[{"content":[{"image_url":{"url":"http://x"}}]}]}', "unsupported_media_url", 400),
    ],
)
def test_a_hopeless_request_is_refused_with_a_row(body, code, status):
    world = World()
    Box(world)
    world.ask("m")
    client = Client(world, world.key)
    client.post(signals.Received(body))
    assert (client.code, client.error.status) == (code, status)
    assert the_row(world).error_code == code


def test_no_request_is_taken_whose_row_could_be_lost():
    world = World()
    world.meter._capacity = 0
    assert world.ask().code == "ledger_unavailable"


def test_a_draining_server_refuses_before_it_looks_at_the_key():
    world = World()
    world.pipeline.drain()
    client = Client(world, "mgw_garbage")
    assert (client.code, client.error.retry_after) == ("server_draining", 5)


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_requests_wait_for_a_slot_in_their_order():
    world = World()
    box = Box(world)
    clients = [world.ask(stream=True) for _ in range(4)]
    order = []
    for _ in clients:
        order.append(box.requests[box.stream].meta.request_id)
        box.head()
        box.close()
    assert order == [client.request_id for client in clients]
    assert [client.end for client in clients] == [signals.End()] * 4


def test_a_full_queue_refuses():
    world = World(limits=Limits(queue=1))
    Box(world)
    clients = [world.ask() for _ in range(3)]
    assert [client.code for client in clients] == ["", "", "queue_full"]


def test_waiting_ends_with_the_queues_patience():
    world = World(Timeouts(queue=60))
    Box(world)
    world.ask()
    client = world.ask()
    world.passes(59)
    assert client.end is None
    world.passes(2)
    assert client.code == "queue_timeout"
    assert world.pipeline.queue.waiting == 0


def test_a_worker_that_is_away_is_waited_for_a_while():
    world = World(Timeouts(worker_return=20))
    box = Box(world)
    box.cut()
    first = world.ask()
    world.passes(15)
    second = world.ask()
    world.passes(6)
    assert (first.code, second.code) == ("no_worker_available", "")
    box = Box(world, epoch=1)
    box.head(200, JSON, ANSWER)
    box.close()
    assert second.end == signals.Answer(200, ANSWER)


def test_the_wait_for_a_worker_begins_when_it_goes():
    """Not when the request came: one that has stood in line for a minute is not refused the moment a worker reconnects."""
    world = World(Timeouts(worker_return=20))
    box = Box(world)
    world.ask()
    waiting = world.ask()
    world.passes(60)
    box.cut()
    world.passes(15)
    assert waiting.end is None
    world.passes(10)
    assert waiting.code == "no_worker_available"


def test_being_turned_down_does_not_begin_a_new_wait():
    world = World(Timeouts(queue=60))
    box = Box(world)
    client = world.ask()
    for _ in range(40):
        world.passes(2)
        if box.requests:
            box.close("busy")
    assert client.code == "queue_timeout"
    assert len(world.settled()) == 1


def test_a_request_that_was_turned_down_goes_before_those_behind_it():
    world = World()
    box = Box(world)
    clients = [world.ask() for _ in range(3)]
    box.close("busy")
    assert box.requests == {}, "the seat rests: nobody else is sent to an engine that is full"
    order = []
    world.passes(1)
    for _ in clients:
        order.append(box.requests[box.stream].meta.request_id)
        box.head(200, JSON, ANSWER)
        box.close()
    assert order == [client.request_id for client in clients]


def test_another_worker_is_tried_when_one_turns_it_down():
    world = World()
    one, two = Box(world, "one"), Box(world, "two")
    client = world.ask()
    first, second = (one, two) if one.requests else (two, one)
    first.close("busy")
    second.head(200, JSON, ANSWER)
    second.close()
    assert client.end == signals.Answer(200, ANSWER)
    assert the_row(world).worker_id == second.name


# -- workers that fail -------------------------------------------------------------------------------------------------


def test_a_worker_lost_before_its_first_byte_costs_only_time():
    world = World()
    boxes = [Box(world, name) for name in "abc"]
    client = world.ask(stream=True)
    for _ in range(2):
        next(box for box in boxes if box.requests and box in world.boxes).cut()
    last = next(box for box in boxes if box in world.boxes)
    last.head()
    last.close()
    assert client.end == signals.End()


def test_a_request_is_lost_on_three_workers_at_most():
    world = World()
    boxes = [Box(world, name) for name in "abcd"]
    client = world.ask()
    for _ in range(3):
        next(box for box in boxes if box.requests and box in world.boxes).cut()
    assert client.code == "worker_lost"
    assert world.boxes[0].requests == {}


def test_the_head_alone_is_no_byte_of_the_answer():
    world = World()
    one = Box(world, "one")
    client = world.ask(stream=True)
    one.head()
    one.cut()
    two = Box(world, "two")
    two.head()
    two.data(EVENT)
    two.close()
    assert client.body == EVENT + DONE


def test_a_second_worker_may_be_busy_though_the_first_had_begun():
    world = World()
    one = Box(world, "one")
    client = world.ask(stream=True)
    one.head()
    one.cut()
    two = Box(world, "two")
    two.close("busy")
    assert (client.end, client.state) == (None, State.WAITING)
    world.passes(1)
    two.head()
    two.close()
    assert client.end == signals.End()


def test_a_worker_lost_in_the_middle_ends_the_stream_with_an_error():
    world = World()
    box = Box(world)
    Box(world, "other")
    client = world.ask(stream=True)
    box = next(box for box in world.boxes if box.requests)
    box.head()
    box.data(EVENT)
    box.cut()
    assert client.body == EVENT
    assert (client.code, client.end.begun) == ("worker_lost", True)


def test_a_worker_that_falls_silent_is_lost():
    """Frozen, unplugged, behind a dead tunnel: its socket may stay open for a long time."""
    world = World()
    one = Box(world, "one")
    client = world.ask(stream=True)
    one.frozen = True
    two = Box(world, "two")
    world.passes(30)
    assert "one" not in world.pipeline.fleet.workers
    two.head()
    two.close()
    assert client.end == signals.End()
    one.frozen = False
    one.link.receive(wire.encode(wire.frame(wire.Report(9, [engine("m")]))), world.clock())
    one.cut()
    assert set(world.pipeline.fleet.workers) == {"two"}


@pytest.mark.parametrize(
    ("code", "expected", "status"),
    [
        ("engine_timeout", "engine_timeout", 504),
        ("engine_error", "engine_error", 502),
        ("engine_protocol", "engine_error", 502),
        ("refused", "no_worker_available", 503),
        ("a code of the future", "engine_error", 502),
    ],
)
def test_an_agents_failure_has_a_name_for_the_caller(code, expected, status):
    world = World()
    box = Box(world)
    client = world.ask()
    box.close("failed", code, message="because")
    assert (client.code, client.error.status, client.error.message) == (expected, status, "because")
    assert (the_row(world).outcome, world.used) == ("failed", 0)


@pytest.mark.parametrize("outcome", ["cancelled", "busy"])
def test_an_end_that_nobody_asked_for_is_a_failure_once_the_head_is_here(outcome):
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    box.close(outcome)
    assert client.code == "engine_error"


def test_done_without_an_answer_is_a_failure():
    world = World()
    box = Box(world)
    client = world.ask()
    box.close()
    assert client.code == "engine_error"


@pytest.mark.parametrize(
    ("status", "body", "code", "seen"),
    [
        (400, b'{"error":{"message":"top_p","param":"top_p"}}', "engine_refused", 400),
        (422, b'{"detail":"no"}', "engine_refused", 422),
        (400, b'{"error":{"message":"exceeds the available context size"}}', "context_length_exceeded", 400),
        (404, b'{"error":"model \'m\' not found"}', "model_not_found", 404),
        (401, b'{"error":"no key"}', "engine_error", 502),
        (500, b"<html>oops</html>", "engine_error", 502),
        (302, b"", "engine_error", 502),
        (500, b"", "engine_error", 502),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_engines_error_answer_is_told_in_our_words(status, body, code, seen, stream):
    world = World()
    box = Box(world)
    client = world.ask(stream=stream)
    box.head(status, JSON, body)
    box.close()
    assert (client.code, client.error.status) == (code, seen)
    assert the_row(world).status == seen


def test_an_engines_error_answer_without_end_is_not_collected():
    world = World()
    box = Box(world)
    client = world.ask()
    box.head(500, "text/html")
    for _ in range(20):
        if box.session.writable(box.stream):
            box.data(b"x" * 2**16)
    assert client.code == "engine_error"
    assert box.cancelled == [box.stream]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"a":', b'{"a":"\xff","reasoning":1}', b"data: {}\n\n"])
def test_an_answer_that_is_no_json_object_is_a_failure(body):
    world = World()
    box = Box(world)
    client = world.ask()
    box.head(200, JSON, body)
    box.close()
    assert (client.code, client.error.status) == ("engine_error", 502)


def test_an_answer_over_the_limit_is_cut_off():
    world = World(limits=Limits(answer=1000))
    box = Box(world)
    client = world.ask()
    box.head(200, JSON, b"x" * 1001)
    assert client.code == "engine_error"
    assert box.cancelled == [1]
    box.close("cancelled")
    assert (world.used, len(world.settled())) == (0, 1)


@pytest.mark.parametrize("content_type", [JSON, "text/html", ""])
def test_a_stream_must_be_called_one(content_type):
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head(200, content_type)
    assert client.code == "engine_error"
    assert (client.state, box.cancelled) == (State.CLOSING, [1])


@pytest.mark.parametrize("garbage", [b"data: no json\n\n", b'data: {"error":{"message":"boom"}}\n\n', b"data: [1]\n\n", b"x" * (9 * 2**20)])
def test_garbage_in_a_stream_ends_it_with_an_error(garbage):
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    box.data(EVENT + garbage + EVENT)
    for _ in range(100):
        client.post(signals.Drained())
        world.pump()
    assert client.body == EVENT
    assert (client.code, client.state) == ("engine_error", State.CLOSING)
    box.close("cancelled")
    assert (world.used, the_row(world).error_code) == (0, "engine_error")


def test_data_without_a_head_is_refused():
    world = World()
    box = Box(world)
    client = world.ask()
    box.link.receive(wire.encode(wire.Frame(box.stream, wire.DATA, b"x")), world.clock())
    assert client.code == "engine_error"


# -- clients, operators, the clock -------------------------------------------------------------------------------------


def test_a_client_that_hangs_up_frees_the_slot_when_the_engine_is_free():
    world = World()
    box = Box(world)
    gone, waiting = world.ask(stream=True), world.ask(stream=True)
    box.head()
    box.data(EVENT)
    gone.post(signals.Gone())
    world.pump()
    assert (box.cancelled, world.used, waiting.state) == ([1], 1, State.WAITING)
    box.close("cancelled", usage=wire.Usage(3, 1, 0, "counted"))
    assert waiting.state is State.SENT
    row = the_row(world)
    assert (row.outcome, row.status, row.error_code, row.completion_tokens) == ("cancelled", 499, "client_disconnected", 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stopped", [False, True])
def test_an_answer_that_comes_whole_after_its_client_left_frees_the_slot(stream, stopped):
    world = World()
    box = Box(world)
    client = world.ask(stream=stream)
    box.frozen = True  # the cancel is on its way
    client.post(signals.Gone() if not stopped else signals.Stopped(errors.Cancelled()))
    assert (client.state, world.used) == (State.CLOSING, 1)
    head = wire.Frame(1, wire.HEAD, wire.build_head(200, SSE if stream else JSON, EVENT))
    close = wire.frame(wire.Close("done", usage=wire.Usage(3, 2, 0, "engine")), 1)
    box.link.receive(wire.encode(head) + wire.encode(close), world.clock())
    assert (client.state, world.used) == (State.DONE, 0)
    (row,) = world.settled()
    assert row.outcome == ("failed" if stopped else "cancelled")


def test_an_answer_that_only_begins_after_its_client_left_keeps_the_slot():
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.frozen = True
    client.post(signals.Gone())
    box.link.receive(wire.encode(wire.Frame(1, wire.HEAD, wire.build_head(200, SSE, EVENT))), world.clock())
    assert (client.state, world.used) == (State.CLOSING, 1)
    box.frozen = False
    box.close("cancelled")
    assert (client.state, world.used) == (State.DONE, 0)


def test_a_client_that_hangs_up_in_line_leaves_it():
    world = World()
    Box(world)
    world.ask()
    client = world.ask()
    client.post(signals.Gone())
    assert (world.pipeline.queue.waiting, client.state) == (0, State.DONE)
    assert the_row(world).outcome == "cancelled"


def test_a_client_that_hangs_up_before_its_body_is_here_has_a_row_when_it_is_known():
    world = World()
    world.ask()
    known, stranger = Client(world, world.key), Client(world, world.key)
    stranger.exchange.caller = None
    known.post(signals.Gone())
    stranger.post(signals.Gone())
    assert [row.request_id for row in world.settled()][1:] == [known.request_id]


def test_a_cancel_that_is_never_confirmed_gives_the_slot_back_in_the_end():
    world = World()
    box = Box(world)
    client = world.ask()
    client.post(signals.Gone())
    world.passes(CANCEL_GRACE - 1)
    assert (world.used, client.state) == (1, State.CLOSING)
    world.passes(2)
    assert (world.used, client.state) == (0, State.DONE)
    box.close("cancelled")
    assert len(world.settled()) == 1


def test_a_link_lost_while_a_cancel_is_under_way_settles_it():
    world = World()
    box = Box(world)
    client = world.ask()
    client.post(signals.Gone())
    box.cut()
    assert (client.state, the_row(world).outcome) == (State.DONE, "cancelled")


@pytest.mark.parametrize("sent", [True, False])
def test_a_revoked_key_ends_its_requests_and_says_so(sent):
    """Also when the request has not left for the worker yet, whose end is confirmed in the same breath."""
    world = World()
    box = Box(world)
    box.frozen = not sent
    running, waiting, other = world.ask(stream=True), world.ask(), world.ask(key=world.add_key())
    world.pump()
    world.pipeline.revoke_key(world.auth.known(world.key, world.clock()).key_id)
    assert (running.code, waiting.code, other.code) == ("revoked_api_key", "revoked_api_key", "")
    world.pump()
    assert box.cancelled == ([1] if sent else [])


@pytest.mark.parametrize("sent", [True, False])
def test_who_is_shut_out_has_nothing_running_any_more_with_any_key(sent):
    world = World()
    box = Box(world)
    box.frozen = not sent
    mine, too = world.add_key(user_id="u"), world.add_key(user_id="u")
    running, waiting, body = world.ask(key=mine, stream=True), world.ask(key=too), Client(world, mine)
    other, nobodys = world.ask(key=world.add_key(user_id="v")), world.ask()
    world.pump()
    world.pipeline.cut_user("u")
    assert [client.code for client in (running, waiting, body)] == ["user_disabled"] * 3
    assert [client.code for client in (other, nobodys)] == ["", ""]
    assert [world.auth.known(key, world.clock()) for key in (mine, too)] == [None, None]
    world.pump()
    assert 1 in box.cancelled or not sent


def test_a_key_that_is_revoked_by_another_server_ends_its_requests():
    world = World()
    Box(world)
    finished(world.pipeline.check_keys())
    key = world.add_key(team_id="t")
    running, same_team, other = world.ask(stream=True), world.ask(key=key), world.ask(key=world.add_key())
    world.keys[running.exchange.caller.key_id].revoked_at = datetime.now(UTC)
    changes = [("keys", running.exchange.caller.key_id), ("teams", "t")]
    world.noted += [Change(number, *change, datetime.now(UTC)) for number, change in enumerate(changes, 2)]
    world.found.clear()
    finished(world.pipeline.check_keys())
    assert (running.code, same_team.code, other.code) == ("revoked_api_key", "", "")
    assert sorted(world.found) == sorted([running.exchange.caller.key_id, same_team.exchange.caller.key_id])
    finished(world.pipeline.check_keys())
    assert len(world.found) == 2


def test_what_runs_with_a_secret_that_another_server_rotated_ends_and_the_rest_goes_on():
    world = World()
    Box(world)
    finished(world.pipeline.check_keys())
    running = world.ask(stream=True)
    key_id = running.exchange.caller.key_id
    row = world.keys[key_id]
    row.prior_digest, row.prior_until, row.digest = row.digest, datetime.now(UTC) + timedelta(hours=1), b"n" * 32
    world.noted.append(Change(2, "keys", key_id, datetime.now(UTC)))
    finished(world.pipeline.check_keys())
    assert running.code == ""  # it has its grace
    row.prior_until = datetime.now(UTC)
    world.noted.append(Change(3, "keys", key_id, datetime.now(UTC)))
    finished(world.pipeline.check_keys())
    assert running.code == "rotated_api_key"


def test_who_is_to_be_cut_off_is_when_the_database_is_back(monkeypatch):
    world = World()
    Box(world)
    finished(world.pipeline.check_keys())
    running = world.ask(stream=True)
    key_id = running.exchange.caller.key_id
    world.keys[key_id].revoked_at = datetime.now(UTC)
    world.noted.append(Change(2, "keys", key_id, datetime.now(UTC)))

    async def away(key_id):
        raise errors.Draining

    with monkeypatch.context() as patch:
        patch.setattr(world.auth, "_find", away)
        with pytest.raises(errors.Draining):
            finished(world.pipeline.check_keys())
    assert running.code == ""
    finished(world.pipeline.check_keys())
    assert running.code == "revoked_api_key"


def test_a_request_whose_key_is_revoked_before_its_body_is_here_ends():
    world = World()
    world.ask()
    client = Client(world, world.key)
    world.pipeline.revoke_key(client.exchange.caller.key_id)
    assert client.code == "revoked_api_key"


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_must_end_in_time(stream):
    world = World(Timeouts(total=100, idle=1000, first_token=1000))
    box = Box(world)
    client = world.ask(stream=stream)
    box.head(200, SSE if stream else JSON, EVENT)
    world.passes(101)
    assert (client.code, box.cancelled) == ("engine_timeout", [1])


def test_a_stream_must_begin_in_time():
    world = World(Timeouts(first_token=50))
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    world.passes(51)
    assert client.code == "engine_timeout"


def test_a_stream_must_go_on_in_time():
    world = World(Timeouts(first_token=50, idle=20))
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    for _ in range(5):
        world.passes(15)
        box.data(EVENT)
    assert client.end is None
    world.passes(21)
    assert client.code == "engine_timeout"


def test_an_answer_in_one_piece_may_be_silent():
    world = World(Timeouts(first_token=50, idle=20))
    Box(world)
    client = world.ask()
    world.passes(3000)
    assert (client.end, client.sent) == (None, [])


@pytest.mark.parametrize("where", ["sent", "relaying"])
def test_a_silent_stream_is_kept_open_with_comments(where):
    world = World(Timeouts(keepalive=15))
    box = Box(world)
    client = world.ask(stream=True)
    if where == "relaying":
        box.head()
        box.data(EVENT)
    before = client.body
    world.passes(46)
    assert client.body == before + sse.PING * 3
    if where == "sent":
        box.head()
    box.data(EVENT)
    box.close()
    assert client.body == before + sse.PING * 3 + EVENT + DONE


def test_a_stream_that_waits_hears_where_it_stands():
    """The status is held for a moment, so that errors have one; then comments tell the place, and as soon as known the time."""
    world = World(Timeouts(hold=5, news=5))
    box = Box(world)
    first = world.ask(stream=True)
    second = world.ask(stream=True)
    client = world.ask(stream=True)
    world.passes(4)
    assert client.sent == []
    world.passes(10)
    told = client.body.splitlines()
    assert len(told) == 2
    assert all(re.fullmatch(rb": mindgw queue=2( eta=[0-9]+s)?", line) for line in told)
    box.head()
    box.data(EVENT * 100)
    world.passes(5)
    assert first.body == sse.PING + EVENT * 100
    told = client.body.splitlines()[-1]
    assert re.fullmatch(rb": mindgw queue=2 eta=[0-9]+s", told)
    box.close()
    box.head()
    box.close()
    assert second.end is not None
    box.head()
    box.data(EVENT)
    box.close()
    assert client.body.endswith(EVENT + DONE)
    assert dict(client.exchange.notes(world.clock))[b"x-mindgw-queue-position"] == b"2"


def test_news_of_the_queue_come_as_chunks_for_who_asks():
    world = World(Timeouts(hold=5, news=5))
    Box(world)
    world.ask()
    client = world.ask(stream=True, headers=((b"x-mindgw-events", b"1"),))
    world.passes(5)
    comment, data, blank, end = client.body.split(b"\n")
    assert comment.startswith(b": mindgw queue=1")
    assert (blank, end) == (b"", b"")
    chunk = json.loads(data.removeprefix(b"data: "))
    assert chunk["mindgw"]["queue"] == 1
    assert chunk["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]


def test_a_deadline_that_passes_in_the_queue_is_an_error():
    world = World()
    Box(world)
    world.ask()
    client = world.ask(headers=((b"x-mindgw-deadline", b"10"),))
    world.passes(11)
    assert client.code == "deadline_unmeetable"


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_counts_until_the_answer_begins(stream):
    world = World()
    Box(world)
    client = world.ask(stream=stream, headers=((b"x-mindgw-deadline", b"2"),))
    assert client.state is signals.State.SENT
    world.passes(5)
    assert client.code == "deadline_unmeetable"


def test_a_deadline_is_met_by_the_first_byte():
    world = World()
    box = Box(world)
    client = world.ask(stream=True, headers=((b"x-mindgw-deadline", b"2"),))
    box.head(data=EVENT)
    world.passes(5)
    assert client.error is None


def test_a_wait_in_vain_says_when_to_come_again():
    world = World(Timeouts(queue=20))
    Box(world)
    world.ask()
    client = world.ask()
    world.passes(25)
    assert client.code == "queue_timeout"
    assert 1 <= client.error.retry_after <= 120


@pytest.mark.parametrize("text", [b"soon", b"0", b"-1", b"nan", b"inf", b"1e999", b"", b"1_0", b"+5", b" 5", b"1e3"])
def test_a_deadline_that_is_none_is_refused(text):
    world = World()
    Box(world)
    assert world.ask(headers=((b"x-mindgw-deadline", text),)).code == "invalid_deadline"


def test_a_client_that_comes_back_has_its_place_again():
    """Its timeout was shorter than the queue: the same request, sent again in a moment, stands where the first one stood."""
    world = World()
    box = Box(world)
    world.ask()
    first = world.ask(temperature=1)
    world.ask(temperature=2)
    first.post(signals.Gone())
    again = world.ask(temperature=1, headers=((b"x-stainless-retry-count", b"1"),))
    other = world.ask(temperature=1, headers=((b"x-stainless-retry-count", b"1"),))
    box.head(content_type=JSON)
    box.data(b"{}")
    box.close()
    assert again.state is signals.State.SENT
    assert other.state is signals.State.WAITING


def test_no_comment_stands_within_an_event():
    world = World(Timeouts(keepalive=15))
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    box.data(EVENT + EVENT[:9])
    world.passes(60)
    assert client.body == EVENT
    box.data(EVENT[9:])
    assert client.body == EVENT + EVENT


# -- credit ------------------------------------------------------------------------------------------------------------


WIDE = sse.event(CHUNK[:-1] + b',"pad":"' + b"x" * 300 + b'"}')


@pytest.mark.parametrize("pieces", [[EVENT * 100], [EVENT], [WIDE], [WIDE[:20], WIDE[20:]], [EVENT, b": comment\n\n"]])
def test_a_client_that_does_not_read_stops_the_engine(pieces):
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    client.reads = False
    box.head()
    sent = 0
    while box.session.writable(box.stream) and sent < 2 * wire.WINDOW:
        for piece in pieces:
            box.data(piece)
            sent += len(piece)
    held = len(client.body)
    assert held <= wire.WINDOW
    client.reads = True
    client.post(signals.Drained())
    world.pump()
    assert box.session.writable(box.stream)
    assert len(client.body) > held


def test_an_answer_that_is_collected_needs_no_reader():
    world = World()
    box = Box(world)
    client = world.ask()
    box.head(200, JSON, b'{"a":"')
    for _ in range(32):
        assert box.session.writable(box.stream)
        box.data(b"x" * 2**16)
    box.data(b'"}')
    box.close()
    assert len(client.body) == 2**21 + 8


def test_events_that_do_not_leave_are_paid_at_once():
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    for _ in range(64):
        assert box.session.writable(box.stream)
        box.data(b": comment " + b"x" * 2**15 + b"\n")
    assert client.sent == []


# -- the table ---------------------------------------------------------------------------------------------------------

EVENTS = signals.Event.__args__
WRONG = errors.InternalError()
SAMPLES = {
    type(sample): sample
    for sample in (
        signals.Refused(WRONG), signals.Received(b"{}"), signals.Answered(wire.Head(200, SSE, b"")), signals.Data(EVENT),
        signals.Closed(wire.Close("done")), signals.Lost(), signals.Drained(), signals.Gone(), signals.Stopped(WRONG), signals.Tick(),
        signals.Bound(()),
        signals.Identified(Caller("k", "k", "o")), signals.Funded(), signals.Recalled(),
        signals.Copied(200, "", []), signals.Beside(signals.Lost()), signals.Turn(None),  # type: ignore[arg-type]  # nobody looks at its placement
    )
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
def test_nothing_happens_to_a_request_that_is_done(event):
    assert TABLE[State.DONE] == {}
    world = World()
    Box(world)
    client = world.ask("nobody")
    before = list(client.sent)
    client.post(SAMPLES[event])
    assert client.sent == before
    assert len(world.settled()) == 1


def test_every_event_means_something_in_some_state():
    assert {event for arrows in TABLE.values() for event in arrows} == set(EVENTS)


@pytest.mark.parametrize("state", [state for state in State if state is not State.DONE])
def test_every_state_knows_what_to_do_when_the_worker_or_the_client_goes(state):
    arrows = TABLE[state]
    assert signals.Gone in arrows or state is State.CLOSING
    assert signals.Stopped in arrows or state is State.CLOSING
    assert (signals.Lost in arrows) == (state in {State.SENT, State.RELAYING, State.CLOSING})
    assert signals.Tick in arrows or state in {State.OPENED, State.ATTACHED}


def test_a_bug_in_one_request_ends_that_request_alone(caplog):
    world = World()
    box = Box(world)
    client, other = world.ask(stream=True), world.ask()
    client.exchange._ask = None  # what a bug would do
    box.head()
    assert (client.code, client.state) == ("internal_error", State.CLOSING)
    assert "Traceback" in caplog.text
    box.close("cancelled")
    assert (other.state, world.used) == (State.SENT, 1)


def test_a_request_that_cannot_be_sent_is_ended_without_a_leak(monkeypatch):
    """A worker chooses the names of its models: one may be too long to be asked for."""
    monkeypatch.setattr(verdict, "MAX_NAME", 70_000)  # such a name is left out at the door, as a rule
    world = World()
    box = Box(world)
    models = [{"id": "x" * 65_400, "kinds": ["chat"], "aliases": ["m"]}]
    hostile = {"serial": 1, "engines": [{"id": "", "kind": "", "healthy": True, "slots": 1, "models": models}]}
    box.link.receive(wire.encode(wire.Frame(0, wire.REPORT, json.dumps(hostile, separators=(",", ":")).encode())), world.clock())
    client = world.ask()
    assert client.code == "internal_error"
    assert (client.state, world.used, len(world.settled())) == (State.DONE, 0, 1)


def test_stopping_ends_whatever_runs():
    world = World()
    box = Box(world)
    running, waiting = world.ask(), world.ask()
    world.pipeline.stop()
    assert (running.code, waiting.code) == ("server_draining", "server_draining")
    assert world.pipeline.idle
    box.cut()
    assert len(world.settled()) == 2


def test_chunks_are_valid_for_the_tests_above():
    assert sse.plain(EVENT)
    assert json.loads(CHUNK)


# -- what a careful second look found ----------------------------------------------------------------------------------


def test_a_box_that_drains_hands_the_request_on():
    world = World()
    first = Box(world, "first")
    client = world.ask()
    second = Box(world, "second")
    first.close("failed", "draining")
    second.head(200, JSON, ANSWER)
    second.close()
    assert client.end == signals.Answer(200, ANSWER)
    assert world.used == 0


def test_an_answer_that_ends_inside_an_event_is_a_failure():
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    box.data(EVENT + EVENT[:9])
    box.close()
    assert client.code == "engine_error" and DONE not in client.body


def test_a_stream_that_fails_later_was_still_answered_with_200():
    world = World()
    box = Box(world)
    world.ask(stream=True)
    box.head()
    box.data(EVENT)
    box.close("failed", "engine_error")
    row = the_row(world)
    assert (row.status, row.outcome, row.error_code) == (200, "failed", "engine_error")


def test_usage_that_is_reported_choice_by_choice_is_told_as_its_sum():
    world = World()
    box = Box(world)
    client = world.ask(stream=True, n=2, stream_options={"include_usage": True})
    box.head()
    box.data(EVENT + USAGE + USAGE)
    box.close(usage=wire.Usage(3, 4, 0, "engine"))
    told = json.loads(client.body.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert the_row(world).completion_tokens == 4


def test_models_of_a_removed_box_are_not_waited_for():
    world = World()
    box = Box(world)
    world.pipeline.remove_worker("box")
    box.cut()
    assert world.ask().code == "model_not_found"


def test_a_box_without_its_engine_is_left_for_another():
    world = World()
    boxes = [Box(world, "first"), Box(world, "second")]
    client = world.ask()
    first, second = sorted(boxes, key=lambda box: not box.requests)
    first.close("failed", "engine_unreachable", message="no connection")
    second.head(200, JSON, ANSWER)
    second.close()
    assert client.end == signals.Answer(200, ANSWER)
    assert world.used == 0


def test_an_engine_that_nobody_reaches_is_told_after_three_tries():
    world = World()
    box = Box(world)
    client = world.ask()
    for _ in range(3):
        box.close("failed", "engine_unreachable", message="no connection")
        world.passes(1)
    assert (client.code, client.error.status, client.error.message) == ("engine_unreachable", 502, "no connection (tried 3 times)")
    assert world.used == 0


def test_what_passed_by_is_counted_when_the_box_is_lost():
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    box.head()
    box.data(EVENT * 5)
    box.cut()
    row = the_row(world)
    assert client.code == "worker_lost"
    assert (row.completion_tokens, row.source, row.prompt_tokens > 0) == (5, "counted", True)


def test_a_client_that_stalls_is_not_the_engines_fault():
    world = World(Timeouts(idle=20))
    box = Box(world)
    client = world.ask(stream=True)
    client.reads = False
    box.head()
    box.data(EVENT)
    world.passes(19)
    box.data(EVENT)
    assert client.end is None
    world.passes(3)
    assert (client.code, box.cancelled) == ("client_stalled", [1])
    assert sse.PING not in client.body


def test_a_queue_is_bounded_in_bytes_too():
    world = World(limits=Limits(queue_bytes=300))
    Box(world)
    world.ask()
    waiting = world.ask(pad="x" * 50)
    refused = world.ask(pad="x" * 200)
    assert (waiting.state, refused.code) == (State.WAITING, "queue_full")
    waiting.post(signals.Gone())
    assert world.pipeline.queue.held == 0


def test_the_row_names_the_model_that_answered():
    world = World()
    box = Box(world, "box", engine(models=[wire.Model("real", kinds=["chat"], aliases=["nick"])]))
    world.ask("nick")
    box.head(200, JSON, ANSWER)
    box.close()
    assert the_row(world).model == "real"


@pytest.mark.parametrize("model", ["m", "nobody"])
def test_nothing_of_a_request_is_left_for_the_garbage_collector(model):
    world = World()
    box = Box(world)
    gc.collect()
    gc.disable()
    try:
        client = world.ask(model)
        if model == "m":
            box.head(200, JSON, ANSWER)
            box.close()
        left = weakref.ref(client)
        assert client.end is not None
        client.exchange = None
        del client
        assert left() is None
    finally:
        gc.enable()


def ends_well(world, box):
    world.ask()
    box.head(200, JSON, ANSWER)
    box.close()


def streams(world, box):
    world.ask(stream=True)
    box.head()
    for _ in range(3):
        box.data(EVENT)
    box.close()


def waits_for_its_turn(world, box):
    world.ask()
    world.ask()
    for _ in range(2):
        box.head(200, JSON, ANSWER)
        box.close()


def is_turned_down(world, box):
    world.ask()
    box.close("busy")
    world.passes(5.0)
    box.head(200, JSON, ANSWER)
    box.close()


def is_left_alone(world, box):
    world.ask(stream=True).post(signals.Gone())
    box.close("cancelled")


def leaves_the_queue(world, box):
    world.ask()
    world.ask().post(signals.Gone())
    box.head(200, JSON, ANSWER)
    box.close()


def fails(world, box):
    world.ask()
    box.close("failed", "engine_error")


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("what", [ends_well, streams, waits_for_its_turn, is_turned_down, is_left_alone, leaves_the_queue, fails])
async def test_the_collector_finds_nothing_after_a_request_whatever_becomes_of_it(what, limited):
    world = World()
    box = Box(world)
    if limited:
        world.limit("org:o", 10**9)
        world.ask()
        while not box.requests:  # the first one waits for a loan that pays for those behind it
            await asyncio.sleep(0)
            world.pump()
        box.close("failed", "engine_error")
    what(world, box)  # what is made once for all requests is made here
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        what(world, box)
        gc.collect()
        ours = [found for found in gc.garbage if type(found).__module__.startswith("mindgw.")]
        assert not ours
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
