"""Routes on the request's path: who is asked, who is never asked, and what the client hears of it."""

import asyncio
import json
import logging
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgw import errors, metrics
from mindgw.core import access, routing
from mindgw.core.routing import Route, Rules, permits, target, where
from mindgw.gateway import places, signals
from mindgw.gateway.admission import Caller
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import Flow
from mindgw.gateway.queue import Queue
from mindgw.gateway.route import Ended, Needs, Outcome, attempts, place
from mindgw.gateway.routes import Routes
from mindgw.gateway.seat import Worker
from mindgw.gateway.signals import State
from mindgw.gateway.tunnel import Link
from mindgw.store.keys import Change
from mindgw_agent import wire
from tests.gateway.world import DONE, JSON, Box, Client, World, engine, finished, knows

EU, US = {"region": "eu"}, {"region": "us"}


def route(match, *to, fallbacks=(), pins=(), require=(), **more):
    said = {"name": match, "match": match, "targets": tuple(map(target, to)), "fallbacks": tuple(map(target, fallbacks))}
    return Route(**said | {"pins": where(pins), "require": where(require)} | more)


def world(*routes, tags=None, **kinds):
    """A world with these routes, and a box for each model; `tags`: those of boxes."""
    made = World(**kinds)
    adopt(made, *routes, tags=tags)
    return made


def adopt(made, *routes, tags=None):
    known = {name: {**own, "worker": name} for name, own in (tags or {}).items()}
    made.pipeline.adopt_routes(Rules(routes), known)
    made.pump()


def headers(client):
    return dict(client.exchange.notes(lambda: 0.0))


def answer(box, model="real"):
    box.head(content_type=JSON, data=json.dumps({"id": "1", "model": model, "choices": [{"message": {"content": '"model":"x"'}}]}).encode())
    box.close()


def bound(made, **labels):
    return made.add_key(labels=labels)


# -- names -------------------------------------------------------------------------------------------------------------


def test_an_alias_is_asked_of_its_model_and_the_answer_names_what_was_asked():
    made = world(route("fast", "m"))
    box = Box(made, "box", engine("m"))
    client = made.ask("fast")
    assert box.requests[box.stream].meta.model == "m"
    answer(box)
    said = json.loads(client.body)
    assert (said["model"], said["choices"][0]["message"]["content"]) == ("fast", '"model":"x"')
    assert headers(client)[b"x-mindgw-served-by"] == b"box; model=m"
    assert made.settled()[-1].model == "m"


def test_what_an_agent_calls_its_model_makes_no_header_of_its_own():
    made = world(route("fast", "al"))
    box = Box(made)
    lie = engine(models=[wire.Model("m\r\nx-evil: ü", aliases=["al"], kinds=["chat"])])  # which an honest agent's session would not send
    made.pipeline.fleet.report(made.pipeline.fleet.workers["box"], wire.Report(9, [lie]))
    client = made.ask("fast")
    answer(box)
    assert headers(client)[b"x-mindgw-served-by"] == b"box; model=m??x-evil: ?"


def test_without_a_route_the_answer_stays_as_it_is():
    made = world()
    box = Box(made)
    client = made.ask()
    answer(box)
    assert json.loads(client.body)["model"] == "real"
    assert b"x-mindgw-served-by" not in headers(client)


