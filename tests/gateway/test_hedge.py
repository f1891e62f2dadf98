"""Streams that are late to begin, and are tried on a second worker while the first still has them.

Real agents' sessions; the test plays their engines.
"""

import json

import pytest

from mindgw.config import Config, Routing, Timeouts
from mindgw.core import access, sse
from mindgw.core.hedging import ENOUGH
from mindgw.core.retries import Shares
from mindgw.core.routing import Route, Rules, target, where
from mindgw.gateway import signals
from mindgw.gateway.admission import Caller
from mindgw.gateway.attempt import CANCEL_GRACE
from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.world import DONE, EVENT, JSON, SSE, Box, Client, World, engine, ids

NOTE = b": one moment\n"
OTHER = sse.event(b'{"choices":[{"delta":{"content":"b"}}]}')


def fleet(*names: str, timeouts: Timeouts | None = None, hedge: bool = True, slots: int = 1, **fields) -> World:
    """A world of such workers, which knows how fast streams begin."""
    world = World(timeouts, **fields)
    for name in names or ("one", "two"):
        Box(world, name, engine("m", slots=slots))
    world.pipeline.routes.hedge = hedge
    learns(world)
    return world


def learns(world: World, expected: float | None = 0.03, seconds: float = 0.2, model: str = "m", times: int = ENOUGH) -> None:
    for _ in range(times):
        world.pipeline._failover.hedging.learn(model, expected, seconds)


def at_work(world: World) -> list[Box]:
    return [box for box in world.boxes if box.requests]


def late(world: World, **fields) -> tuple[Client, Box, Box]:
    """A stream that two workers have now: the first one that was asked, and the second."""
    client = world.ask(stream=True, **fields)
    (first,) = at_work(world)
    world.passes(1)
    (second,) = [box for box in at_work(world) if box is not first]
    return client, first, second


def answers(box: Box, client: Client, event: bytes = EVENT) -> None:
    box.head()
    box.data(event)
    box.close()
    assert event in client.body
    assert client.body.endswith(DONE)


def obeys(box: Box) -> None:
    """Its engine is free, and it says so."""
    for stream in list(box.requests):
        assert stream in box.cancelled
        box.close("cancelled", stream=stream)


def hedges(world: World) -> dict[str, int]:
    return dict(world.meter.counters.hedges)


def kinds(world: World) -> list[tuple[str, int, str]]:
    """Of each row, its kind, its attempt, and what went wrong."""
    return [(row.kind, row.attempt, row.error_code or row.outcome) for row in world.settled()]


def shares(world: World) -> float:
    """Retries that are left."""
    return world.pipeline._failover._retries.left("o", world.clock())


# -- one of the two answers -------------------------------------------------------------------------------------------


def test_the_second_one_is_faster():
    world = fleet()
    before = shares(world)
    client, first, second = late(world)
    assert client.sent == []
    assert shares(world) == pytest.approx(before + 0.2 - 1.0)
    second.head()
    assert (first.cancelled, client.sent) == ([], [])  # a head is no answer
    second.data(EVENT)
    assert first.cancelled == list(first.requests)
    assert client.body == EVENT
    assert world.used == 2  # the first may be busy with it
    first.head()
    first.data(OTHER)
    second.close()
    assert client.body == EVENT + DONE
    assert world.used == 1
    obeys(first)
    assert (world.used, hedges(world)) == (0, {"won": 1})
    assert kinds(world) == [("wasted", 1, "outrun"), ("settled", 2, "done")]
    assert not world.meter.counters.failovers


def test_the_first_one_is_faster_after_all():
    world = fleet()
    client, first, second = late(world)
    answers(first, client)
    assert second.cancelled == list(second.requests)
    second.head()
    second.data(OTHER)
    obeys(second)
    assert client.body == EVENT + DONE
    assert (world.used, hedges(world)) == (0, {"lost": 1})
    assert kinds(world) == [("wasted", 2, "outrun"), ("settled", 1, "done")]


