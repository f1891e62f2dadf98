"""Routes and places where engines fail: who else is asked, who is left alone, and that neither costs more than it may."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.config import Limits
from mindgw.core import access
from mindgw.core.payload import Peek
from mindgw.core.routing import Leg, where
from mindgw.gateway import ejection, signals
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.course import Course
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import Flow, flow
from mindgw.gateway.queue import Queue
from mindgw.gateway.route import Ended, Needs, Outcome
from mindgw.gateway.signals import State
from mindgw.gateway.stay import Stay
from mindgw_agent import wire
from tests.gateway.test_routes import EU, US, answer, bound, headers, route, world
from tests.gateway.world import JSON, Box, engine, ids


def engine_model(id, *aliases):
    return wire.Model(id, aliases=list(aliases), kinds=["chat"])


def allowing(*names):
    return access.compile_models(access.Rule(name, "user:u", True, name) for name in names)


POOLS = {"gpu": {"pool": "gpu"}, "cpu": {"pool": "cpu"}}
TO_POOLS = route("fast", "m@pool=gpu", fallbacks=["n@pool=cpu"])


def fails(box, status=500):
    box.head(status, JSON, b'{"error":"boom"}')
    box.close(status=status)


def trip(made, worker, model="m", count=10):
    """That worker fails whatever it is sent."""
    for _ in range(count):
        made.pipeline.fleet.breaker.ended(((worker, "e"), model), False, ids([worker]), made.clock())


@pytest.mark.parametrize("status", [500, 404])
def test_another_model_of_the_same_worker_may_do_what_one_failed(status):
    made = world(route("fast", "m", fallbacks=["n"]))
    box = Box(made, "box", engine("m", "n"))
    client = made.ask("fast")
    fails(box, status)
    assert box.requests[box.stream].meta.model == "n"
    answer(box, "n")
    assert json.loads(client.body)["model"] == "fast"
    assert headers(client)[b"x-mindgw-served-by"] == b"box; model=n"
    assert [row.kind for row in made.settled()] == ["wasted", "settled"]


def test_a_worker_that_failed_a_model_is_not_asked_for_it_again_by_another_leg():
    made = world(route("fast", "m@pool=gpu", fallbacks=["m"]), tags=POOLS)
    gpu, cpu = Box(made, "gpu", engine("m", slots=4)), Box(made, "cpu", engine("m"))
    made.ask("fast")
    fails(gpu)
    assert (len(gpu.requests), len(cpu.requests)) == (0, 1)


def test_the_only_worker_of_a_place_is_not_left_alone_as_if_others_could_replace_it():
    made = world(tags={"here": EU, "there": US, "elsewhere": US})
    here, others = Box(made, "here"), [Box(made, "there"), Box(made, "elsewhere")]
    key, fleet, place = bound(made, region="eu"), made.pipeline.fleet, where(["region=eu"])
    for _ in range(5):
        client = made.ask(key=key)
        fails(here)
        assert client.code == "engine_error"
    made.ask(key=key)
    assert len(here.requests) == 1
    fails(here)
    for _ in range(4):
        made.ask(key=key)
        fails(here)
    assert ejection.cut_off(fleet, "m", "chat", made.clock(), place) is not None
    client = made.ask(key=key)
    assert (client.code, client.error.status) == ("no_worker_available", 503)
    assert not any(box.requests for box in others)
    assert ejection.cut_off(fleet, "m", "chat", made.clock()) is None


def test_who_fails_in_one_place_is_known_in_all_others():
    made = world(tags={name: {**EU, "zone": name} for name in ("a", "b", "c", "d")})
    for name in ("a", "b", "c", "d"):
        Box(made, name)
    fleet, now = made.pipeline.fleet, made.clock()
    for _ in range(3):
        fleet.breaker.ended((("a", "e"), "m"), False, ids("abcd"), now)
    assert ejection.held(fleet, "m", "chat", now) == ids("a")
    assert ejection.held(fleet, "m", "chat", now, where(["region=eu"])) == ids("a")
    assert ejection.held(fleet, "m", "chat", now, where(["zone=a", "zone=b"])) == ids("a")
    assert ejection.held(fleet, "m", "chat", now, where(["zone=a"])) == frozenset(), "nobody else is there"
    assert ejection.held(fleet, "m", "chat", now, where(["zone=b"])) == frozenset()
    assert not ejection.others(fleet, "m", "chat", ids("b"), now, where(["zone=a", "zone=b"]))


def test_a_leg_whose_only_worker_is_left_alone_is_passed_over():
    made = world(TO_POOLS, tags=POOLS)
    gpu, cpu = Box(made, "gpu"), Box(made, "cpu", engine("n"))
    trip(made, "gpu")
    client = made.ask("fast")
    assert (len(gpu.requests), len(cpu.requests)) == (0, 1)
    answer(cpu, "n")
    assert client.code == ""


def test_who_waits_for_a_worker_that_is_left_alone_goes_to_the_next_leg():
    made = world(TO_POOLS, tags=POOLS)
    gpu, cpu = Box(made, "gpu"), Box(made, "cpu", engine("n"))
    made.ask("fast")
    waits = made.ask("fast")
    assert (waits.state, len(gpu.requests)) == (State.WAITING, 1)
    trip(made, "gpu")
    made.passes(2)
    assert len(cpu.requests) == 1
    answer(cpu, "n")
    assert headers(waits)[b"x-mindgw-served-by"] == b"cpu; model=n; pool=cpu"


def test_who_was_failed_and_waits_for_another_worker_that_goes_away_goes_to_the_next_leg():
    pools = {"g1": {"pool": "gpu"}, "g2": {"pool": "gpu"}, "cpu": {"pool": "cpu"}}
    made = world(TO_POOLS, tags=pools)
    boxes = [Box(made, "g1"), Box(made, "g2")]
    cpu = Box(made, "cpu", engine("n", slots=2))
    clients = [made.ask("fast"), made.ask("fast")]
    fails(boxes[0])
    queue = made.pipeline.queue
    assert (queue._apart.total(), [client.state for client in clients].count(State.WAITING)) == (1, 1)
    boxes[1].cut()
    made.passes(5)
    # who was lost goes to the worker that is there; who was failed there goes on
    assert (len(boxes[0].requests), len(cpu.requests)) == (1, 1)
    assert not queue._apart
    answer(cpu, "n")
    answer(boxes[0], "m")
    assert [client.code for client in clients] == ["", ""]


def test_legs_in_which_all_fail_are_asked_no_more_than_retries_allow():
    made = world(route("fast", "m", fallbacks=["n", "o"]))
    box, asked = Box(made, "box", engine("m", "n", "o", slots=4)), 0
    for _ in range(30):
        client = made.ask("fast")
        while box.requests:
            asked += 1
            fails(box)
        assert client.error is not None
    assert 30 <= asked <= 30 * 1.2 + 3


def test_a_route_says_how_a_seat_is_chosen():
    made = world(route("m", strategy="round-robin"), tags={"a": EU, "b": EU, "c": US})
    for name in ("a", "b", "c"):
        Box(made, name, engine("m", slots=9))
    served = [made.ask(key=bound(made, region="eu")).exchange for _ in range(6)]
    assert [exchange._attempt.placement.choice.strategy for exchange in served] == ["round-robin"] * 6
    assert sorted(exchange.worker for exchange in served) == ["a"] * 3 + ["b"] * 3


@pytest.mark.parametrize("strategy", ["", "score", "least-busy", "round-robin", "weighted", "sticky"])
@pytest.mark.parametrize("more", [0, 15])
def test_no_rule_leads_out_of_a_place(strategy, more):
    tags = {"a": EU, "b": EU, "us": US} | {f"w{i}": US for i in range(more)} | {f"e{i}": EU for i in range(more)}
    made = world(route("m", strategy=strategy), tags=tags)
    for name in tags:
        Box(made, name, engine("m", slots=2))
    said = [(b"x-claude-code-session-id", b"one")]
    made.ask(key=bound(made, region="us"), headers=said)
    clients = [made.ask(key=bound(made, region="eu"), headers=said) for _ in range(4)]
    assert {tags[client.exchange.worker]["region"] for client in clients} == {"eu"}


def test_what_nobody_could_choose_by_is_not_read_where_one_worker_may_be_asked():
    made = world(tags={"here": EU, "there": US})
    Box(made, "here", engine("m", slots=2)), Box(made, "there")
    assert made.ask(key=bound(made, region="eu")).exchange.ticket.needs.traits.prefix is None
    assert made.ask().exchange.ticket.needs.traits.prefix is not None


def test_a_name_of_several_models_leads_to_those_that_are_for_the_caller():
    made = world(route("fast", "shared"))
    fleet = made.pipeline.fleet
    Box(made, "a", engine("x", models=[engine_model("m", "shared")]))
    Box(made, "b", engine("x", models=[engine_model("n", "shared")]))
    caller = Caller("k", "n", "o", models=allowing("fast", "n"))
    course, leg = made.pipeline.routes.go(caller, "fast", "chat", flow(caller, (), "", ""))
    assert (course.legs, leg.model) == ((leg,), "n")
    way = made.pipeline.explain(caller, "fast", "chat")
    assert (way.chosen, way.code, way.legs[0].model, way.legs[0].allowed) == (0, "", "shared", True)
    assert fleet.offers("shared") == {"m": {"m", "shared"}, "n": {"n", "shared"}}


def test_legs_that_come_to_the_same_models_are_gone_once():
    made = world(route("chat", "a", fallbacks=["b", "c", "d"]))
    first, second = engine(models=[engine_model("0x", "a", "c"), engine_model("0y", "b", "d")], slots=9), engine_model("other", *"abcd")
    boxes = [Box(made, "box", first, engine(id="e2", models=[second])), Box(made, "other", engine(*"abcd", slots=9))]
    key = made.add_key()
    made.rules[next(reversed(made.keys))] = access.compile_models([access.Rule("other", "key:k", False, "other")])
    for number in range(40):
        client = made.ask("chat", key)
        while client.end is None:
            fails(next(box for box in boxes if box.requests))
        assert client.code, number


class Land:
    """Where there are workers for some models, and now and then for others."""

    def __init__(self, draw):
        self._draw = draw

    def present(self, model, where):
        return self._draw()

    taken = line = None


@given(st.data(), st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_a_course_comes_to_its_end_whatever_the_fleet_says(data, models):
    legs = tuple(Leg(model) for model in models)
    ground = Land(lambda: data.draw(st.booleans()))
    course = Course("r", legs, data.draw(st.integers(0, len(legs) - 1)))
    needs = Needs(legs[course.first].model, "chat")
    ask = Ask(
        Caller("k", "k", "o"),
        "/",
        Peek(models[0], stream=False, include_usage=False),
        needs,
        Flow(("o", "", "", "k", ""), 2),
        1,
        None,
        course=course,
    )
    queue = Queue(lambda needs, now: None, Fleet(lambda: None), Limits())
    stay = Stay(queue, signals.Head("r", "/", []), ask, 1, 60.0, None)
    asked = 0

    def may(needs, now):
        nonlocal asked
        asked += 1
        return data.draw(st.booleans())

    ends = 0
    while stay.goes_on(Ended(Outcome.FAILED, ids([f"w{ends}"]), 0.0), may, 1, ground):
        ends += 1
        if data.draw(st.booleans()):
            stay.skips(ground)
    assert ends < len(legs)
    assert asked < len(legs)


# -- explained ---------------------------------------------------------------------------------------------------------


def explained(made, model):
    way = made.pipeline.explain(Caller("k", "k", "o"), model, "chat")
    return way.outcome, way.code, way.chosen


def test_what_is_explained_of_a_worker_that_is_left_alone_is_what_is_heard():
    made = world(TO_POOLS, tags=POOLS)
    Box(made, "gpu", engine("m"))
    trip(made, "gpu")
    assert made.ask("fast").code == made.ask("m").code == "no_worker_available"
    assert explained(made, "fast") == explained(made, "m") == ("refused", "no_worker_available", None)
    way = made.pipeline.explain(Caller("k", "k", "o"), "m", "chat")
    assert way.reason == way.legs[0].why_not == "The only worker of this model fails whatever it is sent."
    other = Box(made, "cpu", engine("n"))
    assert made.ask("fast").code == ""
    assert other.requests[other.stream].meta.model == "n"
    assert explained(made, "fast") == ("goes", "", 1)


def test_who_would_wait_is_told_so():
    made = world(TO_POOLS, tags=POOLS)
    Box(made, "gpu", engine("m"))
    assert explained(made, "fast") == explained(made, "m") == ("goes", "", 0)
    made.pipeline.fleet.drain(made.pipeline.fleet.workers["gpu"])
    client = made.ask("fast")
    assert client.exchange.state is State.WAITING
    assert explained(made, "fast") == explained(made, "m") == ("waits", "", 0)
    way = made.pipeline.explain(Caller("k", "k", "o"), "fast", "chat")
    assert way.reason == "none of its workers takes requests: it waits for m with pool=gpu, and is refused when none comes"
    Box(made, "cpu", engine("n"))
    assert explained(made, "fast") == ("goes", "", 1)