@pytest.mark.parametrize("include_usage", [False, True])
def test_every_chunk_of_a_stream_names_what_was_asked(include_usage):
    made = world(route("fast", "m"))
    box = Box(made)
    client = made.ask("fast", stream=True, stream_options={"include_usage": include_usage})
    plain = b'data: {"model": "m","choices":[{"delta":{"content":"\\"model\\":\\"m\\""}}]}\n\n'
    box.head(data=plain * 2 + b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n')
    box.data(b'data: {"model":"m","choices":[{"delta":{"reasoning":"a"}}]}\n\n')
    box.close()
    chunks = [json.loads(part.removeprefix(b"data: ")) for part in client.body.split(b"\n\n")[:-2]]
    assert {chunk["model"] for chunk in chunks} == {"fast"}
    assert chunks[0]["choices"][0]["delta"]["content"] == '"model":"m"'
    assert client.body.endswith(DONE)


def test_who_serves_is_told_at_the_end_where_the_head_left_before():
    made = world(route("fast", "m@region=eu"), tags={"box": EU})
    box = Box(made)
    first = made.ask("fast")
    client = made.ask("fast", stream=True)
    made.passes(60)
    assert isinstance(client.sent[0], signals.Begin)
    answer(box)
    assert first.end is not None
    box.head(data=b'data: {"model":"m"}\n\n')
    box.close()
    last = json.loads(client.body.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert last["mindgw"] == {"served_by": "box; model=m; region=eu"}
    assert last["model"] == "fast"


def test_a_model_and_its_name_both_have_to_be_for_the_caller():
    made = world(route("fast", "m", fallbacks=["small"]))
    Box(made, "box", engine("m", "small"))
    for rules, code in (
        (["allow fast", "allow m"], ""), (["allow m"], "model_not_found"), (["allow fast"], "model_not_found"),
        (["deny fast"], "model_not_found"), (["deny m"], ""), (["deny m", "deny small"], "model_not_found"),
    ):  # fmt: skip
        key = made.add_key()
        pairs = [text.split() for text in rules]
        made.rules[next(reversed(made.keys))] = access.compile_models(access.Rule(p, "user:u", e == "allow", p) for e, p in pairs)
        client = made.ask("fast", key)
        assert client.code == code, rules
        if code:
            assert client.error.message == "The model 'fast' does not exist or no worker serves it."
    scoped = made.add_key(scopes={"models": ["fast"]})
    assert made.ask("fast", scoped).code == "model_not_found"
    assert made.ask("fast", made.add_key(scopes={"models": ["fast", "m"]})).code == ""


def test_the_list_of_models_has_the_names_that_lead_somewhere_for_who_asks():
    made = world(route("fast", "m@region=eu"), route("gone", "x"), route("qwen*", "m"), route("try", "m", shadow=True), tags={"box": EU})
    Box(made)
    pipeline, caller = made.pipeline, Caller("k", "n", "o")
    assert [offer.id for offer in pipeline.models()] == ["fast", "m"]
    assert [offer.id for offer in pipeline.models(caller)] == ["fast", "m"]
    denied = access.compile_models([access.Rule("r", "user:u", False, "m")])
    assert pipeline.models(Caller("k", "n", "o", models=denied)) == []
    denied = access.compile_models([access.Rule("r", "user:u", False, "fast")])
    assert [offer.id for offer in pipeline.models(Caller("k", "n", "o", models=denied))] == ["m"]
    assert pipeline.models(Caller("k", "n", "o", home=routing.residency(US))) == []


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_request_stays_where_the_labels_of_its_key_bind_it():
    made = world(tags={"here": EU, "there": US})
    here, there = Box(made, "here"), Box(made, "there")
    for _ in range(3):
        client = made.ask(key=bound(made, region="eu"))
        answer(here)
        assert headers(client)[b"x-mindgw-served-by"] == b"here; model=m; region=eu"
    assert not there.requests
    made.ask(key=bound(made, region="us|uk"))
    assert len(there.requests) == 1


@pytest.mark.parametrize("labels", [{"region": "mars"}, {"zone": "lab"}, {"region": ""}, {"region": "eu", "zone": "lab"}])
def test_who_may_go_to_nobody_hears_so_at_once_and_nobody_is_asked(labels):
    made = world(tags={"here": EU})
    here, unknown = Box(made, "here"), Box(made, "unknown")
    client = made.ask(key=bound(made, **labels))
    assert (client.code, client.error.status) == ("residency_unmet", 503)
    assert not here.requests and not unknown.requests
    assert made.ask("absent", bound(made, **labels)).code == "model_not_found"


def test_who_may_go_to_a_worker_that_is_away_waits_for_it_and_for_no_other():
    made = world(tags={"here": EU, "there": US})
    here, there = Box(made, "here"), Box(made, "there")
    here.cut()
    client = made.ask(key=bound(made, region="eu"))
    assert client.state is State.WAITING
    made.passes(3)
    assert not there.requests
    made.passes(600)
    assert client.code == "residency_unmet"


def test_tags_that_change_move_who_waits():
    made = world(tags={"here": EU, "there": US})
    here, there = Box(made, "here"), Box(made, "there")
    made.ask(key=bound(made, region="eu"))
    waits = made.ask(key=bound(made, region="eu"))
    assert (waits.state, len(here.requests), len(there.requests)) == (State.WAITING, 1, 0)
    adopt(made, tags={"here": US, "there": EU})
    assert (len(here.requests), len(there.requests)) == (1, 1)


def binds(made, labels, noun="keys"):
    """An operator says where the newest key's requests have to stay, from now on."""
    id, row = list(made.keys.items())[-1]
    row.labels = labels
    made.noted.append(Change(made.noted[-1].id + 1, noun, id if noun == "keys" else row.org_id, datetime.now(UTC)))
    finished(made.pipeline.check_keys())
    made.pump()


@pytest.mark.parametrize("noun", ["keys", "orgs"])
@pytest.mark.parametrize("routes", [[], [route("m", "m", fallbacks=["n"])]], ids=["plain", "by a route"])
def test_who_waits_goes_nowhere_else_once_the_key_is_bound(routes, noun):
    made = world(*routes, tags={"here": EU, "there": US})
    key, here = made.add_key(), Box(made, "here")
    client, waits = made.ask(key=key), made.ask(key=key)
    binds(made, EU, noun)
    there = Box(made, "there", engine("m", "n"))
    assert (client.state, waits.state, there.requests) == (State.SENT, State.WAITING, {})
    binds(made, {}, noun)
    made.passes(5)
    assert there.requests == {}  # what was said of it before still holds
    answer(here)
    assert (len(here.requests), there.requests) == (1, {})
    assert waits.state is State.SENT


@pytest.mark.parametrize("ends", ["failed", "lost", "busy"])
def test_what_fails_goes_nowhere_else_once_the_key_is_bound(ends):
    made = world(route("m", "m", fallbacks=["n"]), tags={"here": EU, "there": US})
    key, here, there = made.add_key(), Box(made, "here"), Box(made, "there", engine("m", "n"))
    client = made.ask(key=key)
    if not here.requests:
        answer(there)
        client = made.ask(key=key)
    binds(made, EU)
    if ends == "failed":
        here.head(500, JSON, b'{"error":"boom"}')
    elif ends == "lost":
        here.cut()
    if ends != "lost":
        here.close("failed" if ends == "failed" else "busy")
    made.passes(5)
    assert there.requests == {}
    assert client.code == ("engine_error" if ends == "failed" else "")


async def test_a_slot_of_another_place_is_given_up_when_the_key_is_bound_while_it_is_funded():
    made = world(tags={"there": US})
    made.limit("org:o", 10**6)
    key, there = made.add_key(), Box(made, "there")
    client = made.ask(key=key)
    assert client.state is State.FUNDING
    binds(made, EU)
    await settle(made)
    assert (client.state, there.requests, made.used) == (State.WAITING, {}, 0)


def test_who_has_not_said_yet_what_they_want_is_bound_as_well():
    made = world(tags={"there": US})
    key, there = made.add_key(), Box(made, "there")
    finished(made.auth.look_up(key, made.clock()))
    client = Client(made, key)
    binds(made, EU)
    client.post(signals.Received(b'{"model":"m","messages":[{"role":"user","content":"x"}]}'))
    assert (client.code, there.requests) == ("residency_unmet", {})


async def settle(made):
    """What runs besides has come to its end."""
    while made.pipeline._tasks:
        await asyncio.wait(made.pipeline._tasks)
    made.pump()


def moves(made, here):
    adopt(made, tags={"here": US})


def is_pinned_elsewhere(made, here):
    adopt(made, route("m", pins=["zone=lab"]), tags={"here": EU})


def means_another_model(made, here):
    here.says(engine(models=[wire.Model("other", aliases=["m"], kinds=["chat"])]))


def is_accused(made, here):
    here.door.lied("it said what cannot be")


@pytest.mark.parametrize("happens", [moves, is_pinned_elsewhere, means_another_model, is_accused])
async def test_a_worker_that_is_good_no_longer_once_its_slot_is_funded_is_not_asked(happens):
    made = world(tags={"here": EU})
    here = Box(made, "here")
    made.limit("org:o", 10**6)
    key = bound(made, region="eu")
    made.rules[next(reversed(made.keys))] = access.compile_models([access.Rule("r", "user:u", False, "other")])
    client = made.ask(key=key)
    assert client.state is State.FUNDING
    happens(made, here)
    await settle(made)
    assert (here.requests, made.used) == ({}, 0)
    assert (client.state, client.code) == ((State.DONE, "model_not_found") if happens is means_another_model else (State.WAITING, ""))


def test_a_model_is_served_only_where_it_is_pinned():
    made = world(route("m", pins=["worker=b", "worker=c"]), route("fast", "m"), tags={"a": {}, "b": {}})
    a, b = Box(made, "a", engine("m", "n", slots=4)), Box(made, "b", engine("x", models=[wire.Model("m", aliases=["al"], kinds=["chat"])]))
    for name in ("m", "fast", "al"):
        client = made.ask(name)
        assert (len(a.requests), len(b.requests)) == (0, 1)
        answer(b)
        assert client.end is not None
    made.ask("n")
    assert len(a.requests) == 1
    b.cut()
    assert made.ask("m").state is State.WAITING
    assert not knows(made.pipeline.fleet, "nothing")
    adopt(made)
    assert len(a.requests) == 2


# -- the queue's lines -------------------------------------------------------------------------------------------------


def fleet(tags, rules=(), **models):
    made = Fleet(lambda: None)
    made.adopt(Rules(rules), {id: {**own, "worker": id} for id, own in tags.items()})
    for id, names in models.items():
        worker = Worker(id, id, 1, Link(lambda: None, 0.0))
        made.attach(worker, approved=True)
        made.report(worker, wire.Report(0, [engine(*names.split(), slots=2)]))
    return made


def test_there_is_one_line_for_each_set_of_slots():
    made = fleet({"a": EU, "b": {**EU, "zone": "lab"}, "c": US}, a="m", b="m n", c="n")
    eu, lab, us = where(["region=eu"]), where(["zone=lab"]), where(["region=us"])
    assert made.line("m", "chat", eu) == ("m", "chat")  # all of them are there
    assert made.line("m", "chat", lab) == ("m", "chat", lab)
    assert made.line("n", "chat", eu) == ("n", "chat", eu)
    assert made.line("n", "chat", lab) == ("n", "chat", eu)  # the same slots
    assert made.line("n", "chat", us) != made.line("n", "chat", eu)
    assert ("n", "chat", eu) in made.workers["b"].seats["e"].lines()
    assert (made.slots("n", "chat", eu), made.taken("n", "chat", lab)) == (2, (0, 2))
    before = made.canonical
    made.adopt(Rules(), {"a": {}, "b": {"worker": "b", **US}})
    assert made.canonical is not before
    assert made.line("m", "chat", eu) == ("m", "chat", eu)
    assert ("n", "chat", eu) not in made.workers["b"].seats["e"].lines()


def test_what_is_the_same_changes_nothing():
    told = []
    made = fleet({"a": EU}, a="m")
    made.changed = lambda: told.append(1)
    made.adopt(Rules(), {"a": {**EU, "worker": "a"}})
    assert not told


def test_places_that_callers_make_up_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(places, "MOST", 10)
    made = fleet({"a": EU}, a="m")
    for number in range(50):
        assert made.line("m", "chat", where([f"zone={number}"]))[:2] == ("m", "chat")
        assert len(made._places) <= 10
    assert made.rank("m", "chat", where(["region=eu"])).best(frozenset(), 0.0).owner == "a"


def test_those_who_wait_in_a_place_count_for_their_model():
    made = world(tags={"here": EU, "there": US})
    here, there = Box(made, "here"), Box(made, "there")
    key, other = bound(made, region="eu"), bound(made, region="us")
    clients = [made.ask(key=key) for _ in range(3)] + [made.ask(key=other) for _ in range(2)]
    queue = made.pipeline.queue
    assert (queue.waiting, queue._placed["m"]) == (3, 3)
    assert [entry.reason.split(",")[0] for entry in made.pipeline.lineup()[:3]] == ["no free slot 1/1"] * 3
    here.cut()
    assert "no worker with region=eu is ready for m" in {entry.reason for entry in made.pipeline.lineup()}
    for client in clients:
        client.post(signals.Gone())
    there.close(outcome="cancelled")
    assert (queue.waiting, queue._placed["m"]) == (0, 0)


# -- legs --------------------------------------------------------------------------------------------------------------


def test_a_pool_that_is_busy_is_waited_for_and_one_that_may_spill_is_not():
    for spill in (False, True):
        pools = {"gpu": {"pool": "gpu"}, "cpu": {"pool": "cpu"}}
        made = world(route("m", "@pool=gpu", "@pool=cpu=0", fallbacks=["m@pool=cpu"], spill=spill), tags=pools)
        gpu, cpu = Box(made, "gpu"), Box(made, "cpu")
        made.ask()
        second = made.ask()
        assert (len(gpu.requests), len(cpu.requests)) == (1, int(spill))
        assert (second.state is State.WAITING) is not spill
        assert made.ask().state is State.WAITING


def test_a_pool_without_a_worker_is_passed_over():
    made = world(route("fast", "m@pool=gpu", fallbacks=["m@pool=cpu"]), tags={"cpu": {"pool": "cpu"}})
    cpu = Box(made, "cpu")
    made.ask("fast")
    assert len(cpu.requests) == 1


def test_who_waits_for_a_pool_that_goes_away_goes_to_the_next():
    made = world(route("fast", "m@pool=gpu", fallbacks=["n@pool=cpu"]), tags={"gpu": {"pool": "gpu"}, "cpu": {"pool": "cpu"}})
    gpu, cpu = Box(made, "gpu"), Box(made, "cpu", engine("n", slots=2))
    first, second = made.ask("fast"), made.ask("fast")
    assert (len(gpu.requests), second.state) == (1, State.WAITING)
    gpu.cut()  # the first is lost, the second waits
    assert len(cpu.requests) == 1
    made.passes(5)
    assert len(cpu.requests) == 2
    for stream in list(cpu.requests):
        cpu.head(content_type=JSON, data=b'{"model":"n"}', stream=stream)
        cpu.close(stream=stream)
    assert [json.loads(client.body)["model"] for client in (first, second)] == ["fast", "fast"]
    assert {row.model for row in made.settled() if row.kind == "settled"} == {"n"}


def test_a_pool_that_fails_is_followed_by_the_next():
    made = world(route("fast", "m", fallbacks=["n"]))
    bad, good = Box(made, "bad", engine("m", slots=4)), Box(made, "good", engine("n"))
    client = made.ask("fast")
    for _ in range(3):
        bad.close("failed", "engine_unreachable")
        made.passes(1)
    assert (len(bad.requests), len(good.requests)) == (0, 1)
    answer(good, "n")
    assert json.loads(client.body)["model"] == "fast"
    assert headers(client)[b"x-mindgw-served-by"] == b"good; model=n"


def test_the_last_pool_that_fails_is_told():
    made = world(route("fast", "m"))
    bad = Box(made, "bad", engine("m", slots=4))
    client = made.ask("fast")
    for _ in range(3):
        bad.close("failed", "engine_unreachable")
        made.passes(1)
    assert client.code == "engine_unreachable"


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (route("fast", "absent"), "no_worker_available"), (route("fast", "m@pool=gpu"), "residency_unmet"),
        (route("fast", "e"), "unsupported_endpoint"), (route("fast", broken=True), "no_worker_available"),
        (route("fast", "m=0"), "no_worker_available"), (route("fast", "m", require=["zone=lab"]), "residency_unmet"),
    ],
)  # fmt: skip
def test_a_route_that_leads_nowhere_says_why(one, code):
    made = world(one, tags={"box": {}})
    box = Box(made, "box", engine("x", models=[wire.Model("m", kinds=["chat"]), wire.Model("e", kinds=["embeddings"])]))
    assert made.ask("fast").code == code
    assert not box.requests


