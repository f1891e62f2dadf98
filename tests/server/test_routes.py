"""Routes over HTTP on the real server: made, changed, obeyed at once, explained, taken away; and the tags of workers."""

import json

from mindgw.gateway import signals
from mindgw.store.tables import Org, Worker
from tests.gateway.world import JSON, Box, Client, engine
from tests.server.site import site
from tests.server.test_access import in_place


async def good(place, method, path, **more):
    answer = await place.call(method, path, **more)
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


async def refused(place, method, path, status, **more):
    answer = await place.call(method, path, **more)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


async def box(place, name="box", *models, **fields):
    async with place.database.write() as session:
        session.add(Worker(id=name, name=name, public_key=b"k" * 32))
    await place.server.app.state.routes_changed()
    return Box(place.world, name, engine(*(models or ("m",)), **fields))


async def ask(place, model, key=None):
    """A request; it is with a box, or over, when this returns."""
    client = Client(place.world, key or place.key)
    client.post(signals.Received(json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]}).encode()))
    await place.until(lambda: client.end is not None or client.exchange.state in {signals.SENT, signals.WAITING})
    return client


async def test_a_route_is_made_obeyed_and_taken_away_while_requests_run(tmp_path):
    async with site(tmp_path / "data") as place:
        here = await box(place)
        assert (await ask(place, "fast")).code == "model_not_found"
        made = await good(place, "POST", "/routes", json={"name": "fast", "to": ["m=90", " gone@zone=lab=10"], "fallbacks": ["m"]})
        assert (made["match"], made["to"], made["version"]) == ("fast", ["m=90", "gone@zone=lab=10"], 1)
        assert await good(place, "GET", "/routes/fast") == made
        assert (await good(place, "GET", "/routes"))["items"] == [made]
        client = await ask(place, "fast")
        here.head(content_type=JSON, data=b'{"model":"m"}')
        here.close()
        assert json.loads(client.body) == {"model": "fast"}
        listed = (await place.http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["fast", "m"]
        assert (await place.http.get("/v1/models/fast")).json()["id"] == "fast"
        changed = await good(place, "PATCH", "/routes/fast", json={"to": ["gone"], "fallbacks": []}, headers={"if-match": "1"})
        assert (changed["version"], changed["to"], changed["fallbacks"]) == (2, ["gone"], [])
        assert (await ask(place, "fast")).code == "no_worker_available"
        assert (await refused(place, "PATCH", "/routes/fast", 412, json={"spill": True}, headers={"if-match": "1"}))[
            "code"
        ] == "version_mismatch"
        await refused(place, "DELETE", "/routes/fast", 412, headers={"if-match": "1"})
        assert await good(place, "DELETE", "/routes/fast", headers={"if-match": "2"}) == changed
        assert (await ask(place, "fast")).code == "model_not_found"
        for method, more in (("GET", {}), ("PATCH", {"json": {"spill": True}}), ("DELETE", {})):
            await refused(place, method, "/routes/fast", 404, **more)


SENSELESS = [
    ({"name": "r"}, 400, "to"), ({"name": "r", "to": []}, 400, "to"), ({"name": "r", "to": ["a b"]}, 400, "to"),
    ({"name": "r", "to": ["m=99999"]}, 400, "to"), ({"name": "r", "fallbacks": ["m@x"]}, 400, "fallbacks"),
    ({"name": "r", "pins": ["x"]}, 400, "pins"), ({"name": "r", "require": ["=x"]}, 400, "require"),
    ({"name": " ", "to": ["m"]}, 400, "name"), ({"name": "r", "match": "\n", "to": ["m"]}, 400, "match"),
    ({"name": "r", "to": ["m"], "strategy": "luck"}, 400, None), ({"name": "r", "to": ["m"], "more": 1}, 400, None),
    ({"name": "r", "to": "m"}, 400, None), ({"to": ["m"]}, 400, None), ({"name": "r", "to": ["m"] * 51}, 400, None),]  # fmt: skip


@in_place
async def test_a_route_that_makes_no_sense_is_refused(place):
    for body, status, param in SENSELESS:
        wrong = await refused(place, "POST", "/routes", status, json=body)
        assert param is None or wrong["param"] == param


@in_place
async def test_a_name_is_taken_once_and_a_change_says_something(place):
    await good(place, "POST", "/routes", json={"name": "r", "to": ["m"]})
    for body in ({"name": "r", "to": ["n"]}, {"name": "s", "match": "r", "to": ["n"]}):
        assert (await refused(place, "POST", "/routes", 409, json=body))["code"] == "route_exists"
    await refused(place, "PATCH", "/routes/r", 400, json={})
    await refused(place, "PATCH", "/routes/r", 400, json={"to": []})
    assert (await refused(place, "PATCH", "/routes/r", 400, json={"to": ["m=0"]}))["param"] == "to"
    assert (await good(place, "GET", "/routes/r"))["to"] == ["m"]


@in_place
async def test_tags_are_obeyed_at_once_and_residency_with_them(place):
    eu, us = await box(place, "eu"), await box(place, "us")
    key = (await place.new_key("bound", labels={"region": "eu"}))["key"]
    assert (await ask(place, "m", key)).code == "residency_unmet"
    tagged = await good(place, "PATCH", "/workers/eu/tags", json={"tags": {"region": "eu", "pool": "gpu"}}, headers={"if-match": "1"})
    assert (tagged["tags"], tagged["version"]) == ({"region": "eu", "pool": "gpu"}, 2)
    assert (await good(place, "GET", "/workers/eu"))["tags"] == tagged["tags"]
    await ask(place, "m", key)
    assert (len(eu.requests), len(us.requests)) == (1, 0)
    assert (await good(place, "PATCH", "/workers/eu/tags", json={"tags": {"region": None}}))["tags"] == {"pool": "gpu"}
    assert (await ask(place, "m", key)).code == "residency_unmet"
    for body in ({"tags": {}}, {"tags": {"worker": "x"}}, {"tags": {"a b": "x"}}, {"tags": {"a": "x y"}}, {"tags": {"a": 1}}, {}):
        await refused(place, "PATCH", "/workers/eu/tags", 400, json=body)
    await refused(place, "PATCH", "/workers/gone/tags", 404, json={"tags": {"a": "b"}})
    await refused(place, "PATCH", "/workers/eu/tags", 412, json={"tags": {"a": "b"}}, headers={"if-match": "1"})
    many = {f"t{number}": "x" for number in range(50)}
    assert (await refused(place, "PATCH", "/workers/eu/tags", 409, json={"tags": many}))["code"] == "too_many_tags"


@in_place
async def test_labels_of_an_organisation_bind_all_its_keys(place):
    eu = await box(place, "eu")
    await good(place, "PATCH", "/workers/eu/tags", json={"tags": {"region": "eu"}})
    org = await place.server.app.state.home.id()
    async with place.database.write() as session:
        (await session.get(Org, org)).labels = {"region": "us"}
    place.pipeline.forget_callers()
    key = (await place.new_key("k"))["key"]
    assert (await ask(place, "m", key)).code == "residency_unmet"
    assert not eu.requests
    assert (await good(place, "GET", "/routing?model=m"))["way"]["code"] == "residency_unmet"
    assert (await place.http.get("/v1/models")).json()["data"] == []


@in_place
async def test_what_another_server_changes_is_heard_of(place):
    await box(place)
    async with place.database.write() as session:
        from_there = (await session.get(Worker, "box")).tags
        assert from_there == {}
        (await session.get(Worker, "box")).tags = {"zone": "lab"}
    await place.until(lambda: place.pipeline.fleet.workers["box"].tags == {"zone": "lab", "worker": "box"})


@in_place
async def test_a_route_is_explained_for_somebody(place):
    await box(place, "box", "m", "n")
    await good(place, "POST", "/routes", json={"name": "fast", "to": ["m"], "fallbacks": ["n"]})
    await good(place, "POST", "/users", json={"email": "ada@x.org"})
    await good(place, "POST", "/access/rules", json={"subject": "user:ada@x.org", "effect": "deny", "pattern": "m"})
    anybody = await good(place, "GET", "/routing?model=fast")
    assert (anybody["user"], anybody["way"]["route"], anybody["way"]["chosen"]) == (None, "fast", 0)
    hers = await good(place, "GET", "/routing", params={"model": "fast", "user": "ADA@x.org"})
    assert (hers["user"], hers["way"]["chosen"], hers["way"]["legs"][0]["allowed"]) == ("ada@x.org", 1, False)
    assert hers["way"]["reason"] == "it goes to n"
    await good(place, "POST", "/users", json={"email": "eva@x.org", "role": "viewer"})
    viewer = await good(place, "GET", "/routing", params={"model": "fast", "user": "eva@x.org"})
    assert viewer["way"]["code"] == "role_not_allowed"
    embeds = await good(place, "GET", "/routing?model=fast&kind=embeddings")
    assert embeds["way"]["code"] == "unsupported_endpoint"
    await refused(place, "GET", "/routing?model=fast&user=nobody@x.org", 404)
    await refused(place, "GET", "/routing?model=fast&kind=dreams", 400)
    await refused(place, "GET", "/routing", 400)


@in_place
async def test_what_a_shadow_would_do_is_counted(place):
    await box(place, "box", "m", "n", slots=4)
    await good(place, "POST", "/routes", json={"name": "trial", "match": "m", "to": ["n"], "shadow": True})
    await ask(place, "m")
    assert 'mindgw_shadow_routes_total{route="trial"} 1.0' in (await place.http.get("/metrics")).text


@in_place
async def test_a_route_is_there_before_the_first_request_of_a_new_run(place):
    await good(place, "POST", "/routes", json={"name": "fast", "to": ["m"]})
    ways = place.server.app.state.routes_changed
    place.pipeline.adopt_routes(type(place.pipeline.routes.rules)(), {})
    await ways()
    assert [route.name for route in place.pipeline.routes.rules.routes] == ["fast"]


@in_place
async def test_a_name_may_have_slashes_as_those_of_models_do(place):
    name, path = "meta/llama-3/8b", "/routes/meta%2Fllama-3%2F8b"
    assert (await good(place, "POST", "/routes", json={"name": name, "to": ["m"]}))["name"] == name
    assert (await good(place, "GET", path))["name"] == (await good(place, "GET", f"/routes/{name}"))["name"] == name
    assert (await good(place, "PATCH", path, json={"spill": True}))["spill"] is True
    assert (await good(place, "DELETE", path))["name"] == name
    for wrong in ("/a", "a/", "a//b", "..", "a/../b", ".", "a/./b"):
        assert (await refused(place, "POST", "/routes", 400, json={"name": wrong, "to": ["m"]}))["param"] == "name"