def test_all_of_an_answer_may_come_at_once():
    world = fleet()
    client, first, second = late(world)
    second.session.head(second.stream, 200, SSE, EVENT)
    second.close()
    assert client.body == EVENT + DONE
    obeys(first)
    assert (world.used, kinds(world)[1]) == (0, ("settled", 2, "done"))


def test_a_stream_without_a_word_is_an_answer():
    world = fleet()
    client, first, second = late(world)
    second.head()
    second.close()
    assert (client.body, hedges(world)) == (DONE, {"won": 1})
    obeys(first)
    assert world.used == 0


def test_comments_decide_nothing_and_both_go_on():
    world = fleet()
    client, first, second = late(world)
    for box in (second, first, second):
        if box.session._streams[box.stream].phase == "running":
            box.head()
        box.data(NOTE)
        assert client.sent == []
    second.data(EVENT[:9])
    first.data(OTHER)
    second.data(EVENT[9:])
    first.close()
    assert client.body == OTHER + DONE
    obeys(second)
    assert (world.used, kinds(world)) == (0, [("wasted", 2, "outrun"), ("settled", 1, "done")])


def test_what_both_are_owed_is_paid():
    """A worker that is silent because nobody gives it credit would never answer."""
    world = fleet()
    client, _, second = late(world)
    second.head()
    for _ in range(3 * wire.WINDOW // 60_000):
        assert second.session.writable(second.stream)
        second.data(NOTE * (60_000 // len(NOTE)))
    second.data(EVENT)
    second.close()
    assert client.body == EVENT + DONE


def test_what_was_not_paid_while_the_client_read_nothing_is_paid_later():
    world = fleet(timeouts=Timeouts(hold=0.5))
    client = world.ask(stream=True)
    client.reads = False
    (first,) = at_work(world)
    world.passes(1)
    (second,) = [box for box in at_work(world) if box is not first]
    assert client.body == sse.PING
    second.head()
    while second.session.writable(second.stream):
        second.data(NOTE * 1000)
    first.head()
    first.data(NOTE)
    client.reads = True
    client.post(signals.Drained())
    world.passes(2)
    assert second.session.writable(second.stream)
    second.data(EVENT)
    second.close()
    assert client.body == sse.PING + EVENT + DONE


def test_a_worker_that_says_nothing_of_the_stop_keeps_its_slot_for_a_while():
    world = fleet()
    client, _, second = late(world)
    answers(second, client)
    world.passes(CANCEL_GRACE - 5)
    assert world.used == 1
    world.passes(10)
    assert world.used == 0


# -- when it is hedged, and when not ----------------------------------------------------------------------------------


def test_engines_that_send_their_head_early_are_late_all_the_same():
    world = fleet()
    client = world.ask(stream=True)
    (first,) = at_work(world)
    first.head()
    world.passes(1)
    (second,) = [box for box in at_work(world) if box is not first]
    answers(second, client)
    obeys(first)
    assert kinds(world) == [("wasted", 1, "outrun"), ("settled", 2, "done")]


@pytest.mark.parametrize("begin", [lambda box: box.head(200, SSE, EVENT), lambda box: box.head(200, SSE, NOTE)])
def test_what_has_begun_is_not_hedged(begin):
    world = fleet()
    world.ask(stream=True)
    begin(at_work(world)[0])
    world.passes(20)
    assert (len(at_work(world)), hedges(world)) == (1, {})


def test_nobody_is_hedged_unless_that_is_wished():
    world = fleet(hedge=False)
    world.ask(stream=True)
    world.passes(20)
    assert len(at_work(world)) == 1


def test_answers_in_one_piece_are_not_hedged():
    world = fleet()
    world.ask()
    world.passes(20)
    assert len(at_work(world)) == 1


def test_nobody_is_hedged_before_enough_was_seen():
    world = World()
    for name in ("one", "two"):
        Box(world, name, engine("m"))
    world.pipeline.routes.hedge = True
    for _ in range(ENOUGH):
        client = world.ask(stream=True)
        world.passes(1)
        (box,) = at_work(world)
        answers(box, client)
    assert hedges(world) == {}
    # each took a second, so that is not late
    world.ask(stream=True)
    world.passes(0.9)
    assert len(at_work(world)) == 1
    world.passes(9)
    assert len(at_work(world)) == 2


def test_a_request_is_hedged_once():
    world = fleet("one", "two", "three", "four")
    client, first, second = late(world)
    world.passes(5)
    assert len(at_work(world)) == 2
    first.close("failed", "engine_timeout")
    world.passes(5)
    assert at_work(world) == [second]
    second.close("failed", "engine_timeout")
    world.passes(5)
    (third,) = at_work(world)
    answers(third, client)
    assert hedges(world) == {"took_over": 1}


def test_without_a_budget_nobody_is_hedged():
    world = fleet()
    while world.pipeline._failover._retries.take("o", world.clock()):
        pass
    world.ask(stream=True)
    world.passes(1)
    assert (len(at_work(world)), hedges(world)) == (1, {"no_budget": 1})
    world.passes(60)
    assert len(at_work(world)) == 1  # its moment is over


def test_where_no_slot_is_free_the_budget_stays_whole():
    world = fleet("one")
    world.ask(stream=True)
    world.passes(1)
    assert hedges(world) == {}  # nobody expected anything of the only worker there is, and nothing was learned of that
    world = fleet()
    clients = [world.ask(stream=True), world.ask(stream=True)]
    before = shares(world)
    world.passes(1)
    assert (hedges(world), shares(world)) == ({"no_slot": 2}, before)
    for box in at_work(world):
        box.head(data=EVENT)
        box.close()
    assert all(client.end for client in clients)


def test_a_worker_that_came_later_is_good_enough():
    world = fleet("one")
    learns(world, None, 1.0)
    client = world.ask(stream=True)
    second = Box(world, "two", engine("m"))
    world.passes(2)
    answers(second, client)
    assert hedges(world) == {"won": 1}


def test_who_waits_comes_first():
    """The slot of the second worker is free, as it failed the only one who waits; it is not for this one either."""
    world = fleet()
    waiting = world.ask()
    (failed,) = at_work(world)
    client = world.ask(stream=True)
    failed.head(500, JSON, b"{}")
    failed.close()
    assert waiting.state is State.WAITING
    assert not failed.requests
    world.passes(1)
    assert (len(at_work(world)), hedges(world)) == (1, {"no_slot": 1})
    (other,) = at_work(world)
    answers(other, client)
    assert waiting.state is State.SENT


def test_where_models_are_paused_nobody_is_hedged():
    world = fleet()
    world.ask(stream=True)
    world.pipeline.pause_queue("m")
    world.passes(1)
    assert hedges(world) == {"no_slot": 1}


def test_a_worker_that_turned_it_down_is_not_asked_again():
    world = fleet()
    world.ask(stream=True)
    (first,) = at_work(world)
    first.close("busy")
    world.passes(30)
    assert (len(at_work(world)), hedges(world)) == (1, {"no_slot": 1})


def test_a_worker_that_is_left_alone_is_not_asked():
    world = fleet(slots=2)
    breaker = world.pipeline.fleet.breaker
    for _ in range(3):
        breaker.ended((("two", "e"), "m"), False, ids(["one", "two"]), world.clock())
    world.ask(stream=True)
    world.passes(1)
    assert hedges(world) == {"no_slot": 1}


# -- one of the two fails ---------------------------------------------------------------------------------------------

FAILS = {
    "error": lambda box: (box.head(500, JSON, b'{"error":"boom"}'), box.close(status=500)),
    "no stream": lambda box: box.head(200, JSON, b"{}"),
    "error first": lambda box: box.head(200, SSE, sse.event(b'{"error":{"message":"out of memory","code":500}}')),
    "at its end": lambda box: box.close("failed", "engine_timeout"),
    "no model": lambda box: (box.head(404, JSON, b'{"error":"model not found"}'), box.close(status=404)),
    "busy": lambda box: box.close("busy"),
    "full": lambda box: (box.head(503, JSON, b"{}"), box.close(status=503)),
    "away": lambda box: box.close("failed", "engine_unreachable"),
    "draining": lambda box: box.close("failed", "draining"),
    "lost": lambda box: box.cut(),
    "silent": lambda box: box.head(),
}  # fmt: skip
SILENT = Timeouts(first_token=10)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("fail", FAILS)
def test_one_of_two_fails_and_nobody_hears_of_it(fail, which):
    world = fleet(timeouts=SILENT)
    client, *both = late(world)
    bad, good = both[which], both[1 - which]
    FAILS[fail](bad)
    if fail == "silent":
        good.head()
        good.data(NOTE)  # it has begun, so only the other one is silent for too long
        world.passes(12)
    assert client.body.replace(sse.PING, b"") == b""
    assert client.state in {State.SENT, State.RELAYING}
    assert (good.cancelled, hedges(world)) == ([], {("took_over", "failed")[which]: 1})
    if fail == "silent":
        good.data(EVENT)
        good.close()
    else:
        answers(good, client)
    assert client.body.replace(sse.PING, b"") == EVENT + DONE
    if bad in world.boxes:
        obeys(bad)
    rows = kinds(world)
    assert rows[-1] == ("settled", 2 - which, "done")
    assert [row[:2] for row in rows[:-1]] == ([] if fail in {"busy", "full", "away", "draining"} else [("wasted", 1 + which)])
    assert world.used == 0
    assert world.meter.counters.failovers == {}


@pytest.mark.parametrize("way", ["error", "at its end", "lost", "error first"])
def test_both_fail_and_a_third_is_asked(way):
    world = fleet("one", "two", "three")
    client, first, second = late(world)
    for box in (first, second):
        assert client.sent == []
        FAILS[way](box)
    (third,) = [box for box in world.boxes if box.requests and box not in (first, second)]
    answers(third, client)
    for box in (first, second):
        if box in world.boxes:
            obeys(box)
    assert kinds(world)[-1] == ("settled", 3, "done")
    assert (len(kinds(world)), world.used) == (3, 0)
    assert third.requests == {}


def test_each_of_the_two_counts_as_a_try():
    world = fleet("one", "two", "three", "four")
    client, first, second = late(world)
    for _ in range(10):
        world.pipeline._failover.offer("o", world.clock())
    FAILS["error"](second)
    FAILS["error"](first)
    (third,) = at_work(world)
    FAILS["error"](third)
    assert client.code == "engine_error"
    assert "tried 3 times" in client.error.message
    assert [row[0] for row in kinds(world)] == ["wasted"] * 3
    assert world.used == 0


def test_both_have_no_room_and_it_waits_in_the_line():
    world = fleet()
    client, first, second = late(world)
    FAILS["busy"](first)
    FAILS["busy"](second)
    assert client.state is State.WAITING
    world.passes(5)
    (box,) = at_work(world)
    answers(box, client)
    assert kinds(world) == [("settled", 3, "done")]


def test_both_fail_where_there_is_no_third():
    world = fleet()
    client, first, second = late(world)
    FAILS["error"](first)
    FAILS["error"](second)
    assert "tried 2 times" in client.error.message
    assert (world.used, [row[0] for row in kinds(world)]) == (0, ["wasted", "wasted"])


def test_what_is_the_callers_fault_ends_both():
    world = fleet()
    client, first, second = late(world)
    second.head(400, JSON, b'{"error":"top_p"}')
    second.close(status=400)
    assert client.code == "engine_refused"
    obeys(first)
    assert (world.used, hedges(world)) == (0, {"ended": 1})
    assert len(kinds(world)) == 2


def test_breaker_and_experience_hear_the_truth_of_both():
    world = fleet()
    client, first, second = late(world)
    FAILS["error"](first)
    answers(second, client)
    breaker = world.pipeline.fleet.breaker
    assert list(breaker._circuits) == [((first.name, "e"), "m")]
    known = {box.name: world.pipeline.fleet.workers[box.name].seats["e"].past.known["m"].learned.errors for box in (first, second)}
    assert (known[first.name] > 0.0, known[second.name]) == (True, 0.0)


# -- it ends otherwise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_the_client_goes(heads):
    world = fleet()
    client, first, second = late(world)
    for box in (first, second)[:heads]:
        box.head()
    client.post(signals.Gone())
    world.pump()
    assert world.used == 2
    for box in (second, first):
        obeys(box)
    assert (world.used, hedges(world)) == (0, {"ended": 1})
    assert sorted(row[:2] for row in kinds(world)) == [("wasted", 1), ("wasted", 2)]
    assert client.state is State.DONE


def test_a_client_that_goes_once_one_has_answered_pays_for_what_it_had():
    world = fleet()
    client, first, second = late(world)
    second.head(data=EVENT)
    client.post(signals.Gone())
    world.pump()
    obeys(first)
    obeys(second)
    assert (world.used, kinds(world)) == (0, [("wasted", 1, "outrun"), ("settled", 2, "client_disconnected")])


def test_who_is_stopped_is_stopped_at_both():
    world = fleet()
    client, first, second = late(world)
    world.pipeline.revoke_key(world.key.split("_")[1])
    world.pump()
    assert client.code == "revoked_api_key"
    obeys(first)
    obeys(second)
    assert (world.used, len(kinds(world))) == (0, 2)


def test_the_deadline_of_a_request_is_that_of_both():
    world = fleet()
    client, first, second = late(world, headers=[(b"x-mindgw-deadline", b"8")])
    world.passes(10)
    assert client.code == "deadline_unmeetable"
    obeys(first)
    obeys(second)
    assert world.used == 0


def test_what_has_begun_has_met_its_deadline_whatever_the_other_one_does():
    world = fleet()
    client, first, second = late(world, headers=[(b"x-mindgw-deadline", b"8")])
    first.head(data=NOTE)
    world.passes(11)
    assert (client.end, second.cancelled) == (None, [])
    first.data(EVENT)
    first.close()
    assert client.body.replace(sse.PING, b"") == EVENT + DONE
    obeys(second)


def test_no_more_time_is_given_in_all_because_there_are_two():
    world = fleet(timeouts=Timeouts(total=20, first_token=100))
    learns(world, seconds=5.0, times=2 * ENOUGH)
    client = world.ask(stream=True)
    (first,) = at_work(world)
    world.passes(15)
    (second,) = [box for box in at_work(world) if box is not first]
    world.passes(4)
    assert client.end is None
    world.passes(2)
    world.passes(1)
    assert client.code == "engine_timeout"
    obeys(first)
    obeys(second)
    assert world.used == 0


def test_each_has_its_own_time_to_begin():
    world = fleet("one", "two", timeouts=Timeouts(first_token=10))
    client, first, second = late(world)
    world.clock.now += 9.5
    world.pipeline.sweep()
    world.pump()
    assert first.cancelled == list(first.requests)
    assert second.cancelled == []
    answers(second, client)
    obeys(first)
    assert kinds(world) == [("wasted", 1, "engine_timeout"), ("settled", 2, "done")]


def test_a_server_that_stops_leaves_nothing():
    world = fleet()
    client, first, second = late(world)
    world.pipeline.stop()
    world.pump()
    assert client.code == "server_draining"
    for box in (first, second):
        obeys(box)
    assert world.used == 0


def served_by(client: Client) -> list[str]:
    """Whom the stream names, in the order of its chunks."""
    chunks = [json.loads(data) for data in sse.Splitter().feed(client.body) if b"served_by" in data]
    return [chunk["mindgw"]["served_by"].split("; ")[0] for chunk in chunks]


def kept_alive(world: World) -> tuple[Client, Box, Box]:
    """A stream of a route whose head has left, and names the first one."""
    world.pipeline.adopt_routes(Rules([Route(name="m", match="m", targets=(target("m"),), hedge=True)]), {})
    client, first, second = late(world)
    assert client.body.startswith(b":")
    return client, first, second


@pytest.mark.parametrize("said", [EVENT, b"", NOTE])
def test_a_stream_that_is_kept_alive_says_in_its_end_who_served_it(said):
    client, first, second = kept_alive(fleet(timeouts=Timeouts(hold=0.5)))
    second.head(data=said)
    second.close()
    obeys(first)
    assert served_by(client) == [second.name]


@pytest.mark.parametrize("which", [0, 1])
def test_who_goes_on_after_the_other_failed_is_who_served_it(which):
    client, *boxes = kept_alive(fleet(timeouts=Timeouts(hold=0.5)))
    FAILS["error"](boxes[which])
    answers(boxes[1 - which], client)
    assert served_by(client) == [boxes[1 - which].name]


def test_the_head_names_who_goes_on_after_the_first_failed():
    world = fleet()
    world.pipeline.adopt_routes(Rules([Route(name="m", match="m", targets=(target("m"),), hedge=True)]), {})
    client, first, second = late(world)
    FAILS["error"](first)
    answers(second, client)
    assert dict(client.exchange.notes(lambda: 0.0))[b"x-mindgw-served-by"].startswith(second.name.encode())


# -- where it may go --------------------------------------------------------------------------------------------------


def test_a_request_that_is_bound_is_hedged_where_it_may_go():
    world = fleet("one", "two", "three", "four")
    tags = {"one": {"region": "eu"}, "two": {"region": "us"}, "three": {"region": "us"}, "four": {"region": "eu"}}
    world.pipeline.adopt_routes(Rules([]), {name: {**own, "worker": name} for name, own in tags.items()})
    world.pump()
    key = world.add_key(labels={"region": "eu"})
    for _ in range(3):
        client, first, second = late(world, key=key)
        assert {first.name, second.name} == {"one", "four"}
        answers(second, client)
        assert dict(client.exchange.notes(lambda: 0.0))[b"x-mindgw-served-by"].startswith(second.name.encode())
        obeys(first)
        for _ in range(5):
            world.pipeline._failover.offer("o", world.clock())
    world.boxes[3].cut()
    learns(world, None)
    world.ask(key=key, stream=True)
    world.passes(1)
    assert hedges(world)["no_slot"] == 1


def test_a_worker_that_was_told_to_be_elsewhere_is_not_asked():
    """Whatever the index of places still says."""
    world = fleet()
    world.pipeline.adopt_routes(Rules([]), {name: {"region": "eu", "worker": name} for name in ("one", "two")})
    world.pump()
    world.ask(key=world.add_key(labels={"region": "eu"}), stream=True)
    (first,) = at_work(world)
    for name, worker in world.pipeline.fleet.workers.items():
        if name != first.name:
            worker.tags = {"region": "us", "worker": name}
    world.passes(1)
    assert (world.used, hedges(world)) == (1, {"no_slot": 1})


@pytest.mark.parametrize("alias", ["secret", "other"])
def test_a_model_that_goes_by_a_forbidden_name_elsewhere_is_not_asked_there(alias):
    world = fleet("one")
    learns(world, None)
    world.rules[next(iter(world.keys))] = access.compile_models([access.Rule("r", "user:u", False, "secret")])
    world.ask(stream=True)
    Box(world, "two", engine(models=[wire.Model("m", aliases=[alias], kinds=["chat"])]))
    world.passes(1)
    assert (world.used, hedges(world)) == ((1, {"no_slot": 1}) if alias == "secret" else (2, {}))


def test_a_model_is_hedged_where_it_is_pinned():
    world = fleet("one", "two", "three")
    pinned = Route(name="p", match="m", pins=where(["worker=one", "worker=three"]), hedge=True)
    world.pipeline.adopt_routes(Rules([pinned]), {name: {"worker": name} for name in ("one", "two", "three")})
    world.pump()
    _, first, second = late(world)
    assert {first.name, second.name} == {"one", "three"}


@pytest.mark.parametrize(("said", "default"), [(True, False), (False, True)])
def test_a_route_says_for_itself_whether_it_is_hedged(said, default):
    world = fleet(hedge=default)
    learns(world)
    world.pipeline.adopt_routes(Rules([Route(name="r", match="fast", targets=(target("m"),), hedge=said)]), {})
    assert world.pipeline.explain(Caller("k", "k", "o"), "fast", "chat").hedge is said
    assert world.pipeline.explain(Caller("k", "k", "o"), "m", "chat").hedge is default
    world.ask("fast", stream=True)
    world.passes(1)
    assert len(at_work(world)) == 1 + said


def test_a_worker_that_calls_the_model_otherwise_is_not_asked():
    world = World()
    for id in ("a", "b"):
        Box(world, f"box-{id}", engine(models=[wire.Model(id, aliases=["m"], kinds=["chat"])]))
    world.pipeline.routes.hedge = True
    learns(world, model="a")
    learns(world, model="b")
    world.ask(stream=True)
    world.passes(1)
    assert hedges(world) == {"no_slot": 1}
    assert world.used == 1


# -- money ------------------------------------------------------------------------------------------------------------


def funded(world: World, limit: int) -> signals.State:
    """A hard limit, all of it on loan here."""
    budget = world.limit(f"key:{world.key.split('_')[1]}", limit)
    world.vault.budgets[budget] = [0, limit]
    world.quotas.desk.leases.lend(budget, limit, 0, limit, limit)
    return budget


def test_what_a_request_may_use_is_held_once_and_settled_once():
    world = fleet()
    budget = funded(world, 1000)
    free = world.quotas.desk.leases.free
    client = world.ask(stream=True, max_tokens=100)
    held = 1000 - free(budget)
    assert held >= 100
    (first,) = at_work(world)
    world.passes(1)
    assert 1000 - free(budget) == held
    (second,) = [box for box in at_work(world) if box is not first]
    one, other = (json.loads(box.requests[box.stream].body) for box in (first, second))
    assert one == other
    tags = [world.seal.open(box.requests[box.stream].meta.tag, box.name) for box in (first, second)]
    assert [tag.attempt for tag in tags] == [1, 2]
    second.head(data=EVENT)
    assert 1000 - free(budget) == held
    second.close(usage=wire.Usage(3, 4))
    obeys(first)
    world.settled()
    assert world.vault.budgets[budget][0] == 7
    assert free(budget) == 1000 - 7
    assert client.end == signals.End()


def test_what_is_held_stays_so_while_one_of_the_two_goes_on():
    world = fleet()
    budget = funded(world, 1000)
    free = world.quotas.desk.leases.free
    client, first, second = late(world, max_tokens=100)
    held = free(budget)
    FAILS["error"](first)
    assert free(budget) == held
    FAILS["error"](second)
    assert (client.code, free(budget)) == ("engine_error", 1000)


def test_a_worker_for_which_less_is_held_than_it_might_use_is_not_asked():
    world = World()
    for name, context in (("one", 4096), ("two", 8192)):
        Box(world, name, engine(models=[wire.Model("m", kinds=["chat"], context=context)]))
    world.pipeline.routes.hedge = True
    learns(world)
    world.ask(stream=True)
    world.passes(1)
    assert hedges(world) == {}
    assert len(at_work(world)) == 2  # no limit, no matter
    for box in at_work(world):
        box.close()
    funded(world, 10**6)
    world.ask(stream=True, messages=LONG)
    before = {name: memory(world, name) for name in ("one", "two")}
    world.passes(1)
    assert hedges(world)["no_slot"] == 1
    assert {name: memory(world, name) for name in ("one", "two")} == before, "nothing of it was sent there"


#: A prompt of which it is remembered who had it.
LONG = [{"role": "user", "content": "x" * 4000}]


def memory(world: World, name: str) -> tuple[float, float, int]:
    """What a worker has to read, its errors, and how much of that prompt it seems to remember."""
    fleet = world.pipeline.fleet
    past = fleet.workers[name].seats["e"].past
    blocks = sum(holders & past.bit > 0 for holders in fleet.experience.prefixes._new.values())
    return past.sent - past.read, past.known["m"].learned.errors, blocks


def test_who_may_not_have_it_does_not_stand_before_who_may():
    world = World()
    for name, context, slots in (("one", 4096, 1), ("two", 8192, 64), ("three", 8192, 64), ("four", 4096, 1)):
        Box(world, name, engine(models=[wire.Model("m", kinds=["chat"], context=context)], slots=slots))
    world.pipeline.routes.hedge = True
    learns(world)
    funded(world, 10**6)
    world.pipeline.fleet.strategy = "least-busy"
    _, first, second = late(world)
    assert {first.name, second.name} in ({"one", "four"}, {"two", "three"})


# -- what is learned --------------------------------------------------------------------------------------------------


def pace(world: World, box: Box) -> float:
    return world.pipeline.fleet.workers[box.name].seats["e"].past.known["m"].candidate.prefill


def test_a_first_try_that_was_outrun_teaches_that_its_worker_is_slow():
    world = fleet()
    client, first, second = late(world)
    before = pace(world, first), pace(world, second)
    answers(second, client)
    assert pace(world, first) > before[0]
    assert world.pipeline.fleet.workers[first.name].seats["e"].past.known["m"].learned.errors == 0.0
    assert not world.pipeline.fleet.breaker._circuits


def test_a_second_try_that_had_no_time_teaches_nothing():
    world = fleet()
    client, first, second = late(world)
    known = world.pipeline.fleet.workers[second.name].seats["e"].past.known["m"].learned
    before = known.reading, known.read
    (times,) = world.pipeline._failover.hedging._sorts.values()
    answers(first, client)
    assert (known.reading, known.read) == before
    assert times.total == ENOUGH + 1  # that of the first one


def test_what_is_learned_of_time_is_that_of_first_tries_that_answer():
    world = fleet("one", "two", "three")
    (times,) = world.pipeline._failover.hedging._sorts.values()
    client, first, second = late(world)
    answers(second, client)
    assert times.total == ENOUGH + 1  # at least so long the first one would have taken
    obeys(first)
    client = world.ask(stream=True)
    (first,) = at_work(world)
    FAILS["error"](first)
    assert times.total == ENOUGH + 1  # an error comes soon
    (third,) = at_work(world)
    answers(third, client)
    assert times.total == ENOUGH + 2
    client, first, second = late(world)
    first.head(data=NOTE)
    assert times.total == ENOUGH + 3
    answers(second, client)
    assert times.total == ENOUGH + 3


def test_a_conversation_stays_where_it_was():
    world = fleet()
    client, first, second = late(world, prompt_cache_key="talk")
    key_id, name = client.exchange._stay.needs.traits.session
    assert name == "talk"
    assert world.pipeline.fleet.experience.sessions.where("o", ("m", key_id, name)) == first.name
    answers(first, client)
    obeys(second)


def test_a_fleet_that_becomes_slow_is_hedged_no_more_than_before():
    """Who is outrun each time is late no longer, so that few are hedged when all are slow."""
    world = fleet()
    hedging = world.pipeline._failover.hedging
    before = hedging.patience("m", 1.0)
    for _ in range(ENOUGH):
        world.pipeline._failover.offer("o", world.clock())
        world.pipeline._failover._retries = Shares(0.2, 5, world.clock())
        client = world.ask(stream=True)
        (first,) = at_work(world)
        world.passes(5)
        for box in at_work(world):
            if box is not first:
                answers(box, client)
        if client.end is None:
            answers(first, client)
        for box in at_work(world):
            obeys(box)
    assert hedging.patience("m", 1.0) > 2 * before
    assert hedges(world)["won"] < ENOUGH


def test_settings_say_whether_it_is_done():
    assert Config("/", routing=Routing(hedge=True)).routing.hedge
    assert not Config("/").routing.hedge