def test_weights_are_kept_and_a_user_has_the_same_target_each_time():
    made = world(route("fast", "a=50", "b=50"))
    box = Box(made, "box", engine("a", "b", slots=100))
    asked = {}
    for number in range(20):
        key = made.add_key()
        for _ in range(2):
            made.ask("fast", key)
            asked.setdefault(number, set()).add(box.requests[box.stream].meta.model)
    assert all(len(models) == 1 for models in asked.values())
    assert {model for models in asked.values() for model in models} == {"a", "b"}


def test_plans_of_people_who_are_gone_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr("mindgw.gateway.routes._PLANS", 5)
    made = world(route("fast", "m"))
    Box(made, "box", engine("m", slots=100))
    for _ in range(12):
        made.ask("fast", made.add_key())
        assert 0 < len(made.pipeline.routes._plans) <= 5
    adopt(made, route("fast", "gone"))
    assert made.ask("fast").code == "no_worker_available"


# -- shadows -----------------------------------------------------------------------------------------------------------


def test_a_shadow_is_noted_and_does_nothing(caplog):
    made = world(route("m", "n", name="trial", shadow=True), route("n", "n", name="same", shadow=True), route("x", "y", shadow=True))
    box = Box(made, "box", engine("m", "n", slots=9))
    for model in ("m", "m", "n"):
        made.ask(model)
        assert box.requests[box.stream].meta.model == model
    routes = made.pipeline.routes
    assert routes._counters.shadow_routes == {"trial": 2}
    with caplog.at_level(logging.INFO, "mindgw.routes"):
        routes.tell()
        routes.tell()
    assert [record.getMessage() for record in caplog.records] == [
        "the route trial is only noted: 2 requests would have gone to n and not to m"
    ]


def test_a_shadow_that_would_refuse_is_noted_as_well():
    made = world(route("m", "gone", name="trial", shadow=True), route("p", pins=["worker=z"], name="pin", shadow=True))
    Box(made, "box", engine("m", "p", slots=9))
    assert (made.ask("m").code, made.ask("p").code) == ("", "")
    assert set(made.pipeline.routes._untold) == {("trial", "nowhere (no_worker_available)", "m"), ("pin", "p with worker=z", "p")}


def test_weights_are_drawn_by_the_end_user_that_a_request_names_and_of_others_by_the_key():
    made = world(route("fast", "m", "n"))
    Box(made, "box", engine("m", "n", slots=100))
    first = {name: made.ask("fast", user=name).exchange.ticket.needs.model for name in map(str, range(20))}
    assert set(first.values()) == {"m", "n"}
    assert {name: made.ask("fast", user=name).exchange.ticket.needs.model for name in first} == first
    assert len({made.ask("fast").exchange.ticket.needs.model for _ in range(10)}) == 1
    long = [made.ask("fast", user="x" * 64 + str(number)).exchange.ticket.needs.model for number in range(10)]
    assert len(set(long)) == 1


# -- explained ---------------------------------------------------------------------------------------------------------


def test_what_would_become_of_a_request_is_told_and_nothing_is_sent():
    trial = route("fast", "n", name="trial", shadow=True)
    made = world(route("fast", "m@pool=gpu", fallbacks=["n", "gone"]), trial, tags={"gpu": {"pool": "gpu"}})
    box = Box(made, "gpu", engine("m", "n"))
    caller = Caller("k", "n", "o")
    way = made.pipeline.explain(caller, "fast", "chat")
    assert (way.route, way.shadow, way.chosen, way.code) == ("fast", "trial", 0, "")
    assert way.reason == "it goes to m with pool=gpu"
    assert [(stop.model, stop.why_not, [seen.name for seen in stop.workers]) for stop in way.legs] == [
        ("m", "", ["gpu"]), ("n", "", ["gpu"]), ("gone", "no worker that serves it is connected", []),
    ]  # fmt: skip
    assert not box.requests and not made.pipeline.routes._untold
    denied = Caller("k", "n", "o", models=access.compile_models([access.Rule("r", "user:u", False, "m")]))
    way = made.pipeline.explain(denied, "fast", "chat")
    assert (way.chosen, way.legs[0].why_not) == (1, "it is not for who asks")
    elsewhere = made.pipeline.explain(Caller("k", "n", "o", home=routing.residency(EU)), "fast", "chat")
    assert (elsewhere.chosen, elsewhere.code, elsewhere.home) == (None, "residency_unmet", ["region=eu"])
    plain = made.pipeline.explain(caller, "m", "chat")
    assert (plain.route, plain.chosen, plain.reason) == (None, 0, "it goes to m")
    absent = made.pipeline.explain(Caller("k", "n", "o", models=denied.models), "m", "chat")
    assert (absent.chosen, absent.code) == (None, "model_not_found")
    box.says(engine("m", "n", healthy=False))
    assert made.pipeline.explain(caller, "fast", "chat").legs[0].why_not == "none of its workers takes requests"


# -- residency ---------------------------------------------------------------------------------------------------------


def topology(dice):
    """A random fleet with random routes, and a caller who is bound to something."""
    values, models = ("eu", "us", "uk"), ("m", "n")
    tags = {f"w{i}": {n: dice.choice(values) for n in ("region", "zone") if dice.random() < 0.8} for i in range(dice.randint(1, 5))}
    made = fleet({}, **{id: " ".join(dice.sample(models, dice.randint(1, 2))) for id in tags})

    def some(count):
        return [dice.choice(["m", "n", "@zone=eu", "m@zone=us", "n@region=uk,region=us"]) for _ in range(dice.randint(0, count))]

    rules = [route("m", *some(2), fallbacks=some(3), spill=dice.random() < 0.3), route("fast", *some(2), fallbacks=some(2))]
    if dice.random() < 0.3:
        rules.append(route("n", pins=[f"zone={dice.choice(values)}"]))
    home = routing.residency({"region": dice.choice((*values, "eu|uk"))}, {"zone": "us"} if dice.random() < 0.2 else {})
    return made, Rules(rules), {id: {**own, "worker": id} for id, own in tags.items()}, home


def attempts_stay_at_home(dice):
    """A request in a random topology, whatever fails; how many attempts it had, None when it was refused."""
    made, rules, tags, home = topology(dice)
    made.adopt(rules, tags)
    routes = Routes(made, Queue(lambda needs, now: None, made, None), metrics.Counters())
    routes.adopt(rules)
    flow = Flow(("o", "t", f"u{dice.randrange(1000)}", "k", ""), 2)
    try:
        course, leg = routes.go(Caller("k", "n", "o", home=home), dice.choice(("m", "n", "fast")), "chat", flow)
    except errors.MindGWError:
        return None
    asked = 0
    for one in course.legs if course is not None else (leg,):
        policy = attempts(Needs(one.model, "chat", where=one.where), lambda needs, now: True)
        needs = next(policy)
        while asked < 50 and (placement := place(made, needs, 0.0)) is not None:
            asked += 1
            owner = placement.seat.owner
            assert permits(home, tags[owner]), (tags, home, needs)
            assert permits(rules.pinned([placement.model]), tags[owner])
            if dice.random() < 0.2:  # its tags change while others run
                tags = {**tags, owner: {"worker": owner}}
                made.adopt(rules, tags)
            try:
                needs = policy.send(Ended(dice.choice(list(Outcome)), frozenset((placement.seat.id,)), 0.0))
            except StopIteration:
                break
    return asked


def test_residency_holds_in_ten_thousand_random_topologies_whatever_fails():
    dice = random.Random(20)
    found = [attempts_stay_at_home(dice) for _ in range(10_000)]
    assert sum(filter(None, found)) > 5_000
    assert found.count(None) > 500


@given(st.integers(0, 2**64))
@settings(max_examples=10 * settings().max_examples, deadline=None)
def test_and_in_others_each_time_that_many_are_looked_at(seed):
    """A thousand, and ten thousand new ones with `--long`."""
    attempts_stay_at_home(random.Random(seed))
